"""Branches have the bits of their run as long as their values are the same, for every method and after an interruption."""

from dataclasses import replace

import numpy as np
import pytest

from core.checkpoints import Checkpoints
from core.config import GenerationConfig, MachineConfig, RunConfig
from core.errors import RunStopped
from core.generation.loop import synthesize
from core.generation.methods import METHODS
from core.reporting import NoControl, NullReporter
from core.runs.control import ReplayControl
from core.stages.branch import branched
from core.stages.context import Context

CONFIG = RunConfig(
    machine=MachineConfig(seed=3, device="cpu", threads=1),
    generation=GenerationConfig(images=24, iterations=6, batch_size=8, snapshots=2, generator_batch_size=8),
    methods=("mi-fgsm",),
    bits=(),
)
# in the first batch, before the branch, and after it
CHANGES = [
    {"step": 2, "name": "epsilon", "value": 0.05},
    {"step": 7, "name": "beta", "value": 2.0},
    {"step": 10, "name": "mu", "value": 0.9},
]
OPTIMIZED = [name for name, method in METHODS.items() if not method.is_reference]


class Recorder(NullReporter):
    """Figures and images of every step, to be compared bit by bit."""

    def __init__(self):
        self.records, self.pictures = {}, {}

    def record(self, stage, method, step, values):
        self.records[method, step] = {**values, "seconds": 0}

    def wants_images(self, method):
        return True

    def images(self, method, frame, keep):
        self.pictures[method, frame.step] = (frame.images.tobytes(), frame.confidence.tobytes(), frame.means.tobytes())


def whole(model, config, changes=()):
    recorder = Recorder()
    for method in config.methods:
        synthesize(model, config.generation, method, config.machine, recorder, ReplayControl(changes))
    return recorder


def branch(model, config, at, changes=(), checkpoints=None, control=None):
    recorder = Recorder()
    branched(model, config, at, Context(recorder, control or ReplayControl(changes), checkpoints))
    return recorder


@pytest.mark.parametrize("method", OPTIMIZED)
def test_unchanged_branch_has_the_bits_of_its_run(small, method):
    config = replace(CONFIG, methods=(method,))
    run = whole(small, config, CHANGES)
    found = branch(small, config, 9, CHANGES)  # the second batch of 7 to 12
    assert {(method, step) for step in (9, 10, 11, 12)} <= found.records.keys()
    assert max(step for _, step in found.records) == 12
    for key in found.records:
        assert found.records[key] == run.records[key], key
        assert found.pictures[key] == run.pictures[key], key


@pytest.mark.parametrize("method", ["mi-fgsm", "gdfq"])
def test_other_values_change_the_steps_after_the_branch_only(small, method):
    config = replace(CONFIG, methods=(method,))
    name, value = {"mi-fgsm": ("epsilon", 0.4), "gdfq": ("generator_lr", 0.05)}[method]
    run, other = whole(small, config), branch(small, config, 9, [{"step": 9, "name": name, "value": value}])
    # the value acts at the end of step 10, on the images that step 11 sees
    for step in (9, 10):
        assert other.records[method, step] == run.records[method, step]
    for step in (11, 12):
        assert other.records[method, step]["bns"] != run.records[method, step]["bns"]
    assert other.pictures[method, 9] == run.pictures[method, 9]
    assert other.pictures[method, 10][0] != run.pictures[method, 10][0]


def test_moved_pixels_differ_by_the_step_size(small):
    """MI-FGSM moves every pixel by epsilon: of two branches, the first images after the branch differ by that of their values."""
    config = replace(CONFIG, generation=replace(CONFIG.generation, schedule="constant", max_shift=0, flip=False))
    seen = {}

    class Images(Recorder):
        def images(self, method, frame, keep):
            seen[value, frame.step] = frame.images.astype(int)

    for value in (0.0, 0.1):
        branched(small, config, 9, Context(Images(), ReplayControl([{"step": 9, "name": "epsilon", "value": value}])))
    assert np.array_equal(seen[0.0, 10], seen[0.0, 9])
    moved = np.abs(seen[0.1, 10] - seen[0.1, 9])
    # 0.1 in normalized units, of a standard deviation of 0.25, is 6.4 of 255; less at black and white
    assert set(np.unique(moved[(seen[0.1, 10] > 0) & (seen[0.1, 10] < 255)])) <= {6, 7}


class StopsAfter(NoControl):
    """Stops at the pause point of this number."""

    def __init__(self, points):
        self.points = points

    def pause_point(self):
        self.points -= 1
        if self.points < 0:
            raise RunStopped("stopped")


@pytest.mark.parametrize("method", ["mi-fgsm", "intraq", "gdfq"])
def test_interrupted_branch_ends_with_the_same_bits(small, tmp_path, method):
    config = replace(CONFIG, methods=(method,))
    wanted = branch(small, config, 9)
    with pytest.raises(RunStopped):
        branch(small, config, 9, checkpoints=Checkpoints(tmp_path, every=1000), control=StopsAfter(4))
    resumed = branch(small, config, 9, checkpoints=Checkpoints(tmp_path, every=1000))
    assert 0 < len(resumed.records) < len(wanted.records)
    for key in resumed.records:
        assert resumed.records[key] == wanted.records[key]
        assert resumed.pictures[key] == wanted.pictures[key]
