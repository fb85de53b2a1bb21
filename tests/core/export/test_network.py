import errno
import json
import os
import shutil
from pathlib import Path

import onnxruntime
import pytest
from PIL import Image
from safetensors import safe_open

import core.export.network
from core.__main__ import main
from core.config import EvaluationConfig, MachineConfig, RunConfig, TrainingConfig
from core.data.labeled import embedded_images
from core.errors import ConfigError, DataError, RunError, RunStopped, UnknownNameError
from core.export.network import export_network, find_network, new_file
from core.export.verify import takes_pixels
from core.layout import NETWORK_FILE
from core.models.registry import CIFAR10_CLASSES
from core.quantization.saved_network import save_quantized
from core.reporting import NoControl
from core.runs.store import RunStore


@pytest.fixture
def config(tmp_path):
    folder = tmp_path / "pictures"
    images, labels = embedded_images()
    for label, name in enumerate(CIFAR10_CLASSES):
        (folder / name).mkdir(parents=True)
        for index in [i for i, other in enumerate(labels) if other == label][:2]:
            Image.fromarray(images[index].permute(1, 2, 0).numpy()).save(folder / name / f"{index}.png")
    return RunConfig(
        machine=MachineConfig(device="cpu", threads=1),
        training=TrainingConfig(range="mse"),
        bits=(3, 4),
        evaluation=EvaluationConfig(data=str(folder)),
    )


@pytest.fixture
def run(tmp_path, embedded, calibrated, config):
    """The folder of a run with one saved network: W4A4 of mi-fgsm."""
    quantized, _ = calibrated(embedded, 4)
    folder = tmp_path / "runs" / "run" / "quantized" / "mi-fgsm" / "W4A4"
    folder.mkdir(parents=True)
    save_quantized(quantized, config.training_for(4), folder)
    return tmp_path / "runs" / "run"


def test_file_of_a_run_without_evaluation_images_is_compared_on_noise(run, config, tmp_path):
    figures = export_network(run, config.with_knobs({"data": "none"}), "packed", tmp_path / "network")
    accuracies = ("torch_accuracy", "onnxruntime_accuracy", "file_accuracy", "standard_error")
    assert [figures[name] for name in accuracies] == [None] * 4
    assert figures["left_out"] == "accuracy was not compared, because the run has no evaluation images"
    assert figures["max_output_difference"] == 0
    assert "noise" in figures["evaluated_on"]


def test_a_network_is_compared_on_images_without_labels(run, config, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number, path in enumerate(sorted(Path(config.evaluation.data).rglob("*.png"))):
        shutil.copy(path, photos / f"{number}.png")
    figures = export_network(run, config.with_knobs({"data": str(photos)}), "packed", tmp_path / "network")
    accuracies = ("torch_accuracy", "onnxruntime_accuracy", "file_accuracy", "standard_error")
    assert [figures[name] for name in accuracies] == [None] * 4
    assert figures["left_out"] == "accuracy was not compared, because the evaluation images have no labels"
    assert figures["evaluated_on"] == f"20 images of {photos}"
    assert figures["max_output_difference"] == 0


def networks(folder, *names):
    for name in names:
        (folder / "quantized" / name).mkdir(parents=True)
        (folder / "quantized" / name / NETWORK_FILE).write_bytes(b"")
    return folder


def test_the_only_network_needs_no_choice(tmp_path, config):
    folder = networks(tmp_path / "run", "given/W4A4", "given/W8A8")  # the config has no W8A8
    path, method, quantization = find_network(folder, config)
    assert path == folder / "quantized" / "given" / "W4A4" / NETWORK_FILE
    assert (method, quantization.width) == ("given", "W4A4")


def test_choice_of_a_network(tmp_path, config):
    folder = networks(tmp_path / "run", "adam/W3A3", "mi-fgsm/W3A3", "mi-fgsm/W4A4")
    assert find_network(folder, config, bits=3)[0].parent == folder / "quantized" / "mi-fgsm" / "W3A3"
    assert find_network(folder, config, "adam")[2].width == "W3A3"
    with pytest.raises(ConfigError, match="^bits must be given, because mi-fgsm has several bit widths: 3, 4$"):
        find_network(folder, config)
    with pytest.raises(ConfigError, match="^bits must be 3 for adam, got 4$"):
        find_network(folder, config, "adam", 4)
    for method in ("nobody", "../quantized/adam"):
        with pytest.raises(UnknownNameError, match="must be one of adam, mi-fgsm"):
            find_network(folder, config, method, 3)
    with pytest.raises(RunError, match="^run must have finished at least one quantized network, and 'empty' has none$"):
        find_network(tmp_path / "empty", config)


def test_new_file_is_checked(tmp_path):
    with pytest.raises(
        UnknownNameError, match="unknown format 'gguf': must be one of onnx, onnx-symmetric, onnx-exact, packed, pt2, pte, tflite"
    ):
        new_file("gguf", tmp_path / "a.gguf")
    for kind, suffix in (
        ("onnx", ".onnx"),
        ("onnx-symmetric", ".onnx"),
        ("onnx-exact", ".onnx"),
        ("packed", ".safetensors"),
        ("pt2", ".pt2"),
        ("pte", ".pte"),
        ("tflite", ".tflite"),
    ):
        for name, completed in ((f"new{suffix}", f"new{suffix}"), (f"x{suffix.upper()}", f"x{suffix.upper()}"), ("x", f"x{suffix}")):
            assert new_file(kind, tmp_path / name) == tmp_path / completed
        with pytest.raises(ConfigError, match=f"^out must end in {suffix}, got "):
            new_file(kind, tmp_path / "new.bin")
        (tmp_path / f"there{suffix}").write_bytes(b"kept")
        with pytest.raises(DataError, match="^out must be a new file, and .* exists already$"):
            new_file(kind, tmp_path / f"there{suffix}")
        with pytest.raises(DataError, match="cannot be created in"):
            new_file(kind, tmp_path / f"there{suffix}" / f"new{suffix}")


def test_a_standard_file_needs_the_images_of_the_run(run, config, tmp_path):
    with pytest.raises(DataError, match="mi-fgsm"):
        export_network(run, config, "onnx", tmp_path / "network.onnx")
    assert not (tmp_path / "network.onnx").exists()


def test_export(run, config, tmp_path):
    out = tmp_path / "new folder" / "packed.safetensors"
    figures = export_network(run, config, "packed", out)
    assert {key: figures[key] for key in ("out", "format", "method", "width")} == {
        "out": str(out), "format": "packed", "method": "mi-fgsm", "width": "W4A4",
    }  # fmt: skip
    assert figures["torch_accuracy"] == figures["file_accuracy"]
    assert figures["max_output_difference"] == 0
    assert figures["bytes"] == out.stat().st_size
    assert figures["bytes"] * 5 < figures["float32_bytes"]
    assert figures["evaluated_on"].startswith("20 images of ")
    assert "left_out" not in figures
    assert os.listdir(out.parent) == [out.name]
    with safe_open(out, framework="pt") as file:
        assert json.loads(file.metadata()["quantization"]) == config.training_for(4).to_dict()


def test_a_program_with_preprocessing_has_the_same_accuracy(run, config, tmp_path):
    figures = export_network(run, config, "pt2", tmp_path / "network.pt2", preprocessing=True)
    assert figures["file_accuracy"] == figures["torch_accuracy"]
    assert figures["max_output_difference"] == 0
    assert takes_pixels(tmp_path / "network.pt2")


def test_a_file_with_preprocessing_takes_pixels_and_has_the_same_accuracy(run, config, tmp_path):
    out = tmp_path / "network.onnx"
    figures = export_network(run, config, "onnx-exact", out, preprocessing=True)
    assert figures["file_accuracy"] == figures["torch_accuracy"]
    assert figures["within_last_scale"] == 100
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].type == "tensor(uint8)"
    assert session.get_modelmeta().custom_metadata_map["input"] == "RGB, 0 to 255, uint8 (N, 3, 32, 32)"
    allowed = "onnx, onnx-symmetric, onnx-exact, pt2, pte, tflite"
    with pytest.raises(ConfigError, match=f"^preprocessing must be written into a format of {allowed}, got packed$"):
        export_network(run, config, "packed", tmp_path / "packed", preprocessing=True)


def test_a_file_is_checked_in_its_target(run, config, tmp_path):
    figures = export_network(run, config, "onnx-exact", tmp_path / "network.onnx", target="openvino")
    assert figures["target"] == "openvino"
    assert figures["latency_measured_in"].startswith("openvino 20")
    assert figures["onnxruntime_accuracy"] is None
    assert abs(figures["file_accuracy"] - figures["torch_accuracy"]) <= 10  # two of 20 images


@pytest.mark.parametrize("left", ["nothing", "an empty folder", "another thing"])
def test_a_network_whose_evaluation_images_are_gone_is_exported_without_that_check(run, config, tmp_path, left):
    shutil.rmtree(config.evaluation.data)
    if left == "an empty folder":
        (tmp_path / "pictures").mkdir()
    elif left == "another thing":
        (tmp_path / "pictures").write_text("not a folder", encoding="utf-8")
    out = tmp_path / "packed.safetensors"
    figures = export_network(run, config, "packed", out)
    assert figures["left_out"].startswith("accuracy was not compared, because the evaluation images cannot be read: ")
    assert config.evaluation.data in figures["left_out"]
    accuracies = {name: figures[name] for name in ("torch_accuracy", "file_accuracy", "onnxruntime_accuracy", "standard_error")}
    assert set(accuracies.values()) == {None}
    # the scores are still compared
    assert figures["max_output_difference"] == 0
    assert "noise" in figures["evaluated_on"]
    assert out.stat().st_size == figures["bytes"]


class Stopped(NoControl):
    def pause_point(self):
        raise RunStopped("stopped by the person who watches")


def test_failed_export_leaves_no_file(run, config, tmp_path, monkeypatch):
    before = sorted(tmp_path.rglob("*"))
    out = tmp_path / "new" / "packed.safetensors"
    with pytest.raises(RunStopped):
        export_network(run, config, "packed", out, control=Stopped())

    def broken(*_):
        raise RuntimeError("the file does not run")

    monkeypatch.setattr(core.export.network, "verify", broken)
    with pytest.raises(RuntimeError, match="does not run"):
        export_network(run, config, "packed", out)
    monkeypatch.undo()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(DataError, match=r"^out must be in a folder with enough space, .* \(No space left on device\)$"):
        export_network(run, config, "packed", out)
    assert sorted(tmp_path.rglob("*")) == before


def test_command(run, config, tmp_path, capsys):
    store = RunStore(tmp_path / "runs")
    run_id = store.create(config, "a run")
    store.close()
    os.rmdir(tmp_path / "runs" / run_id)
    run.rename(tmp_path / "runs" / run_id)
    out = tmp_path / "packed.safetensors"
    arguments = ["export", run_id, "--runs", str(tmp_path / "runs"), "--format", "packed", "--out", str(out)]
    assert main([*arguments, "--bits", "4", "--method", "mi-fgsm", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["width"] == "W4A4"
    assert figures["bytes"] == out.stat().st_size
    assert figures["onnxruntime_accuracy"] is None
    for changed, says in (
        ([], "exists already"),
        (["--format", "gguf"], "unknown format 'gguf': must be one of onnx, onnx-symmetric, onnx-exact, packed, pt2, pte, tflite"),
        (["--out", str(tmp_path / "new.safetensors"), "--method", "adam"], "unknown method 'adam': must be mi-fgsm"),
        (["--out", str(tmp_path / "new.safetensors"), "--bits", "3"], "bits must be 4 for mi-fgsm, got 3"),
    ):
        assert main([*arguments, *changed]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("python -m core export: ")
        assert says in line
    assert not (tmp_path / "new.safetensors").exists()
