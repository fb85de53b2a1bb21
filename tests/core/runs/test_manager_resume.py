"""Resuming runs, with the same bits as without an interruption."""

import threading
from dataclasses import replace

import pytest
import torch
from background_runs import TINY, ended, running, wait_until
from safetensors.torch import load_file

import core.pipeline
from core.config import EvaluationConfig, GenerationConfig, MachineConfig, RunConfig, TrainingConfig
from core.data.labeled import EvaluationSet
from core.errors import RunError
from core.pipeline import Prepared
from core.runs.control import LocalControl
from core.runs.events import StoreReporter
from core.runs.execution import perform
from core.runs.state import RunState


def test_run_resumed_at_once_has_a_new_control(manager, monkeypatch):
    """The thread of the previous attempt may still be cleaning up."""
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
def test_queued_and_complete_runs_cannot_be_resumed(manager, state):
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
    """Actions at known steps, {(stage, series, step): function of the control}, each once."""

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
    # not in the resume state, which is removed just after the run is complete
    paths = [path for kind in ("images", "quantized") for path in sorted(folder.glob(f"{kind}/**/*.safetensors"))]
    return {str(path.relative_to(folder)): load_file(path) for path in paths}


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("method", ["lsq", "minmax"])
def test_resumed_run_ends_with_the_same_bits(manager, monkeypatch, small, method, optimizer):
    """Stopped during generation, after a live change, and during the training of both methods; resumed each time."""
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
    # the generation and the training of each method
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
