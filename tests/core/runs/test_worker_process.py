"""Runs in worker processes: the same bits as in a thread, controls, and processes that die."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from background_runs import LONG, TINY, wait_until

from core.errors import ConfigError, RunError
from core.runs.manager import RunManager
from core.runs.state import RunState
from core.runs.store import RunStore
from core.runs.worker_process import ProcessControl, Worker, describe_exit

ROOT = Path(__file__).parents[3]


@pytest.fixture
def manager(tmp_path):
    manager = RunManager(RunStore(tmp_path / "runs"), executor="processes")
    yield manager
    manager.close()
    manager.store.close()


def records(manager, run_id) -> int:
    return len(manager.store.records(run_id, "generation"))


def state_of(manager, run_id) -> RunState:
    return manager.store.run(run_id).state


def images(manager, run_id) -> bytes:
    return (manager.store.run_folder(run_id) / "images" / "adam" / "images.safetensors").read_bytes()


def test_run_in_a_process_gives_the_same_bits_as_in_a_thread(manager, tmp_path):
    run_id = manager.start(TINY)
    threads = RunManager(RunStore(tmp_path / "threads"))
    other = threads.start(TINY)
    for one, its in ((manager, run_id), (threads, other)):
        one.wait(its, 60)
        assert state_of(one, its) is RunState.COMPLETE
    assert images(manager, run_id) == images(threads, other)
    threads.close()
    threads.store.close()


def test_controls_reach_the_process(manager):
    run_id = manager.start(LONG)
    control = manager.control(run_id)
    control.pause()  # before the worker has the run
    wait_until(lambda: state_of(manager, run_id) is RunState.PAUSED)
    other = manager.start(TINY)
    manager.wait(other, 60)
    assert state_of(manager, other) is RunState.COMPLETE  # while the first run is paused
    before = records(manager, run_id)
    control.step()
    wait_until(lambda: records(manager, run_id) == before + 2)  # one iteration of each method
    control.set("epsilon", 0.25, ["mi-fgsm"])
    with pytest.raises(ConfigError, match="epsilon"):
        control.set("epsilon", -1.0, ["mi-fgsm"])
    control.resume()
    wait_until(lambda: state_of(manager, run_id) is RunState.RUNNING and records(manager, run_id) > before + 10)
    assert [(c["method"], c["name"], c["value"]) for c in manager.store.changes(run_id)] == [("mi-fgsm", "epsilon", 0.25)]
    control.stop()
    manager.wait(run_id, 60)
    assert state_of(manager, run_id) is RunState.STOPPED
    assert not manager.controls(run_id)


@pytest.mark.slow
def test_killed_worker_affects_neither_server_nor_queue(manager):
    run_id = manager.start(LONG)
    other = manager.start(TINY)
    wait_until(lambda: records(manager, run_id) > 4)
    owner = owner_process(manager.store.folder)
    os.kill(owner, signal.SIGKILL)
    manager.wait(run_id, 30)
    run = manager.store.run(run_id)
    assert run.state is RunState.INTERRUPTED
    assert "killed" in run.error
    manager.wait(other, 60)
    assert state_of(manager, other) is RunState.COMPLETE
    manager.resume(run_id)
    wait_until(lambda: state_of(manager, run_id) is RunState.RUNNING)
    manager.control(run_id).stop()
    manager.wait(run_id, 60)


def owner_process(folder) -> int:
    """Process id of the store's worker; there is only one while one run is computed."""
    found = [
        int(path.name)
        for path in Path("/proc").iterdir()
        if path.name.isdecimal() and f"core.runs.worker_process\0{folder}\0" in read(path / "cmdline")
    ]
    assert len(found) == 1
    return found[0]


def read(path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def test_worker_ends_when_the_server_is_killed(tmp_path):
    folder = tmp_path / "runs"
    server = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from core.runs.manager import RunManager\n"
        "from core.runs.store import RunStore\n"
        "from tests_config import LONG\n"
        "RunManager(RunStore(Path(sys.argv[1])), executor='processes').start(LONG)\n"
        "time.sleep(600)\n"
    )
    (tmp_path / "tests_config.py").write_text(
        f"from core.config import RunConfig\nimport json\nLONG = RunConfig.from_dict(json.loads({json.dumps(LONG.to_dict())!r}))\n",
        encoding="utf-8",
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    process = subprocess.Popen([sys.executable, "-c", server, str(folder)], env=environment)
    store = RunStore(folder)
    wait_until(lambda: store.runs() and len(store.records(store.runs()[0].id, "generation")) > 2)
    computing = owner_process(folder)
    process.kill()
    process.wait()
    (run,) = store.runs()
    wait_until(lambda: run.id in store.mark_interrupted())
    wait_until(lambda: not read(Path(f"/proc/{computing}/cmdline")))
    store.close()


def test_worker_refuses_a_run_that_is_not_handed_over(tmp_path):
    store = RunStore(tmp_path)
    run_id = store.create(TINY, "mine")
    worker = Worker(tmp_path)
    assert worker.compute(run_id, "somebody else", ProcessControl()) is None
    assert store.run(run_id).state is RunState.QUEUED
    worker.close()
    assert not worker.is_alive()
    store.close()


def test_worker_does_not_create_a_folder_that_was_removed(tmp_path):
    """A server starts its worker at once; the folder may be gone before that has imported what it needs."""
    worker = Worker(tmp_path / "runs")
    assert worker.compute("a run", "somebody", ProcessControl()) == 1
    worker.close()
    assert list(tmp_path.iterdir()) == []


def test_adopting_requires_the_name_of_the_owner(tmp_path):
    first, second = RunStore(tmp_path), RunStore(tmp_path)
    run_id = first.create(TINY, "a run")
    with pytest.raises(RunError, match="hands it over"):
        second.adopt(run_id, "nobody")
    second.adopt(run_id, first.owner)
    first.close()
    assert second.mark_interrupted() == []  # it belongs to this store now
    second.close()


@pytest.mark.parametrize(("code", "words"), [(-9, "memory"), (-11, "signal 11"), (1, "code 1")])
def test_describe_exit(code, words):
    assert words in describe_exit(code)
    assert "resume" in describe_exit(code)
