"""Lines of the list of runs."""

import time

import pytest

from core.config import RunConfig
from core.runs.events import SECONDS
from core.runs.state import RunState
from core.runs.store import RunStore
from dashboard.tables.run_list import minutes


@pytest.fixture
def store(tmp_path):
    store = RunStore(tmp_path)
    yield store
    store.close()


def test_minutes_of_a_run_whose_clock_was_put_back(store, monkeypatch):
    now = time.time()
    run_id = store.create(RunConfig(), "")
    assert minutes(store.run(run_id), {}) is None
    store.set_state(run_id, RunState.RUNNING)
    monkeypatch.setattr(time, "time", lambda: now - 518_396)
    assert minutes(store.run(run_id), {}) == 0.0  # of an earlier version, which did not store its seconds
    store.set_state(run_id, RunState.COMPLETE)
    assert minutes(store.run(run_id), {}) == 0.0
    assert minutes(store.run(run_id), {SECONDS: 90.0}) == 1.5
