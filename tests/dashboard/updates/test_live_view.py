"""Values of views: updates equal what pages draw first, and what makes Streamlit redraw a page."""

import json
from dataclasses import replace

import numpy as np
import pytest
from app_pages import page
from waiting import wait_until

from core.config import EvaluationConfig, GenerationConfig, MachineConfig, RunConfig
from core.reporting import TEST, Frame
from core.runs.state import RunState
from dashboard import session
from dashboard.updates import live_view, pace
from dashboard.views import diversity, generation, generation_data, status, training

ME = pace.Watcher("a session", False)
LONG = RunConfig(
    machine=MachineConfig(device="cpu"),
    generation=GenerationConfig(images=20, iterations=5000, batch_size=20, snapshots=1),
    bits=(),
    evaluation=EvaluationConfig(encoder=""),
)


@pytest.fixture
def alone(monkeypatch):
    """No page of another test follows a run."""
    monkeypatch.setattr(pace, "_watching", {})


def collect(view, run_id, query=""):
    """The updates for a page on another machine."""
    with pace.asked_by(ME):
        return live_view.collect_updates(view, run_id, query)


def layout_of(app):
    """Layout version of the view that a page has drawn."""
    (data,) = [json.loads(one.proto.json) for one in app.get("bidi_component") if one.proto.component_name == "dashboard.update_socket"]
    return data["layout"]


@pytest.mark.parametrize(
    ("name", "view", "address", "least"),
    [
        ("studio", generation.GENERATION, {}, 7),
        ("studio", generation.GENERATION, {"at": 2}, 7),
        ("studio", generation.GENERATION, {"at": 2, "view": "layers"}, 7),
        ("studio", generation.GENERATION, {"view": "heatmaps"}, 7),
        ("studio", generation.GENERATION, {"view": "layer", "layer": 3, "at": 3}, 7),
        ("quantize", training.TRAINING, {}, 2),
        ("quantize", training.TRAINING, {"training": "agreement"}, 2),
        ("quantize", training.TRAINING, {"training": "nonsense"}, 2),
    ],
)
def test_updates_equal_what_the_page_draws(with_finished_run, name, view, address, least):
    app = page(name, run=with_finished_run, **address)
    drawn = {element.proto.id: json.loads(element.proto.json) for element in app.get("bidi_component")}
    run = session.store().run(with_finished_run)
    with pace.asked_by(ME):
        values = view.values(run, {parameter: str(value) for parameter, value in address.items()})
    data = {key: value for key, value in values.items() if key not in live_view._NOT_ELEMENTS}
    assert len(data) >= least
    for key, sent in data.items():
        (element,) = [data for element, data in drawn.items() if element.endswith(f"-{key}")]
        assert {field: element[field] for field in sent} == json.loads(json.dumps(sent)), key


def test_active_run_is_updated_until_its_layout_changes(runs_folder, alone, monkeypatch):
    manager, store = session.manager(), session.store()
    run_id = manager.start(LONG)

    def updates(query=""):
        return collect(generation.GENERATION, run_id, f"?run={run_id}{query}")

    wait_until(lambda: f"player/{run_id}" in updates()["values"])
    before = updates()
    assert before["again"] in (30, 1000)
    player = f"player/{run_id}"
    wait_until(lambda: json.loads(updates()["values"][player])["latest"] > json.loads(before["values"][player])["latest"])
    after = updates()
    assert after["layout"] == before["layout"]
    assert after["values"][f"sheet/{run_id}/adam"] != before["values"][f"sheet/{run_id}/adam"]
    assert "of 10,000 steps" in after["values"][f"progress/{run_id}"]

    assert layout_of(page("studio", run=run_id)) == after["layout"]
    monkeypatch.setattr(pace, "chart_seconds", lambda: 1e-6)
    enlarged = [updates("&method=adam&image=3")["layout"] for _ in range(2)]
    assert enlarged[0] != enlarged[1] != after["layout"]  # the large view is redrawn as a whole

    manager.control(run_id).set("epsilon", 0.3, ["mi-fgsm"])
    knobs = f"knobs/{run_id}"
    wait_until(lambda: updates()["values"][knobs] != after["values"][knobs])
    assert updates()["layout"] == after["layout"]  # the sliders are updated in place
    manager.control(run_id).pause()
    wait_until(lambda: store.run(run_id).state is RunState.PAUSED)
    assert updates()["layout"] != after["layout"]
    manager.control(run_id).stop()
    manager.wait(run_id)
    store.delete(run_id)
    assert updates() == {"layout": "deleted", "again": 1000, "values": {}}


def add_iteration(run_id, method, step, keep=False):
    """What a run stores of an iteration whose L_BNS is the number of its step."""
    data = {"bns": float(step), "agreement": 50.0, "layers": [1.0], **dict.fromkeys(("total", "tv", "l2", "ce"), 1.0)}
    session.store().append(run_id, "generation", method, step, data)
    frame = Frame(step, np.zeros((2, 3, 4, 4), np.uint8), np.zeros(2, np.int64))
    session.store().frames.save(run_id, method, frame, keep)


def test_page_asks_again_soon_while_a_method_is_ahead(runs_folder, alone):
    """Otherwise a page that asks in step with the iterations would always show old images."""
    store = session.store()
    run_id = store.create(LONG, "by hand")
    store.set_state(run_id, RunState.RUNNING)

    def again_after(method, step):
        add_iteration(run_id, method, step, keep=True)
        return collect(generation.GENERATION, run_id)["again"]

    assert collect(generation.GENERATION, run_id)["again"] == 30  # until the first images of all methods
    assert again_after("mi-fgsm", 1) == 30
    assert again_after("adam", 1) == 1000
    assert again_after("mi-fgsm", 2) == 200
    assert again_after("adam", 2) == 1000
    again_after("mi-fgsm", 3)
    store.set_state(run_id, RunState.PAUSED)
    assert collect(generation.GENERATION, run_id)["again"] == 1000  # a paused run has no newer images


def test_first_images_of_a_method_do_not_wait_long_for_those_of_another(runs_folder, alone, monkeypatch):
    monkeypatch.setattr(generation_data, "_SECONDS_FOR_ALL", 0)
    store = session.store()
    run_id = store.create(LONG, "by hand")
    store.set_state(run_id, RunState.RUNNING)

    def sheets_after(method, step):
        add_iteration(run_id, method, step)
        answer = collect(generation.GENERATION, run_id)
        return [key.split("/")[-1] for key in answer["values"] if key.startswith("sheet/")], answer["layout"]

    first, of_one = sheets_after("mi-fgsm", 1)
    both, of_both = sheets_after("adam", 1)
    assert (first, both) == (["mi-fgsm"], ["mi-fgsm", "adam"])
    assert of_one != of_both  # drawn again, because there is another element
    assert sheets_after("mi-fgsm", 2) == (both, of_both)


def test_images_made_with_a_live_change_do_not_wait_for_those_of_another_method(runs_folder, alone):
    store = session.store()
    run_id = store.create(LONG, "by hand")
    store.set_state(run_id, RunState.RUNNING)

    def steps_after(method, step):
        add_iteration(run_id, method, step)
        values = collect(generation.GENERATION, run_id)["values"]
        sheets = {name: json.loads(values[f"sheet/{run_id}/{name}"])["step"] for name in ("mi-fgsm", "adam")}
        return sheets["mi-fgsm"], sheets["adam"], "L_BNS 3" in values[f"heading/{run_id}/mi-fgsm"]

    add_iteration(run_id, "mi-fgsm", 1)
    assert steps_after("adam", 1) == (1, 1, False)
    assert steps_after("mi-fgsm", 2) == (1, 1, False)
    assert steps_after("adam", 2) == (2, 2, False)
    store.add_change(run_id, "mi-fgsm", 2, "epsilon", 0.2)
    assert steps_after("mi-fgsm", 3) == (3, 2, True)
    assert steps_after("adam", 3) == (3, 3, True)
    assert steps_after("mi-fgsm", 4) == (3, 3, True)


def test_training_is_redrawn_for_each_accuracy_and_updated_between(runs_folder, alone, monkeypatch):
    monkeypatch.setattr(pace, "chart_seconds", lambda: 1e-6)  # so that curves are drawn immediately
    store = session.store()
    run_id, other = (store.create(replace(LONG, bits=(4,)), name) for name in ("shown", "beside it"))
    store.set_state(run_id, RunState.RUNNING)
    store.set_stage(run_id, "training mi-fgsm W4A4", 100)

    def updates(query=f"?run={run_id}"):
        return collect(training.TRAINING, run_id, query)

    def record(step, loss):
        store.append(run_id, "training", "mi-fgsm W4A4", step, {"total": loss, "agreement": 10.0 * step})

    assert list(updates()["values"]) == [f"progress/{run_id}"]
    layouts = [updates()["layout"]]
    for change in (
        lambda: store.set_result(run_id, "accuracy/mi-fgsm/W4A4", {"calibrated": 85.0, "bits": 4}),
        lambda: record(1, 0.5),
        lambda: store.append(run_id, TEST, "mi-fgsm W4A4", 0, {"top1": 85.0, "standard_error": 0.5, "images": 100}, counted=False),
        lambda: store.set_result(run_id, "accuracy/mi-fgsm/W4A4", {"calibrated": 85.0, "quantized": 90.0, "bits": 4}),
        lambda: store.set_result(run_id, "layers/mi-fgsm/W4A4", {"layers": []}),
        lambda: store.set_state(run_id, RunState.PAUSED),
    ):
        change()
        layouts.append(updates()["layout"])
    assert len(set(layouts)) == len(layouts)
    store.set_state(run_id, RunState.RUNNING)

    before = updates()
    record(2, 0.25)
    store.append(run_id, TEST, "mi-fgsm W4A4", 2, {"top1": 88.0, "standard_error": 0.5, "images": 100}, counted=False)
    after = updates()
    assert before["layout"] == after["layout"]
    curve, tested = (json.loads(json.loads(after["values"][f"figure/{name}"])["figure"]) for name in ("training", "tested"))
    # bias-corrected average of two steps with weights 0.9 * 0.1 and 0.1
    assert curve["data"][0]["y"] == pytest.approx([0.5, (0.09 * 0.5 + 0.1 * 0.25) / 0.19], rel=1e-3)
    assert tested["data"][0]["y"] == [85.0, 88.0]
    assert "2 of 100 steps" in after["values"][f"progress/{run_id}"]
    agreement = json.loads(json.loads(updates(f"?run={run_id}&training=agreement")["values"]["figure/training"])["figure"])
    assert agreement["data"][0]["y"] == pytest.approx([10.0, (0.09 * 10 + 0.1 * 20) / 0.19], rel=1e-3)

    # another run matters only while it is shown
    beside, single = (f"?run={run_id}&with={other}", f"?run={run_id}")
    layouts = updates(beside)["layout"], updates(single)["layout"]
    store.set_result(other, "accuracy/adam/W4A4", {"calibrated": 80.0, "bits": 4})
    assert updates(beside)["layout"] != layouts[0]
    assert updates(single)["layout"] == layouts[1]


@pytest.mark.parametrize("view", [status.STATUS, diversity.DIVERSITY])
def test_view_without_charts_gets_its_progress(runs_folder, alone, view):
    store = session.store()
    run_id = store.create(LONG.with_knobs({"encoder": "embedded"}), "by hand")
    store.set_state(run_id, RunState.RUNNING)
    assert "Starting ..." in collect(view, run_id)["values"][f"progress/{run_id}"]
    store.set_stage(run_id, "diversity of adam", 10)
    before = collect(view, run_id)
    assert list(before["values"]) == [f"progress/{run_id}"]
    store.set_result(run_id, "diversity/adam", {"mean_similarity": 0.4})
    assert (collect(view, run_id)["layout"] != before["layout"]) == (view is diversity.DIVERSITY)
    store.set_state(run_id, RunState.COMPLETE)
    assert collect(view, run_id)["layout"] != before["layout"]
