"""Files of frames and running statistics."""

import threading

import numpy as np
import pytest
from run_stores import created, frame

from core.reporting import Frame, RunningStatistics


def full_frame(step, count=2, channels=5):
    random = np.random.default_rng(step)
    confidence, means, variances = (random.random(size, dtype=np.float32) for size in (count, channels, channels))
    images, labels = random.integers(0, 256, (count, 3, 4, 4), dtype=np.uint8), random.integers(0, 10, count)
    return Frame(step, images, labels, labels[::-1].copy(), confidence, means, variances)


def same(first, second) -> bool:
    """Whether all fields are equal in value and dtype."""
    return all(
        np.array_equal(one, other) and np.asarray(one).dtype == np.asarray(other).dtype
        for one, other in zip(vars(first).values(), vars(second).values())
    )


def test_latest_and_kept_frames(store):
    run_id = created(store)
    assert store.frames.read(run_id, "adam") is None
    for step, keep in ((1, True), (2, False), (10, True), (11, False)):
        store.frames.save(run_id, "adam", frame(step), keep)
    store.frames.save(run_id, "mi-fgsm", frame(5), False)
    assert store.frames.steps(run_id, "adam") == [1, 10]
    assert store.frames.steps(run_id, "mi-fgsm") == []
    assert same(store.frames.read(run_id, "adam"), frame(11))
    assert same(store.frames.read(run_id, "adam", 10), frame(10))
    assert store.frames.read(run_id, "adam", 2) is None
    assert store.frames.read(run_id, "mi-fgsm").step == 5


def test_frame_round_trip(store):
    run_id = created(store)
    store.frames.save(run_id, "adam", full_frame(3), True)
    for step in (None, 3):
        assert same(store.frames.read(run_id, "adam", step), full_frame(3))


def test_frame_of_an_earlier_version_has_only_images_and_labels(store):
    run_id = created(store)
    folder = store.run_folder(run_id) / "frames" / "adam"
    folder.mkdir(parents=True)
    old = frame(4)
    np.savez(folder / "00000004.npz", images=old.images, labels=old.labels, step=4)
    read = store.frames.read(run_id, "adam", 4)
    assert same(read, old)
    assert (read.predicted, read.confidence, read.means, read.variances) == (None, None, None, None)


def test_running_statistics(store):
    run_id = created(store)
    assert store.frames.running_statistics(run_id) is None
    store.frames.save_running_statistics(run_id, RunningStatistics([2, 1], np.float32([1, 2, 3]), np.float32([0.5, 0.25, 4])))
    read = store.frames.running_statistics(run_id)
    assert read.channels == [2, 1]
    assert read.means.tolist() == [1, 2, 3]
    assert read.variances.tolist() == [0.5, 0.25, 4]
    assert read.means.dtype == read.variances.dtype == np.float32
    store.frames.save(run_id, "adam", frame(1), True)
    store.rewind(run_id, "generation", "adam", 0)  # a resumed run has the same network
    assert store.frames.running_statistics(run_id) is not None


@pytest.mark.parametrize("left", ["the beginning", "zeros at the end", "zeros in the middle"])
def test_frame_damaged_by_a_power_failure_reads_as_missing(store, left):
    """Wherever it was damaged, it never raises and never gives a partial image."""
    run_id = created(store)
    store.frames.save(run_id, "adam", full_frame(1), True)
    path = store.run_folder(run_id) / "frames" / "adam" / "00000001.npz"
    whole = path.read_bytes()
    for position in range(0, len(whole), 13):
        if left == "the beginning":
            path.write_bytes(whole[:position])
        elif left == "zeros at the end":
            path.write_bytes(whole[:position].ljust(len(whole), b"\0"))
        else:
            path.write_bytes(whole[:position] + bytes(64) + whole[position + 64 :])
        read = store.frames.read(run_id, "adam", 1)
        assert read is None or same(read, full_frame(1)), position
    assert store.frames.steps(run_id, "adam") == [1]


def test_frame_read_during_a_write_is_complete(store):
    run_id = created(store)
    store.frames.save(run_id, "adam", frame(0, 64), False)
    stop, torn = threading.Event(), []

    def read():
        while not stop.is_set():
            read = store.frames.read(run_id, "adam")
            if not (read.images == read.step).all():
                torn.append(read.step)

    reader = threading.Thread(target=read)
    reader.start()
    for step in range(100):
        store.frames.save(run_id, "adam", frame(step, 64), False)
    stop.set()
    reader.join()
    assert torn == []
