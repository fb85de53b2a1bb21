"""Executors: one registered by a test computes the runs of a RunManager."""

import pytest
from background_runs import TINY, ended, is_in, wait_until

from core.errors import RunError, UnknownNameError
from core.runs.control import LocalControl
from core.runs.events import StoreReporter
from core.runs.execution import wait_for_turn
from core.runs.executors import EXECUTORS, ProcessExecutor, ThreadExecutor
from core.runs.manager import RunManager
from core.runs.state import RunState
from core.runs.store import RunStore


class CountingExecutor:
    """Computes nothing, but stores a record for each of `steps` pause points."""

    def __init__(self, store):
        self.store, self.steps, self.closed, self.error = store, 3, False, None

    def control(self, run_id):
        return LocalControl(past=self.store.changes(run_id))

    def compute(self, run_id, control):
        wait_for_turn(self.store, run_id, lambda: control.stopping, at_once=1)
        if control.stopping:
            self.store.set_state(run_id, RunState.STOPPED)
            return
        self.store.set_state(run_id, RunState.RUNNING)
        reporter = StoreReporter(self.store, run_id)
        reporter.stage("generation", self.steps)
        for step in range(1, self.steps + 1):
            control.pause_point()
            if self.error is not None:
                raise self.error
            reporter.record("generation", "adam", step, {"total": 1.0, **control.values("adam", step)})
        self.store.set_state(run_id, RunState.COMPLETE)

    def close(self):
        self.closed = True


@pytest.fixture
def counting(tmp_path, monkeypatch):
    """(manager, executor), the executor registered for the test."""
    made = []
    monkeypatch.setitem(EXECUTORS, "counting", lambda store: made.append(CountingExecutor(store)) or made[-1])
    manager = RunManager(RunStore(tmp_path), executor="counting")
    yield manager, made[0]
    manager.close()
    manager.store.close()


def test_registered_executor_computes_the_runs(counting):
    manager, executor = counting
    run_id = manager.start(TINY, "counted")
    run = ended(manager, run_id)
    assert (run.state, run.stage, run.step, run.total) == (RunState.COMPLETE, "generation", 3, 3)
    wait_until(lambda: not manager.controls(run_id))
    manager.close()
    assert executor.closed


def test_live_values_and_a_stop_reach_waiting_runs(counting):
    manager, executor = counting
    first = manager.store.create(TINY, "ahead")  # blocks the queue
    run_id = manager.start(TINY)
    manager.control(run_id).set("lr", 0.5, ["adam"])
    other = manager.start(TINY)
    manager.control(other).stop()
    assert ended(manager, other).state is RunState.STOPPED
    assert is_in(manager, run_id, RunState.QUEUED)()
    manager.store.set_state(first, RunState.STOPPED)
    assert ended(manager, run_id).state is RunState.COMPLETE
    assert [record.data["lr"] for record in manager.store.records(run_id, "generation")] == [0.5] * 3


def test_error_of_an_executor_fails_the_run_which_can_be_resumed(counting):
    manager, executor = counting
    executor.error = ValueError("the cluster is gone")
    run_id = manager.start(TINY)
    run = ended(manager, run_id)
    assert (run.state, run.error) == (RunState.FAILED, "ValueError: the cluster is gone")
    assert "Traceback" in run.traceback
    executor.error = None
    wait_until(lambda: not manager.controls(run_id))
    manager.resume(run_id)
    assert ended(manager, run_id).state is RunState.COMPLETE


def test_unknown_executor_is_refused(tmp_path):
    store = RunStore(tmp_path)
    with pytest.raises(UnknownNameError, match="unknown executor 'cluster': must be one of processes, threads, ray, ray://HOST:PORT"):
        RunManager(store, executor="cluster")
    store.close()


def test_built_in_executors():
    assert list(EXECUTORS) == ["processes", "threads", "ray"]
    assert (EXECUTORS["processes"], EXECUTORS["threads"]) == (ProcessExecutor, ThreadExecutor)


def test_closed_manager_starts_no_run(counting):
    manager, _ = counting
    manager.close()
    with pytest.raises(RunError, match="the server is closing"):
        manager.start(TINY)
    assert manager.store.runs() == []
