"""What the engine announces arrives in the store; pictures at most two a second and lane, besides those to keep."""

import pytest
import torch

from core.config import RunConfig
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


def pictures(value):
    return torch.full((2, 3, 4, 4), value, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)


def test_figures_arrive(store, run_id, reporter):
    reporter.stage("generation", 6)
    reporter.record("generation", "adam", 1, {"total": 2.5, "layers": [1.0, 1.5]})
    reporter.change("adam", 1, "lr", 0.25)
    reporter.result("full_precision", {"top1": 92.5})
    run = store.run(run_id)
    assert (run.stage, run.step, run.total) == ("generation", 1, 6)
    (record,) = store.records(run_id, "generation")
    assert (record.lane, record.step, record.data) == ("adam", 1, {"total": 2.5, "layers": [1.0, 1.5]})
    assert store.changes(run_id) == [{"lane": "adam", "step": 1, "name": "lr", "value": 0.25}]
    assert store.results(run_id) == {"full_precision": {"top1": 92.5}}


def test_pictures_arrive(store, run_id, reporter):
    ramp = torch.arange(96, dtype=torch.uint8).view(2, 3, 4, 4)
    reporter.images("adam", 3, ramp.contiguous(memory_format=torch.channels_last), torch.tensor([7, 1]), True)
    step, images, labels = store.frame(run_id, "adam", 3)
    assert step == 3
    assert images.flatten().tolist() == list(range(96))
    assert labels.tolist() == [7, 1]
    reporter.images("adam", 4, pictures(4), torch.tensor([7, 1]), False)
    assert store.frame_steps(run_id, "adam") == [3]
    assert store.frame(run_id, "adam")[0] == 4


def test_at_most_two_pictures_a_second_and_lane(reporter, clock):
    assert SECONDS_BETWEEN_FRAMES == 0.5
    assert reporter.wants_images("adam")
    reporter.images("adam", 1, pictures(1), torch.tensor([0, 1]), False)
    assert not reporter.wants_images("adam")
    assert reporter.wants_images("mi-fgsm")
    clock.now += 0.49
    assert not reporter.wants_images("adam")
    clock.now += 0.02
    assert reporter.wants_images("adam")


def test_kept_pictures_are_written_however_soon(store, run_id, reporter, clock):
    for step in (1, 2, 3):
        reporter.images("adam", step, pictures(step), torch.tensor([0, 1]), True)
    assert store.frame_steps(run_id, "adam") == [1, 2, 3]
