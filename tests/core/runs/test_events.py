"""StoreReporter writes to the store, with at most two frames per second and method unless they must be kept."""

from functools import partial

import numpy as np
import pytest

from core.config import RunConfig
from core.reporting import Frame, RunningStatistics
from core.runs import events
from core.runs.events import SECONDS_BETWEEN_FRAMES, StoreReporter
from core.runs.store import RunStore


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(events, "time", clock)
    return clock


@pytest.fixture
def store(tmp_path):
    store = RunStore(tmp_path)
    yield store
    store.close()


@pytest.fixture
def run_id(store):
    return store.create(RunConfig(), "")


@pytest.fixture
def reporter(store, run_id):
    return StoreReporter(store, run_id)


def pictures(step):
    return Frame(step, np.full((2, 3, 4, 4), step, dtype=np.uint8), np.array([7, 1]))


def test_figures_are_stored(store, run_id, reporter):
    reporter.stage("generation", 6)
    reporter.record("generation", "adam", 1, {"total": 2.5, "layers": [1.0, 1.5]})
    reporter.change("adam", 1, "lr", 0.25)
    reporter.result("full_precision", {"top1": 92.5})
    run = store.run(run_id)
    assert (run.stage, run.step, run.total) == ("generation", 1, 6)
    (record,) = store.records(run_id, "generation")
    assert (record.series, record.step, record.data) == ("adam", 1, {"total": 2.5, "layers": [1.0, 1.5]})
    assert store.changes(run_id) == [{"method": "adam", "step": 1, "name": "lr", "value": 0.25}]
    assert store.results(run_id) == {"full_precision": {"top1": 92.5}}


def test_frames_are_stored(store, run_id, reporter):
    reporter.images("adam", pictures(3), True)
    frame = store.frames.read(run_id, "adam", 3)
    assert frame.step == 3
    assert frame.images.tolist() == pictures(3).images.tolist()
    assert frame.labels.tolist() == [7, 1]
    reporter.images("adam", pictures(4), False)
    assert store.frames.steps(run_id, "adam") == [3]
    assert store.frames.read(run_id, "adam").step == 4
    reporter.running_statistics(RunningStatistics([1, 2], np.float32([1, 2, 3]), np.float32([4, 5, 6])))
    assert store.frames.running_statistics(run_id).variances.tolist() == [4, 5, 6]


def test_at_most_two_frames_per_second_and_method(reporter, clock):
    assert SECONDS_BETWEEN_FRAMES == 0.5
    assert reporter.wants_images("adam")
    reporter.images("adam", pictures(1), False)
    assert not reporter.wants_images("adam")
    assert reporter.wants_images("mi-fgsm")
    clock.now += 0.49
    assert not reporter.wants_images("adam")
    clock.now += 0.02
    assert reporter.wants_images("adam")


def test_methods_have_frames_of_the_same_steps(reporter, clock):
    seen = {"mi-fgsm": [], "adam": []}
    for step in range(1, 20):
        for method, seconds in (("mi-fgsm", 0.05), ("adam", 0.12)):
            clock.now += seconds
            reporter.record("generation", method, step, {})
            if reporter.wants_images(method):
                seen[method].append(step)
                reporter.images(method, pictures(step), False)
    assert seen["mi-fgsm"] == seen["adam"] == [1, 4, 7, 10, 13, 16, 19]


def test_a_pause_shows_the_images_that_were_not_wanted(store, run_id, reporter, clock):
    reporter.images("adam", pictures(1), False)
    for step in (2, 3):
        reporter.unwanted_images("adam", partial(pictures, step))
    reporter.images("mi-fgsm", pictures(3), False)
    reporter.pausing()
    assert [store.frames.read(run_id, method).step for method in ("adam", "mi-fgsm")] == [3, 3]
    reporter.images("adam", pictures(4), False)
    reporter.pausing()  # nothing newer
    assert store.frames.read(run_id, "adam").step == 4
    reporter.unwanted_images("adam", partial(pictures, 5))
    reporter.stage("evaluation", 1)
    reporter.pausing()
    assert store.frames.read(run_id, "adam").step == 4


def test_frames_to_keep_are_always_stored(store, run_id, reporter, clock):
    for step in (1, 2, 3):
        reporter.images("adam", pictures(step), True)
    assert store.frames.steps(run_id, "adam") == [1, 2, 3]


def test_seconds_add_up_over_attempts_whatever_the_clock_of_the_machine_says(store, run_id, clock):
    reporter = StoreReporter(store, run_id)
    clock.now += 500  # in the queue
    reporter.flush()
    assert store.result(run_id, events.SECONDS) is None
    reporter.stage("generation", 6)
    clock.now += 60
    reporter.flush()
    reporter.stage("training", 6)
    clock.now += 1.5
    reporter.flush()
    assert store.result(run_id, events.SECONDS) == 61.5
    clock.now = 3.0  # the machine was started again
    resumed = StoreReporter(store, run_id)
    resumed.stage("training", 6, 3)
    clock.now += 10
    resumed.flush()
    assert store.result(run_id, events.SECONDS) == 71.5


def test_images_of_the_iteration_after_a_live_change_are_wanted(reporter, clock):
    for method in ("mi-fgsm", "adam"):
        reporter.record("generation", method, 1, {})
        reporter.images(method, pictures(1), keep=False)
    clock.now += 0.01
    reporter.record("generation", "mi-fgsm", 2, {})
    assert not reporter.wants_images("mi-fgsm")
    reporter.change("adam", 1, "lr", 0.25)
    reporter.record("generation", "adam", 2, {})
    assert reporter.wants_images("adam")
