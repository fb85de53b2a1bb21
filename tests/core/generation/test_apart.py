"""Batches that are computed apart, out of order, and by several workers: the same records, images and manifest as one after the other."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from core.config import GenerationConfig, MachineConfig, RunConfig
from core.data.image_sets import load_image_set
from core.errors import CoreError, RunStopped
from core.generation.apart import are_independent, compute, tasks
from core.generation.loop import GenerationLoop
from core.reporting import NoControl
from core.runs.control import LocalControl
from core.stages.context import Context
from core.stages.generation import generate
from tests.core.recorded_runs import Recorder

CONFIG = GenerationConfig(images=36, iterations=6, batch_size=4, snapshots=2, shard_size=7, max_shift=2, flip=True)
MACHINE = MachineConfig(seed=3)


class Workers:
    """Computes batches three at a time, the last of them first, each as if on a machine of its own."""

    def __init__(self, model):
        self.model, self.computed = model, []

    def results(self, method, config, waiting, idle):
        assert config == CONFIG
        while window := [task for _, task in zip(range(3), waiting)]:
            made = {}
            for task in reversed(window):
                idle()
                self.computed.append(task.index)
                made[task.index] = compute(task, self.model, CONFIG, method, MACHINE)
            yield from (made[task.index] for task in window)


class Changes(Recorder, NoControl):
    """Records changes as well; beta changes in the middle of a batch, and at the beginning of one."""

    def __init__(self):
        super().__init__()
        self.changes = []

    def change(self, method, step, name, value):
        self.changes.append((method, step, name, value))

    def values(self, method, step):
        return {"beta": 3.0} if step >= 18 else {"beta": 2.0} if step >= 8 else {}


class Saved:
    """Resume states in memory. stop_after: how many are saved before the run is stopped."""

    def __init__(self, stop_after=0):
        self.left, self.kept, self.every = stop_after, None, 0

    def due(self):
        return True

    def state(self, stage):
        return self.kept

    def save(self, stage, state):
        self.kept = {method: dict(values) for method, values in state.items()}
        self.left -= 1
        if not self.left:
            raise RunStopped("enough")


def run(model, folder, methods=("mi-fgsm",), batches=None, checkpoints=None):
    """The loops of a generation in shards, what it announced, and its tar files."""
    (folder / "set").mkdir(parents=True, exist_ok=True)
    recorder = Changes()
    config = RunConfig(methods=methods, generation=CONFIG, machine=MACHINE, bits=())
    loops = generate(model, config, Context(recorder, recorder, checkpoints, batches), folder / "kept", folder / "set")
    for loop in loops:
        loop.save(folder / "set" / loop.method)
    return loops, recorder, {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.tar"))}


def without_seconds(records):
    return [(*one[:3], {name: value for name, value in one[3].items() if name != "seconds"}) for one in records]


def figures(loop):
    return {name: value for name, value in loop.summary().items() if name != "seconds"}


@pytest.mark.parametrize("method", ["mi-fgsm", "adam", "zeroq"])
def test_the_same_shards_records_and_figures(small, tmp_path, method):
    (loop,), recorder, expected = run(small, tmp_path / "here", (method,))
    workers = Workers(small)
    (other,), heard, found = run(small, tmp_path / "there", (method,), workers)
    assert workers.computed == [2, 1, 0, 4, 3]
    assert len(expected) == 6
    assert found == expected
    assert without_seconds(heard.records) == without_seconds(recorder.records)
    assert heard.changes == recorder.changes == [(method, 8, "beta", 2.0), (method, 18, "beta", 3.0)]
    assert figures(other) == figures(loop)
    kept = [[(frame.step, frame.labels.tolist()) for _, frame, keep in one.pictures if keep] for one in (heard, recorder)]
    assert kept[0] == kept[1]
    ours, theirs = (load_image_set(tmp_path / name / "set" / method).manifest for name in ("there", "here"))
    for manifest in (ours, theirs):
        assert manifest["summary"].pop("seconds") > 0
    assert ours == theirs
    seconds = [values["seconds"] for *_, values in heard.records]
    assert seconds == sorted(seconds)


@pytest.mark.parametrize("states", [1, 2, 5, 9])
@pytest.mark.parametrize("order", ["here, then there", "there, then here", "there, then there"])
def test_a_run_that_was_stopped_ends_with_the_same_shards(small, tmp_path, states, order):
    """Also in the middle of a batch, the rest of which is computed here."""
    _, recorder, expected = run(small, tmp_path / "whole")
    first, second = (Workers(small) if where == "there" else None for where in order.split(", then "))
    saved = Saved(states)
    with pytest.raises(RunStopped):
        run(small, tmp_path / "parts", batches=first, checkpoints=saved)
    (loop,), heard, found = run(small, tmp_path / "parts", batches=second, checkpoints=saved)
    assert found == expected
    done = len(recorder.records) - len(heard.records)
    assert without_seconds(heard.records) == without_seconds(recorder.records[done:])
    assert [(change["step"], change["value"]) for change in loop.changes] == [(8, 2.0), (18, 3.0)]


def test_methods_whose_batches_depend_on_each_other_are_computed_here(small, tmp_path):
    workers = Workers(small)
    loops, heard, found = run(small, tmp_path, ("intraq", "mi-fgsm", "noise"), workers)
    assert sorted(workers.computed) == [0, 1, 2, 3, 4]  # of one method
    assert all(loop.finished for loop in loops)
    assert {name.split("/")[1] for name in found} == {"intraq", "mi-fgsm", "noise"}
    assert [are_independent(loop) for loop in loops] == [False, True, False]
    warned = sorted(name for name in heard.results if name.startswith("warning/workers"))
    assert warned == ["warning/workers/intraq", "warning/workers/noise"]


def test_a_live_change_applies_to_batches_that_are_not_begun(small):
    control = LocalControl()
    loop = GenerationLoop(small, CONFIG, "mi-fgsm", MACHINE, control=control)
    waiting = tasks(loop)
    first = next(waiting)
    control.set("beta", 4.0, ["mi-fgsm"])
    second = next(waiting)
    assert (first.index, first.changes) == (0, [])
    assert (second.index, second.changes) == (1, [{"step": 6, "name": "beta", "value": 4.0}])
    assert second.values["beta"] == CONFIG.beta
    third = next(waiting)
    assert (third.values["beta"], third.changes) == (4.0, [])
    for task in (first, second):
        loop.take(compute(task, small, CONFIG, "mi-fgsm", MACHINE))
    assert loop.changes == [{"step": 6, "name": "beta", "value": 4.0}]
    assert loop.values["beta"] == 4.0


def test_workers_with_other_kernels_are_refused(small):
    loop = GenerationLoop(small, CONFIG, "mi-fgsm", MACHINE)
    first, second = (compute(task, small, CONFIG, "mi-fgsm", MACHINE) for _, task in zip(range(2), tasks(loop)))
    loop.take(first)
    with pytest.raises(CoreError, match="all workers must compute with the same kernels, .*, got other"):
        loop.take(replace(second, kernels="other"))


def test_a_batch_has_arrays_and_plain_values_that_need_no_torch(small):
    loop = GenerationLoop(small, CONFIG, "mi-fgsm", MACHINE)
    batch = compute(next(tasks(loop)), small, CONFIG, "mi-fgsm", MACHINE)
    assert not any(isinstance(value, torch.Tensor) for value in vars(batch).values())
    assert [(pixels.dtype, pixels.shape, labels.dtype) for pixels, labels in batch.saved] == [(np.uint8, (4, 3, 8, 8), np.int64)] * 2
