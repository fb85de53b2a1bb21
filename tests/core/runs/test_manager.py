"""Runs in the background, with the embedded network and few images and iterations."""

import json
import time
from dataclasses import replace

import pytest
from background_runs import TINY, ended, is_in, paused, running, steps, wait_until

import core.pipeline
from core.errors import ConfigError, RunError
from core.runs.manager import RunManager
from core.runs.state import RunState
from core.runs.store import RunStore


def test_run_to_its_end(manager):
    began = time.perf_counter()
    run_id = manager.start(TINY, "tiny")
    assert time.perf_counter() - began < 1  # starting does not wait
    run = ended(manager, run_id)
    assert (run.state, run.name, run.error, run.traceback) == (RunState.COMPLETE, "tiny", "", "")
    assert run.created <= run.started <= run.ended
    assert (run.stage, run.step, run.total) == ("generation", 12, 12)  # 2 methods x 2 batches x 3 iterations
    assert steps(manager, run_id) == {"mi-fgsm": [1, 2, 3, 4, 5, 6], "adam": [1, 2, 3, 4, 5, 6]}
    found = {name for name in manager.store.results(run_id) if not name.startswith("warning/")}
    assert found == {"layers", "methods", "terms", "generation/mi-fgsm", "generation/adam", "seconds"}
    folder = manager.store.run_folder(run_id)
    for method in ("mi-fgsm", "adam"):
        assert (folder / "images" / method / "manifest.json").is_file()
        frame = manager.store.frames.read(run_id, method)
        assert (frame.step, frame.images.shape, frame.labels.tolist()) == (6, (4, 3, 32, 32), [4, 5, 6, 7])
        assert frame.means.shape == (sum(manager.store.frames.running_statistics(run_id).channels),)
    assert json.loads((folder / "result.json").read_text(encoding="utf-8"))["methods"].keys() == {"mi-fgsm", "adam"}
    wait_until(lambda: not manager.controls(run_id))


def test_default_name(manager):
    run_id = manager.start(replace(TINY, bits=(4,), methods=("adam",), images_from="/none"))
    assert manager.store.run(run_id).name == "resnet20_cifar10, given images, W4A4"
    other = manager.start(TINY)
    assert manager.store.run(other).name == "resnet20_cifar10, mi-fgsm + adam"


def test_paused_run_makes_no_progress_until_it_is_resumed(manager):
    run_id = paused(manager)
    before = steps(manager, run_id)
    time.sleep(0.3)
    assert steps(manager, run_id) == before
    assert is_in(manager, run_id, RunState.PAUSED)()
    assert manager.pauses(run_id)
    assert not manager.pauses("another")
    manager.control(run_id).resume()
    assert not manager.pauses(run_id)
    wait_until(lambda: len(steps(manager, run_id)["adam"]) > len(before["adam"]) + 2)
    assert is_in(manager, run_id, RunState.RUNNING)()


def test_step_is_one_iteration_of_every_method(manager):
    run_id = paused(manager)
    at = len(steps(manager, run_id)["adam"])
    assert len(steps(manager, run_id)["mi-fgsm"]) == at
    for count in (1, 2, 3):
        manager.control(run_id).step()
        wait_until(lambda count=count: len(steps(manager, run_id)["adam"]) >= at + count and is_in(manager, run_id, RunState.PAUSED)())
        time.sleep(0.1)
        assert {method: len(done) for method, done in steps(manager, run_id).items()} == {"mi-fgsm": at + count, "adam": at + count}


def test_stop_takes_at_most_one_iteration(manager):
    run_id = running(manager)
    control = manager.control(run_id)
    before = len(steps(manager, run_id)["adam"])
    control.stop()
    after_stop = len(steps(manager, run_id)["adam"])
    run = ended(manager, run_id)
    assert run.state is RunState.STOPPED
    assert run.error == ""
    done = steps(manager, run_id)
    assert len(done["adam"]) == len(done["mi-fgsm"])
    assert before <= len(done["adam"]) <= after_stop + 1


def test_stop_while_paused(manager):
    run_id = paused(manager)
    before = steps(manager, run_id)
    manager.control(run_id).stop()
    assert ended(manager, run_id).state is RunState.STOPPED
    assert steps(manager, run_id) == before


def test_other_runs_wait_their_turn(manager):
    first = running(manager)
    second, third = manager.start(TINY), manager.start(TINY)
    time.sleep(0.5)
    assert [manager.store.run(run_id).state for run_id in (second, third)] == [RunState.QUEUED] * 2
    assert [manager.waiting(run_id) for run_id in (first, second, third)] == [0, 1, 2]
    assert all(manager.controls(run_id) for run_id in (first, second, third))
    manager.control(third).stop()  # before it starts
    manager.control(first).stop()
    assert ended(manager, second).state is RunState.COMPLETE
    run = ended(manager, third)
    assert run.state is RunState.STOPPED
    assert run.started is None
    assert steps(manager, third) == {"mi-fgsm": [], "adam": []}
    assert manager.store.run(first).ended <= manager.store.run(second).started


def test_failing_run_stores_its_error_and_the_next_starts(manager):
    bad = manager.start(replace(TINY, images_from="/nowhere/at/all"))
    good = manager.start(TINY)
    run = ended(manager, bad)
    assert run.state is RunState.FAILED
    assert "/nowhere/at/all" in run.error
    assert "\n" not in run.error
    assert "Traceback" in run.traceback
    assert ended(manager, good).state is RunState.COMPLETE


@pytest.mark.parametrize("error", [ZeroDivisionError("division by zero"), MemoryError("too large")])
def test_unexpected_error_fails_the_run_and_not_the_worker(manager, monkeypatch, error):
    execute = core.pipeline.execute

    def breaks(config, *rest):
        if config.images_from:
            raise error
        return execute(config, *rest)

    monkeypatch.setattr(core.pipeline, "execute", breaks)
    run = ended(manager, manager.start(replace(TINY, images_from="/x")))
    assert run.state is RunState.FAILED
    assert run.error == f"{type(error).__name__}: {error}"
    assert "Traceback" in run.traceback
    assert type(error).__name__ in run.traceback
    assert ended(manager, manager.start(TINY)).state is RunState.COMPLETE


def test_live_change_takes_effect_and_is_recorded_with_its_iteration(manager):
    run_id = paused(manager)
    at = len(steps(manager, run_id)["adam"])
    control = manager.control(run_id)
    control.set("epsilon", 0.0, ["mi-fgsm"])
    control.set("lr", 0.0, ["adam"])
    control.step()
    wait_until(lambda: len(steps(manager, run_id)["adam"]) == at + 1 and is_in(manager, run_id, RunState.PAUSED)())
    assert manager.store.changes(run_id) == [
        {"method": "mi-fgsm", "step": at, "name": "epsilon", "value": 0.0},
        {"method": "adam", "step": at, "name": "lr", "value": 0.0},
    ]
    # with a step size of 0, neither the images nor their l2 norms change
    for count in (2, 3):
        control.step()
        wait_until(lambda count=count: len(steps(manager, run_id)["adam"]) == at + count)
    wait_until(is_in(manager, run_id, RunState.PAUSED))
    for method in ("mi-fgsm", "adam"):
        norms = [record.data["l2"] for record in manager.store.records(run_id, "generation") if record.series == method]
        assert norms[at + 1] == pytest.approx(norms[at + 2], rel=1e-5)
        assert norms[0] != pytest.approx(norms[at], rel=1e-5)
    assert len(manager.store.changes(run_id)) == 2
    with pytest.raises(ConfigError, match="^epsilon must be 0 to 2, got 5"):
        control.set("epsilon", 5, ["mi-fgsm"])


def test_control_of_a_finished_run_is_refused(manager):
    run_id = manager.start(TINY)
    ended(manager, run_id)
    wait_until(lambda: not manager.controls(run_id))
    with pytest.raises(RunError, match=f"run '{run_id}' must be queued or running on this server, but is complete"):
        manager.control(run_id)


def test_control_of_an_unknown_run_is_refused(manager):
    assert not manager.controls("nobody")
    assert manager.waiting("nobody") == 0
    with pytest.raises(RunError, match="run 'nobody' does not exist"):
        manager.control("nobody")


def test_close_stops_all_runs_and_a_new_manager_lists_them(tmp_path):
    first = RunManager(RunStore(tmp_path))
    done = first.start(TINY, "done")
    assert ended(first, done).state is RunState.COMPLETE
    going, waiting = running(first), first.start(TINY)
    first.close()
    states = {run_id: first.store.run(run_id).state for run_id in (done, going, waiting)}
    assert states == {done: RunState.COMPLETE, going: RunState.STOPPED, waiting: RunState.STOPPED}
    records = first.store.records(done, "generation")
    first.store.close()
    second = RunManager(RunStore(tmp_path))
    assert {run.id: run.state for run in second.store.runs()} == states
    assert second.store.records(done, "generation") == records
    assert second.store.run(done).name == "done"
    assert not second.controls(going)
    assert ended(second, second.start(TINY)).state is RunState.COMPLETE
    second.close()
    second.store.close()


def test_manager_marks_runs_of_a_dead_process(tmp_path):
    dead = RunStore(tmp_path)
    left = dead.create(TINY, "left behind")
    dead.set_state(left, RunState.RUNNING)
    dead.close()
    manager = RunManager(RunStore(tmp_path))
    assert manager.store.run(left).state is RunState.INTERRUPTED
    manager.close()
    manager.store.close()


def test_no_run_starts_after_close(tmp_path):
    manager = RunManager(RunStore(tmp_path))
    manager.close()
    with pytest.raises(RunError, match="'late' cannot start because the server is closing"):
        manager.start(TINY, "late")
    assert manager.store.runs() == []
    manager.store.close()


def test_final_state_is_stored_as_soon_as_possible(manager, monkeypatch):
    monkeypatch.setattr("core.runs.execution.SECONDS_BETWEEN_TRIES", 0.01)
    tries = []
    set_state = manager.store.set_state

    def breaks(run_id, state, *rest):
        if run_id == bad and state is not RunState.RUNNING and len(tries) < 5:
            tries.append(state)
            raise OSError("the disk is gone")
        set_state(run_id, state, *rest)

    first = running(manager)
    bad = manager.start(replace(TINY, images_from="/nowhere"))
    monkeypatch.setattr(manager.store, "set_state", breaks)
    good = manager.start(TINY)
    manager.control(first).stop()
    assert ended(manager, good).state is RunState.COMPLETE
    run = manager.store.run(bad)
    assert (run.state, run.error) == (RunState.FAILED, "OSError: the disk is gone")
    assert tries == [RunState.FAILED] * 5
    assert not manager.controls(bad)
