import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from core.__main__ import main
from core.config import EXPORT_FORMATS, NETWORK_FORMATS
from core.errors import RunError
from core.export.targets import TARGETS
from core.runs.store import RunStore
from dashboard.downloads import artifacts


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run with 8 images and no saved network, its folder, and the store's folder."""
    runs = tmp_path_factory.mktemp("runs")
    assert main(["generate", "--images", "8", "--iterations", "2", "--snapshots", "1", "--threads", "1", "--runs", str(runs)]) == 0
    store = RunStore(runs)
    (finished,) = store.runs()
    yield finished, store.run_folder(finished.id), runs
    store.close()


@pytest.mark.slow
def test_images_are_exported_kept_and_listed(run):
    finished, folder, runs = run
    (offer,) = artifacts.offers(finished, folder, ["mi-fgsm"])
    assert (offer.title, offer.formats) == ("images by MI-FGSM", ("png", "safetensors", "npz"))
    npz = artifacts.make(runs, finished.id, offer, "npz", folder)
    assert np.load(npz)["images"].shape == (8, 3, 32, 32)
    png = artifacts.make(runs, finished.id, offer, "png", folder)
    with zipfile.ZipFile(png) as archive:
        assert sum(name.endswith(".png") for name in archive.namelist()) == 8
    made = artifacts.exported(folder)
    assert [(path.name, figures["format"], figures["images"]) for path, figures in made] == [(png.name, "png", 8), (npz.name, "npz", 8)]
    assert made[0][1]["bytes"] == png.stat().st_size
    # a second export replaces the first
    assert artifacts.make(runs, finished.id, offer, "npz", folder) == npz
    assert len(artifacts.exported(folder)) == 2
    # no temporary files are left
    assert len(list((folder / "exports").iterdir())) == 4


def test_error_of_the_command_is_passed_on(run):
    finished, folder, runs = run
    offer = artifacts.Offer("images", "images", ("npz",), ("--method", "adam"))
    with pytest.raises(RunError, match="^unknown method 'adam': must be mi-fgsm$"):
        artifacts.make(runs, finished.id, offer, "npz", folder)


def test_networks_are_offered_with_their_bit_width_the_papers_method_first(run, tmp_path):
    finished, _, _ = run
    config = replace(finished.config, bits=(4,), methods=("adam", "mi-fgsm"))
    for method in ("adam", "mi-fgsm"):
        (tmp_path / "quantized" / method / "W4A4").mkdir(parents=True)
        (tmp_path / "quantized" / method / "W4A4" / "quantized.safetensors").write_bytes(b"")
    (tmp_path / "result.json").write_text(json.dumps({}), encoding="utf-8")
    found = artifacts.offers(replace(finished, config=config), tmp_path, [])
    assert [offer.title for offer in found] == [
        "W4A4 network, trained on images by MI-FGSM",
        "W4A4 network, trained on images by Adam",
        "model card",
    ]
    assert found[1].options == ("--method", "adam", "--bits", "4")


def test_every_export_format_has_a_display_name():
    assert {TARGETS[kind].format if kind in TARGETS else kind for kind in artifacts.FORMATS} == set(EXPORT_FORMATS)


def test_files_of_one_network_have_different_names():
    offer = artifacts.Offer("W4A4 network", "adam-W4A4", (), ())
    kinds = [kind for kind in artifacts.FORMATS if kind in TARGETS or kind in NETWORK_FORMATS]
    names = [artifacts._file_name(offer, kind) for kind in kinds]
    names += [artifacts._file_name(offer, kind, True) for kind in kinds if artifacts.normalizes(kind)]
    assert names == [
        "adam-W4A4.onnx", "adam-W4A4-openvino.onnx", "adam-W4A4-tensorrt.onnx", "adam-W4A4.pte", "adam-W4A4.tflite",
        "adam-W4A4.pt2", "adam-W4A4.safetensors",
        "adam-W4A4-exact.onnx", "adam-W4A4-uint8.onnx", "adam-W4A4-openvino-uint8.onnx", "adam-W4A4-tensorrt-uint8.onnx",
        "adam-W4A4-uint8.pte", "adam-W4A4-uint8.tflite", "adam-W4A4-uint8.pt2", "adam-W4A4-exact-uint8.onnx",
    ]  # fmt: skip


FIGURES = {
    "title": "W4A4 network, trained on images by Adam", "format": "onnx", "target": "onnxruntime", "torch_accuracy": 90.0,
    "file_accuracy": 90.1, "max_output_difference": 0.5, "within_last_scale": 99.0, "bytes": 220_000, "float32_bytes": 1_120_000,
    "latency_ms": 0.5, "float32_latency_ms": 1.0, "latency_measured_in": "onnxruntime 1.32.0",
}  # fmt: skip


def test_a_network_has_a_text_in_every_column():
    cells = artifacts.file_cells(FIGURES)
    assert len(cells) == len(artifacts.FILE_COLUMNS) - 1
    assert cells == [
        "W4A4 network, trained on images by Adam, for ONNX Runtime",
        "0.22 MB, float32 1.12 MB",
        "0.5 ms, 2.0 times as fast as float32",
        "90.10 %, network 90.00 %",
        "✓ onnxruntime 1.32.0",
    ]
    assert artifacts.check_in_words(FIGURES) == (
        "Largest difference of a score: 0.5. No score differs by more than one step of the last quantizer on 99.00 % of images."
    )


@pytest.mark.parametrize(
    ("own", "before", "words"),
    [
        (2.65, 0.92, "2.6 ms, 2.9 times as long as float32"),
        (1.0, 1.01, "1 ms, as fast as float32"),
        (0.0, 1.0, "–"),  # too fast for the clock
    ],
)
def test_latency_in_words(own, before, words):
    assert artifacts.file_cells({**FIGURES, "latency_ms": own, "float32_latency_ms": before})[2] == words


def test_what_was_not_checked_is_said():
    cells = artifacts.file_cells({**FIGURES, "target": "tensorrt"})
    assert (cells[0][-12:], cells[4]) == ("for TensorRT", "✓ onnxruntime 1.32.0, not run in TensorRT")
    unlabeled = {**FIGURES, "torch_accuracy": None, "file_accuracy": None, "left_out": "accuracy was not compared, because"}
    assert artifacts.file_cells(unlabeled)[3] == "accuracy was not compared, because"
    by_format = {name: value for name, value in FIGURES.items() if name != "target"}
    assert artifacts.file_cells(by_format)[0] == "W4A4 network, trained on images by Adam, onnx"


def test_a_file_of_images_has_a_size_alone():
    figures = {"title": "images by Adam", "format": "npz", "bytes": 3_456_000}
    assert artifacts.file_cells(figures) == ["images by Adam", "3.46 MB", "", "", ""]
    assert artifacts.check_in_words(figures) == ""
