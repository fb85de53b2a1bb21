"""Runs in the background, with the embedded network and tiny settings."""

import json
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import core.pipeline
from core.config import EvaluationConfig, GenerationConfig, MachineConfig, RunConfig, TrainingConfig
from core.data.labelled import EvaluationSet
from core.errors import ConfigError, RunError
from core.pipeline import Prepared
from core.runs.control import LocalControl
from core.runs.events import StoreReporter
from core.runs.execution import perform
from core.runs.manager import RunManager
from core.runs.state import RunState
from core.runs.store import RunStore

ROOT = Path(__file__).parents[3]
TINY = RunConfig(
    machine=MachineConfig(device="cpu", threads=1),
    generation=GenerationConfig(images=8, iterations=3, snapshots=1, batch_size=4),
    bits=(),
    evaluation=EvaluationConfig(encoder=""),
)
# far more iterations than any test waits for
LONG = replace(TINY, generation=replace(TINY.generation, images=4, iterations=100_000))


def wait_until(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.005)


@pytest.fixture
def manager(tmp_path):
    manager = RunManager(RunStore(tmp_path / "runs"))
    yield manager
    manager.close()
    manager.store.close()


def is_in(manager, run_id, state):
    return lambda: manager.store.run(run_id).state is state


def steps(manager, run_id) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {"mi-fgsm": [], "adam": []}
    for record in manager.store.records(run_id, "generation"):
        found[record.series].append(record.step)
    return found


def ended(manager, run_id):
    wait_until(lambda: manager.store.run(run_id).state.is_finished())
    return manager.store.run(run_id)


def running(manager, config=LONG, records=4) -> str:
    run_id = manager.start(config)
    wait_until(lambda: len(manager.store.records(run_id, "generation")) >= records)
    return run_id


def paused(manager, config=LONG) -> str:
    run_id = running(manager, config)
    manager.control(run_id).pause()
    wait_until(is_in(manager, run_id, RunState.PAUSED))
    return run_id


def test_run_to_its_end(manager):
    began = time.perf_counter()
    run_id = manager.start(TINY, "tiny")
    assert time.perf_counter() - began < 1  # whoever starts does not wait
    run = ended(manager, run_id)
    assert (run.state, run.name, run.error, run.traceback) == (RunState.COMPLETE, "tiny", "", "")
    assert run.created <= run.started <= run.ended
    assert (run.stage, run.step, run.total) == ("generation", 12, 12)  # 2 methods x 2 batches x 3 iterations
    assert steps(manager, run_id) == {"mi-fgsm": [1, 2, 3, 4, 5, 6], "adam": [1, 2, 3, 4, 5, 6]}
    assert set(manager.store.results(run_id)) == {"layers", "generation/mi-fgsm", "generation/adam"}
    folder = manager.store.run_folder(run_id)
    for method in ("mi-fgsm", "adam"):
        assert (folder / "images" / method / "manifest.json").is_file()
        frame = manager.store.frames.read(run_id, method)
        assert (frame.step, frame.images.shape, frame.labels.tolist()) == (6, (4, 3, 32, 32), [4, 5, 6, 7])
        assert frame.means.shape == (sum(manager.store.frames.running_statistics(run_id).channels),)
    assert json.loads((folder / "result.json").read_text())["methods"].keys() == {"mi-fgsm", "adam"}
    wait_until(lambda: not manager.controls(run_id))


def test_name_by_default_says_what_it_is(manager):
    run_id = manager.start(replace(TINY, bits=(4,), methods=("adam",), images_from="/none"))
    assert manager.store.run(run_id).name == "resnet20_cifar10, given images, W4A4"
    other = manager.start(TINY)
    assert manager.store.run(other).name == "resnet20_cifar10, mi-fgsm + adam"


def test_pause_really_rests_and_resume_goes_on(manager):
    run_id = paused(manager)
    before = steps(manager, run_id)
    time.sleep(0.3)
    assert steps(manager, run_id) == before
    assert is_in(manager, run_id, RunState.PAUSED)()
    manager.control(run_id).resume()
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


def test_stop_within_one_iteration(manager):
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
    manager.control(third).stop()  # before it has begun
    manager.control(first).stop()
    assert ended(manager, second).state is RunState.COMPLETE
    run = ended(manager, third)
    assert run.state is RunState.STOPPED
    assert run.started is None
    assert steps(manager, third) == {"mi-fgsm": [], "adam": []}
    assert manager.store.run(first).ended <= manager.store.run(second).started


def test_failing_run_says_why_and_the_next_goes_on(manager):
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
    # with steps of size 0 the images stay as they are, and so do their l2 norms
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


def test_control_of_a_run_that_is_over(manager):
    run_id = manager.start(TINY)
    ended(manager, run_id)
    wait_until(lambda: not manager.controls(run_id))
    with pytest.raises(RunError, match=f"run '{run_id}' must be queued or running on this server, but is complete"):
        manager.control(run_id)


def test_control_of_an_unknown_run(manager):
    assert not manager.controls("nobody")
    assert manager.waiting("nobody") == 0
    with pytest.raises(RunError, match="run 'nobody' does not exist"):
        manager.control("nobody")


def test_close_stops_everything_and_a_new_manager_sees_it(tmp_path):
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


def test_manager_marks_what_a_dead_one_left(tmp_path):
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


def test_end_of_a_run_is_written_as_soon_as_it_can_be(manager, monkeypatch):
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


# several at once


def process(folder, code) -> subprocess.Popen:
    """Another process with a run that is going on; it prints the id, does `code` and ends."""
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
    return subprocess.Popen([sys.executable, "-c", source], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_paused_run_lets_the_next_go_first_and_waits_again(manager):
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


def test_stopping_one_leaves_the_others_alone(manager):
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
def test_two_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("RUNS_AT_ONCE", "2")
    # in processes, as in the server: torch.fx, which traces the network of one, would trip up another in the same process
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


def test_bad_number_at_once_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("RUNS_AT_ONCE", "many")
    store = RunStore(tmp_path)
    with pytest.raises(ConfigError, match="^RUNS_AT_ONCE must be a whole number, 1 to 1024, got 'many'"):
        RunManager(store)
    store.close()


def test_line_goes_through_all_processes(manager, monkeypatch):
    """A run of this process waits while one of another computes, and begins when that process is killed."""
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


# going on


def test_run_that_was_resumed_at_once_is_in_hand(manager, monkeypatch):
    """The thread of the attempt before may still be putting its things away."""
    free, attempts = threading.Event(), []

    def lingers(*arguments):
        attempts.append(arguments)
        first = len(attempts) == 1
        try:
            return perform(*arguments)
        finally:
            if first:
                free.wait(10)

    monkeypatch.setattr("core.runs.executors.perform", lingers)
    run_id = running(manager)
    before = manager._threads[run_id]
    manager.control(run_id).stop()
    assert ended(manager, run_id).state is RunState.STOPPED
    manager.resume(run_id)
    free.set()
    before.join(10)
    assert manager.controls(run_id)
    manager.control(run_id).stop()
    assert ended(manager, run_id).state is RunState.STOPPED
    wait_until(lambda: not manager.controls(run_id))


@pytest.mark.parametrize("state", [RunState.QUEUED, RunState.COMPLETE])
def test_only_what_can_be_resumed_is(manager, state):
    run_id = manager.start(TINY) if state is RunState.COMPLETE else None
    if run_id is None:
        running(manager)
        run_id = manager.start(TINY)
    else:
        ended(manager, run_id)
    with pytest.raises(RunError, match=f"must be stopped, failed or interrupted to be resumed, but is {state}"):
        manager.resume(run_id)
    assert manager.store.run(run_id).attempt == 1


def small_run(method, optimizer) -> RunConfig:
    generation = GenerationConfig(images=16, iterations=4, snapshots=2, batch_size=4)
    training = TrainingConfig(range=method, training_optimizer=optimizer, steps=6, training_batch_size=6, calibration_images=8)
    training = replace(training, crop_padding=1, training_lr=1e-3)
    machine = MachineConfig(seed=3, device="cpu", threads=1)
    return RunConfig(machine=machine, generation=generation, training=training, bits=(4,), evaluation=EvaluationConfig(encoder=""))


class Script:
    """What a person does at known steps: {(stage, method, step): action of the control}. Each once."""

    def __init__(self, manager, monkeypatch):
        self.manager, self.actions = manager, {}
        record = StoreReporter.record

        def then_act(reporter, stage, method, step, values):
            record(reporter, stage, method, step, values)
            action = self.actions.pop((stage, method, step), None)
            if action:
                action(self.manager.control(reporter._run_id))

        monkeypatch.setattr(StoreReporter, "record", then_act)


def tensors(manager, run_id):
    folder = manager.store.run_folder(run_id)
    return {str(path.relative_to(folder)): load_file(path) for path in sorted(folder.rglob("*.safetensors"))}


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("method", ["lsq", "minmax"])
def test_resumed_run_ends_with_the_same_bits(manager, monkeypatch, small, method, optimizer):
    """Stopped in the generation, after a live change, and in the training of either method, and each time resumed."""
    images = torch.randint(0, 256, (8, 3, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    evaluation_set = EvaluationSet(images, [0, 1, 2, 3] * 2, "8 images", 8)
    monkeypatch.setattr(core.pipeline, "prepare", lambda config, reporter: Prepared(config, small, {}, evaluation_set, None))
    script = Script(manager, monkeypatch)

    def turn(control):
        control.set("epsilon", 0.05, ["mi-fgsm"])
        control.set("lr", 0.02, ["adam"])

    def run(stops) -> str:
        script.actions = {("generation", "mi-fgsm", 2): turn, **dict.fromkeys(stops, LocalControl.stop)}
        run_id = manager.start(small_run(method, optimizer))
        for _ in stops:
            assert ended(manager, run_id).state is RunState.STOPPED
            manager.resume(run_id)
        assert ended(manager, run_id).state is RunState.COMPLETE
        assert script.actions == {}
        return run_id

    whole = run([])
    # in the second batch, the first and the second method of a step, and the training of both
    stops = [("generation", "mi-fgsm", 3), ("generation", "adam", 6), ("training", "mi-fgsm W4A4", 4), ("training", "adam W4A4", 1)]
    parts = run(stops)
    wanted, found = tensors(manager, whole), tensors(manager, parts)
    assert len(wanted) == 4
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        assert values.keys() == found[name].keys()
        assert all(torch.equal(value, found[name][key]) for key, value in values.items()), name
    for stage in ("generation", "training", "test"):
        one, other = (
            [(record.series, record.step, {**record.data, "seconds": 0}) for record in manager.store.records(run_id, stage)]
            for run_id in (whole, parts)
        )
        assert one == other
    assert manager.store.changes(whole) == manager.store.changes(parts)
    assert [change["name"] for change in manager.store.changes(whole)] == ["lr", "epsilon"]
    assert manager.store.run(parts).attempt == 5
