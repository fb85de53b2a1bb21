"""Several runs: one queue for all processes."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from background_runs import LONG, TINY, ended, is_in, paused, running, steps, wait_until

from core.errors import ConfigError
from core.runs.manager import RunManager
from core.runs.state import RunState
from core.runs.store import RunStore

ROOT = Path(__file__).parents[3]


def process(folder, code) -> subprocess.Popen:
    """Another process with a running run. It prints the id of the run, executes `code` and exits."""
    source = f"""
import sys
from pathlib import Path
from core.config import RunConfig
from core.runs.state import RunState
from core.runs.store import RunStore
store = RunStore(Path({str(folder)!r}))
run_id = store.create(RunConfig(), "of another process")
store.set_state(run_id, RunState.RUNNING)
print(run_id, flush=True)
{code}
"""
    return subprocess.Popen([sys.executable, "-c", source], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")


def test_paused_run_lets_the_next_run_start_and_queues_again(manager):
    first = paused(manager)
    second = manager.start(LONG)
    wait_until(lambda: len(manager.store.records(second, "generation")) >= 4)
    at = steps(manager, first)
    manager.control(first).resume()
    wait_until(is_in(manager, first, RunState.QUEUED))
    assert manager.waiting(first) == 1
    time.sleep(0.4)
    assert steps(manager, first) == at
    assert is_in(manager, second, RunState.RUNNING)()
    manager.control(second).stop()
    wait_until(lambda: len(steps(manager, first)["adam"]) > len(at["adam"]) + 2)
    assert is_in(manager, first, RunState.RUNNING)()


def test_stopping_a_run_does_not_affect_others(manager):
    going, waiting, last = running(manager), manager.start(TINY), manager.start(TINY)
    manager.control(waiting).stop()
    assert ended(manager, waiting).state is RunState.STOPPED
    at = len(steps(manager, going)["adam"])
    wait_until(lambda: len(steps(manager, going)["adam"]) > at + 2)
    assert is_in(manager, going, RunState.RUNNING)()
    assert is_in(manager, last, RunState.QUEUED)()
    assert [manager.waiting(run_id) for run_id in (going, last)] == [0, 1]
    manager.control(going).stop()
    assert ended(manager, last).state is RunState.COMPLETE


@pytest.mark.slow
def test_two_runs_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("RUNS_AT_ONCE", "2")
    # in processes, as in the server, because torch.fx cannot trace two networks at the same time in one process
    manager = RunManager(RunStore(tmp_path), executor="processes")
    first, second, third = running(manager), running(manager), manager.start(LONG)
    at = [len(steps(manager, run_id)["adam"]) for run_id in (first, second)]
    for run_id, before in zip((first, second), at):
        wait_until(lambda run_id=run_id, before=before: len(steps(manager, run_id)["adam"]) > before + 2)
    assert is_in(manager, third, RunState.QUEUED)()
    manager.control(first).stop()
    wait_until(is_in(manager, third, RunState.RUNNING))
    assert is_in(manager, second, RunState.RUNNING)()
    manager.close()
    manager.store.close()


def test_bad_runs_at_once_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("RUNS_AT_ONCE", "many")
    store = RunStore(tmp_path)
    with pytest.raises(ConfigError, match="^RUNS_AT_ONCE must be a whole number, 1 to 1024, got 'many'"):
        RunManager(store)
    store.close()


def test_one_queue_for_all_processes(manager, monkeypatch):
    """A run of this process waits while another process has one, and starts when that process is killed."""
    monkeypatch.setattr("core.runs.execution._SECONDS_BETWEEN_CENSUSES", 0.2)
    other = process(manager.store.folder, "sys.stdin.read()")
    try:
        theirs = other.stdout.readline().strip()
        mine = manager.start(TINY)
        time.sleep(0.7)
        assert is_in(manager, mine, RunState.QUEUED)()
        assert manager.store.ahead(mine) == [theirs]
        assert not manager.controls(theirs)
        other.kill()
        assert ended(manager, mine).state is RunState.COMPLETE
        assert manager.store.run(theirs).state is RunState.INTERRUPTED
    finally:
        other.kill()
        other.communicate(timeout=10)
