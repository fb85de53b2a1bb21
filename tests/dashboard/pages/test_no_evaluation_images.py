"""The pages and the report of a run without evaluation images: agreement with full precision where others show accuracy."""

import json
import shutil
from dataclasses import replace

import pytest
from app_pages import component, page, texts
from finished_runs import store_of_one_run

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
    assert "This run has no evaluation images: no accuracy during training." in shown
    (table,) = [frame.value for frame in app.dataframe if "agreement %" in frame.value and "KL" in frame.value]
    assert (table["agreement %"][0], table["KL"][0]) == (round(kept["agreement"], 2), round(kept["kl"], 4))
    assert "calibrated %" not in table
    (compared,) = layers.compared(session.store().run(run_id), "adam", "W4A4")
    assert (compared["agreement %"], compared["final %"]) == (kept["agreement"], None)


def test_runs_and_compare_show_agreement(run_id):
    outcome = session.store().result(run_id, "accuracy/adam/W4A4")
    agreement = outcome["held_out"][outcome["kept"]]["agreement"]
    assert page("runs").dataframe[0].value["W4A4 agreement %"][0] == agreement
    other = session.store().create(replace(UNLABELED, bits=()), "another")
    session.store().set_state(other, RunState.COMPLETE)
    app = page("compare", runs=f"{run_id},{other}")
    (table,) = [frame.value for frame in app.dataframe if "W4A4 agreement %" in frame.value]
    assert table["W4A4 agreement %"][0] == agreement


def test_export_offers_the_network_and_the_card(run_id):
    app = page("export", run=run_id)
    assert any("W4A4" in option for option in app.selectbox(key=f"content {run_id}").options)


def test_report_has_agreement_and_no_accuracy(run_id):
    text = report.report_now(session.store(), run_id, session.class_names)
    assert "agreement of W4A4, Adam" in text
    assert "The run has no evaluation images: its accuracy is unknown." in text
    assert "score SQNR, dB" in text
    assert "Top-1 in percent on" not in text
    assert "None" not in text.partition("<main>")[2].partition("<script")[0]
