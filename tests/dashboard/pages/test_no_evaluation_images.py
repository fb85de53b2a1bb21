"""The pages and the report of a run without evaluation images: agreement with full precision where others show accuracy."""

import json
import shutil
from dataclasses import replace

import pytest
from app_pages import component, page, tables, texts
from finished_runs import store_of_one_run

from core import layout
from core.config import GenerationConfig, MachineConfig, RunConfig, TrainingConfig
from core.runs.state import RunState
from dashboard import session
from dashboard.downloads import report
from dashboard.views import layers

UNLABELED = RunConfig(
    machine=MachineConfig(device="cpu"),
    generation=GenerationConfig(images=40, iterations=4, batch_size=20, snapshots=2),
    training=TrainingConfig(steps=3, training_batch_size=20),
    methods=("adam",),
    bits=(4,),
).with_knobs({"data": "none", "encoder": ""})


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    """The folder of a store with one complete run."""
    return store_of_one_run(tmp_path_factory.mktemp("unlabeled"), UNLABELED, "without data")


@pytest.fixture
def run_id(runs_folder, computed):
    shutil.copytree(computed, runs_folder, dirs_exist_ok=True)
    return session.store().runs()[0].id


def test_quantize_shows_agreement_instead_of_accuracy(run_id):
    outcome = session.store().result(run_id, "accuracy/adam/W4A4")
    kept = outcome["held_out"][outcome["kept"]]
    app = page("quantize", run=run_id)
    assert "Agreement with full precision at each bit width" in json.dumps(component(app, "figure"))
    shown = texts(app)
    assert "This run has no evaluation images, so its accuracy is unknown." in shown
    assert "This run has no labeled evaluation images: no accuracy during training." in shown
    assert "Synthetic: on 16 held-out synthetic images." in shown
    assert "on 16 held-out synthetic images. 20 dB is an error of 10 %" in shown
    (table,) = [table for table in tables(app) if "synthetic KL" in table]
    assert (table["synthetic agreement %"][0], table["synthetic KL"][0]) == (round(kept["agreement"], 2), round(kept["kl"], 4))
    assert "calibrated %" not in table
    (compared,) = layers.compared(session.store().run(run_id), "adam", "W4A4")
    assert (compared["agreement %"], compared["agreement on"], compared["final %"]) == (kept["agreement"], "synthetic images", None)


def test_runs_and_compare_show_agreement(run_id):
    outcome = session.store().result(run_id, "accuracy/adam/W4A4")
    agreement = outcome["held_out"][outcome["kept"]]["agreement"]
    assert tables(page("runs"))[0]["W4A4 synthetic agreement %"][0] == agreement
    other = session.store().create(replace(UNLABELED, bits=()), "another")
    session.store().set_state(other, RunState.COMPLETE)
    app = page("compare", runs=f"{run_id},{other}")
    (table,) = [table for table in tables(app) if "W4A4 synthetic agreement %" in table]
    assert table["W4A4 synthetic agreement %"][0] == agreement


def test_export_offers_the_network_and_the_card(run_id):
    app = page("export", run=run_id)
    assert any("W4A4" in option for option in app.selectbox(key=f"content {run_id}").options)


def test_export_has_a_row_for_every_file(run_id):
    folder = session.store().run_folder(run_id) / layout.EXPORTS
    folder.mkdir()
    network = {
        "title": "W4A4 network", "format": "onnx", "target": "openvino", "torch_accuracy": None, "file_accuracy": None, "bytes": 2_000_000,
        "left_out": "accuracy was not compared, because nothing is labeled", "float32_bytes": 8_000_000, "latency_ms": 1.0,
        "float32_latency_ms": 3.0, "latency_measured_in": "openvino 2026.4", "within_last_scale": 50.0, "max_output_difference": 0.25,
    }  # fmt: skip
    for name, figures in {"a.onnx": network, "b.npz": {"title": "images", "format": "npz", "bytes": 3_000_000}}.items():
        (folder / name).write_bytes(b"file")
        (folder / f"{name}.json").write_text(json.dumps(figures), encoding="utf-8")
    app = page("export", run=run_id)
    assert sorted(button.proto.label for button in app.get("download_button"))[-2:] == ["a.onnx", "b.npz"]
    shown = texts(app)
    for words in (
        "W4A4 network, for OpenVINO", "2.00 MB, float32 8.00 MB", "1 ms, 3.0 times as fast as float32", "because nothing is labeled",
        "✓ openvino 2026.4", "3.00 MB",
    ):  # fmt: skip
        assert words in shown
    assert [value.proto.help for value in app.markdown if "openvino 2026" in value.value.replace("\\", "")] == [
        "Largest difference of a score: 0.25. No score differs by more than one step of the last quantizer on 50.00 % of images."
    ]


def test_report_has_agreement_and_no_accuracy(run_id):
    text = report.report_now(session.store(), run_id, session.class_names)
    assert "agreement of W4A4, Adam, on synthetic images" in text
    assert "Agreement with full precision on 16 held-out synthetic images: the run has no labeled images" in text
    assert "The run has no labeled evaluation images: its accuracy is unknown." in text
    layers = text.partition("<h2>Layers</h2>")[2].partition("<h2>")[0]
    assert "<h3>Adam W4A4</h3>" in layers
    assert "On 16 held-out synthetic images. Largest error:" in layers
    assert "score SQNR, dB" in text
    assert "Top-1 in percent on" not in text
    assert "None" not in text.partition("<main>")[2].partition("<script")[0]


def test_images_without_labels_are_named_on_every_page(run_id):
    outcome, folder = session.store().result(run_id, "accuracy/adam/W4A4"), "/photos/pets"
    figures = {"agreement": 91.25, "standard_error": 1.5, "kl": 0.05, "images": 400, "score_sqnr": 18.0}
    real = {network: {**figures, "measured_on": f"400 images of {folder}"} for network in ("calibrated", "trained")}
    session.store().set_result(run_id, "accuracy/adam/W4A4", {**outcome, "real": real})
    app = page("quantize", run=run_id)
    shown = texts(app)
    assert "The evaluation images of this run have no labels, so its accuracy is unknown." in shown
    assert f"Real: on 400 images of {folder}; synthetic: on 16 held-out synthetic images." in shown
    assert "real images of the same class, %" in json.dumps(component(app, "figure"))
    (table,) = [table for table in tables(app) if "real KL" in table]
    assert (table["real agreement %"][0], table["real ±"][0]) == (91.25, 1.5)
    assert tables(page("runs"))[0]["W4A4 real agreement %"][0] == 91.25
    text = report.report_now(session.store(), run_id, session.class_names)
    assert "agreement of W4A4, Adam, on real images" in text
    assert "Measured on: 400 images of pets (real), 16 held-out synthetic images (synthetic)." in text
    assert folder not in text
