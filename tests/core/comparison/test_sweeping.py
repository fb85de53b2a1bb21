"""Computing a sweep in the background, with a manager whose runs end at once."""

import threading

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from core import layout
from core.comparison.search_space import GRID, HALVING, TPE, Range
from core.comparison.sweep import as_text, rows
from core.comparison.sweeping import Sweeper
from core.comparison.sweeps import complete, held_out_folder, measured, new_sweep, stored, trials_of
from core.config import RunConfig
from core.runs.state import RunState
from core.runs.store import RunStore

SWEEP = new_sweep(RunConfig(methods=("mi-fgsm",), bits=(4,)), {"epsilon": [0.05, 0.1], "mu": [0.5]}, GRID, 0, (0, 1))
PICTURE = np.arange(2 * 3 * 4 * 4, dtype=np.uint8).reshape(2, 3, 4, 4)


class Manager:
    """Completes each run when it is waited for; with `hold`, once it is stopped."""

    def __init__(self, store):
        self.store, self.started, self.fail, self.hold = store, [], "", None

    def start(self, config, name, user="", executor=""):
        self.started.append((config, name, user, executor))
        return self.store.create(config, name, user)

    def resume(self, run_id):
        self.started.append(run_id)
        self.store.resume(run_id)

    def wait(self, run_id):
        run = self.store.run(run_id)
        if self.hold is not None and run.config.bits:
            self.hold.wait(10)
            self.store.set_state(run_id, RunState.STOPPED)
            return
        if not run.config.bits:
            for method in run.config.methods:
                folder = self.store.run_folder(run_id) / layout.IMAGES / method
                folder.mkdir(parents=True)
                save_file({"images": PICTURE}, folder / layout.IMAGES_FILE)
                (folder / layout.MANIFEST).touch()
        for bits in run.config.bits:
            figures = {"agreement": 100 * run.config.generation.epsilon, "kl": 0.1, "images": 4}
            self.store.set_result(run_id, f"accuracy/{run.config.methods[0]}/W{bits}A{bits}", {"real": {"calibrated": figures}})
        self.store.set_state(run_id, RunState.FAILED if self.fail else RunState.COMPLETE, self.fail)

    def controls(self, run_id):
        return True

    def control(self, run_id):
        return self

    def stop(self):
        self.hold.set()


@pytest.fixture
def store(tmp_path):
    store = RunStore(tmp_path / "runs")
    yield store
    store.close()


def states(store, sweep):
    return [run and run.state for _, run in measured(store, trials_of(store, sweep))]


def test_a_sweep_makes_its_images_and_then_each_run_once(store):
    manager = Manager(store)
    sweeper = Sweeper(manager)
    sweeper.start(SWEEP)
    sweeper.wait(SWEEP.id, 20)
    (sweep,) = stored(store)
    assert [dict(point) for point in sweep.points] == [{"epsilon": 0.05, "mu": 0.5}, {"epsilon": 0.1, "mu": 0.5}]
    assert states(store, sweep) == [RunState.COMPLETE] * 4
    assert len(manager.started) == 5
    assert sweep.held_out == held_out_folder(store, SWEEP).name
    images = sorted(held_out_folder(store, sweep).iterdir())
    assert [path.name for path in images] == [f"{method}-0000{n}.png" for method in ("adam", "mi-fgsm") for n in (0, 1)]
    assert np.array_equal(np.asarray(Image.open(images[0])), PICTURE[0].transpose(1, 2, 0))
    assert len(store.runs()) == 4  # without that of the images
    sweeper.start(SWEEP)
    sweeper.wait(SWEEP.id, 20)
    assert len(manager.started) == 5
    assert not sweeper.computes(SWEEP.id)
    assert sweeper.error(SWEEP.id) == ""


def test_a_stopped_sweep_continues_with_the_run_that_was_stopped(store):
    manager = Manager(store)
    manager.hold = threading.Event()
    sweeper = Sweeper(manager)
    sweeper.start(SWEEP)
    while len(manager.started) < 2 and sweeper.computes(SWEEP.id):
        threading.Event().wait(0.01)
    assert sweeper.computes(SWEEP.id)
    sweeper.stop(SWEEP.id)
    sweeper.wait(SWEEP.id, 20)
    (sweep,) = stored(store)
    assert states(store, sweep) == [RunState.STOPPED, None, None, None]
    stopped, manager.hold = store.runs()[0].id, None
    sweeper.start(sweep)
    sweeper.wait(SWEEP.id, 20)
    assert manager.started[2] == stopped
    assert states(store, sweep) == [RunState.COMPLETE] * 4


def test_a_sweep_without_images_says_why(store):
    manager = Manager(store)
    manager.fail = "the disk is full"
    sweeper = Sweeper(manager)
    sweeper.start(SWEEP)
    sweeper.wait(SWEEP.id, 20)
    assert "the held-out images must be complete" in sweeper.error(SWEEP.id)
    assert sweeper.error(SWEEP.id).endswith("the disk is full")
    assert not held_out_folder(store, SWEEP).exists()


def computed(store, wanted):
    """The manager and the sweeper that have computed a sweep, and the sweep as it is stored."""
    manager = Manager(store)
    sweeper = Sweeper(manager)
    sweeper.start(wanted)
    sweeper.wait(wanted.id, 60)
    assert sweeper.error(wanted.id) == ""
    (whole,) = stored(store)
    return manager, sweeper, whole


def test_a_search_that_is_continued_proposes_the_same_points(store):
    pytest.importorskip("optuna")
    wanted = new_sweep(RunConfig(methods=("mi-fgsm", "adam"), bits=(4,)), {"epsilon": Range(0.01, 1.0)}, TPE, 18, (0,))
    manager, sweeper, whole = computed(store, wanted)
    assert len(whole.points) == 18
    assert whole.of_all == 36
    assert states(store, whole) == [RunState.COMPLETE] * 36
    assert sum(point["epsilon"] for point in whole.points[8:]) / 10 > sum(point["epsilon"] for point in whole.points[:8]) / 8
    # one run of the third round is gone
    (gone,) = [run for trial, run in measured(store, trials_of(store, whole, [whole.points[9]])) if trial.cell.method == "adam"]
    store.delete(gone.id)
    sweeper.start(whole)
    sweeper.wait(whole.id, 60)
    assert len(manager.started) == 1 + 36 + 1
    (again,) = stored(store)
    assert again.points == whole.points


def test_halving_spends_images_and_steps_on_the_best_points(store):
    start = RunConfig(methods=("mi-fgsm",), bits=(4,), steps_by_bits={4: 90})
    wanted = new_sweep(start, {"epsilon": Range(0.01, 1.0)}, HALVING, 9, (0,))
    manager, sweeper, whole = computed(store, wanted)
    assert states(store, whole) == [RunState.COMPLETE] * 13
    assert whole.of_all == 13
    first = {point["epsilon"] for point in whole.points[:9]}
    assert [point["epsilon"] for point in whole.points[9:12]] == sorted(first)[-1:-4:-1]  # the agreement of Manager grows with epsilon
    assert whole.points[12]["epsilon"] == max(first)
    configs = [trial.cell.config for trial in trials_of(store, whole)]
    assert [config.training_for(4).steps for config in configs] == [10] * 9 + [30] * 3 + [90]
    images = start.generation.images
    assert [config.generation.images for config in configs] == [-(-images // 9)] * 9 + [-(-images // 3)] * 3 + [images]
    assert configs[12].steps_by_bits == start.steps_by_bits
    table = rows(store, complete(measured(store, trials_of(store, whole))))
    assert [row.share for row in table] == [1.0] + [pytest.approx(1 / 3)] * 3 + [pytest.approx(1 / 9)] * 9
    assert as_text(table).splitlines()[0].split() == [
        "bits", "method", "epsilon", "share", "seeds", "agreement", "error", "spread", "KL", "seconds",
    ]  # fmt: skip
    sweeper.start(whole)  # nothing is left to compute
    sweeper.wait(whole.id, 60)
    assert len(manager.started) == 1 + 13
