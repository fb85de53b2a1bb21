"""The list of active runs on every page: order, words, progress, and which runs a page learns the end of."""

import json
from dataclasses import replace

import pytest
from app_pages import ROOT, SHORT, component
from streamlit.testing.v1 import AppTest

from core.runs.state import RunState
from dashboard import session
from dashboard.views import activity


@pytest.fixture
def ids(runs_folder):
    """A running run, a waiting one and a complete one."""
    store = session.store()
    config = SHORT.with_knobs({"steps": 10})
    running, waiting, ended = (store.create(config, name) for name in ("running", "waiting", "ended"))
    store.set_state(running, RunState.RUNNING)
    store.set_stage(running, "generation", 6)
    store.append(running, "generation", "mi-fgsm", 1, {"total": 1.0})
    store.append(running, "generation", "mi-fgsm", 2, {"total": 1.0})
    store.append(running, "generation", "mi-fgsm", 3, {"total": 1.0})
    store.set_state(ended, RunState.COMPLETE)
    return running, waiting, ended


def test_runs_that_are_computed_come_first(ids):
    running, waiting, _ = ids
    first, second = activity.collect("")["runs"]
    assert (first["id"], first["percent"], first["short"], first["stoppable"]) == (running, 50, "images", False)
    assert first["words"].startswith("generating images")
    assert (second["id"], second["words"], second["percent"]) == (waiting, "waiting", None)
    assert second["href"].endswith(f"run={waiting}")


def test_the_page_learns_the_end_of_runs_that_it_has_seen(ids):
    running, _, ended = ids
    assert activity.collect("")["ended"] == []
    answer = activity.answer(f"?{running},{ended},unknown")
    assert json.loads(answer["values"]["activity"])["ended"] == [{"id": ended, "name": "ended", "state": "complete"}]
    assert answer["again"] == activity.collect("")["again"]


def test_width_and_time_left_of_a_training(runs_folder):
    store = session.store()
    run_id = store.create(replace(SHORT, bits=(4,)), "trains")
    store.set_state(run_id, RunState.RUNNING)
    store.set_stage(run_id, "training mi-fgsm W4A4", 150)
    store.set_result(run_id, "plan", {"costs": {"image_iteration": 1e-3}})
    (run,) = activity.collect("")["runs"]
    assert run["short"] == "W4"
    assert run["words"].startswith("training MI-FGSM W4A4, ")
    assert run["words"].endswith(" left")


def test_list_is_on_every_page(ids, monkeypatch):
    app = AppTest.from_file(str(ROOT / "streamlit_app.py"), default_timeout=60).run()
    assert not app.exception, app.exception
    (data,) = component(app, "activity")
    assert [run["name"] for run in data["values"]["runs"]] == ["running", "waiting"]
