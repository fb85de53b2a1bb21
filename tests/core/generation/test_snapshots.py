"""Images written as shards while they are made: the same images and files, whatever the size and wherever it was interrupted."""

from dataclasses import replace

import pytest
import torch

from core.config import GenerationConfig
from core.data.image_sets import load_image_set
from core.errors import CoreError
from core.generation.loop import GenerationLoop, synthesize

CONFIG = GenerationConfig(images=24, iterations=12, batch_size=12, snapshots=2)


def tars(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.tar"))}


def sharded(small, folder, images=48, size=10):
    (folder / "set").mkdir(parents=True, exist_ok=True)
    return GenerationLoop(small, replace(CONFIG, images=images, shard_size=size), folder=folder / "kept", shards=folder / "set")


def finished(loop):
    while not loop.finished:
        loop.step()
    return loop


def test_shards_have_the_images_of_a_set_in_one_file(small, tmp_path):
    loop = finished(sharded(small, tmp_path))
    loop.save(tmp_path / "set")
    whole, _ = synthesize(small, replace(CONFIG, images=48))
    found = load_image_set(tmp_path / "set")
    assert torch.equal(found.pixels(), whole.images)
    assert torch.equal(found.labels, whole.labels)
    stated = found.manifest.pop("shards")
    assert [one["images"] for one in stated] == [10, 10, 10, 10, 8]
    assert found.manifest["summary"].pop("seconds") == loop.summary()["seconds"]
    whole.manifest["summary"].pop("seconds")
    assert found.manifest == {**whole.manifest, "config": {**whole.manifest["config"], "shard_size": 10}}


@pytest.mark.parametrize("size", [1, 5, 12, 24, 47, 48, 1000])
def test_shards_of_any_size(small, tmp_path, size):
    """Smaller than a batch, as large, larger, and larger than the set: the last one has the rest."""
    finished(sharded(small, tmp_path, size=size)).save(tmp_path / "set")
    found = load_image_set(tmp_path / "set")
    counts = [one["images"] for one in found.manifest["shards"]]
    assert counts == [size] * (48 // size) + ([48 % size] if 48 % size else [])
    assert torch.equal(found.pixels(), synthesize(small, replace(CONFIG, images=48))[0].images)


def test_shards_are_written_as_batches_are_finished(small, tmp_path):
    loop = sharded(small, tmp_path)
    seen = []
    while not loop.finished:
        loop.step()
        seen.append(len(tars(tmp_path / "set")))
    first, last = loop.config.snapshot_iterations
    assert last == 12
    # after each 12 images: shards of 10, of which the fifth is not full
    assert seen == [0] * (first - 1) + [1] * (12 - first) + [2] * first + [3] * (12 - first) + [4]


@pytest.mark.parametrize("at", [0, 6, 7, 11, 12, 13, 19, 23, 24])
@pytest.mark.parametrize("size", [10, 30])
def test_interrupted_shards_are_the_same_files(small, tmp_path, at, size):
    """Killed after the last step, when shards were written that the resume state does not know of."""
    finished(sharded(small, tmp_path / "whole", size=size)).save(tmp_path / "whole" / "set")
    first = sharded(small, tmp_path / "parts", size=size)
    for step in range(at):
        first.step()
        if step % 3 == 0:
            first.state()  # saved, and replaced by later ones
    torch.save(first.state(), tmp_path / "state.pt")
    finished(first).save(tmp_path / "parts" / "set")
    second = sharded(small, tmp_path / "parts", size=size)
    second.load_state(torch.load(tmp_path / "state.pt", weights_only=True))
    done = second.summary()["images"] // size
    assert list(tars(tmp_path / "parts" / "set")) == [f"images-{number:06d}.tar" for number in range(done)]
    finished(second).save(tmp_path / "parts" / "set")
    assert tars(tmp_path / "parts" / "set") == tars(tmp_path / "whole" / "set")


def test_images_that_are_in_shards_are_kept_only_for_the_last_resume_state(small, tmp_path):
    """Twenty batches of 4 images in shards of 5, with a resume state after each iteration."""
    config = GenerationConfig(images=80, iterations=2, batch_size=4, snapshots=1, shard_size=5)
    loop = GenerationLoop(small, config, folder=tmp_path / "kept", shards=tmp_path / "set")
    most = 0
    while not loop.finished:
        loop.step()
        loop.state()
        most = max(most, len(list((tmp_path / "kept").glob("*"))))
    assert 2 <= most <= 3
    assert len(tars(tmp_path / "set")) == 16


def test_an_earlier_attempt_leaves_no_shards_in_the_set(small, tmp_path):
    """One without a resume state that wrote more shards than there are now."""
    finished(sharded(small, tmp_path, images=48)).save(tmp_path / "set")
    finished(sharded(small, tmp_path, images=24)).save(tmp_path / "set")
    assert list(tars(tmp_path / "set")) == [f"images-{number:06d}.tar" for number in range(3)]
    assert len(load_image_set(tmp_path / "set")) == 24


@pytest.mark.parametrize("gone", ["set", "kept"])
def test_a_resume_state_without_its_shards_is_refused(small, tmp_path, gone):
    loop = sharded(small, tmp_path)
    for _ in range(12):
        loop.step()
    state = loop.state()
    for path in (tmp_path / gone).iterdir():
        path.unlink()
    with pytest.raises(CoreError, match="is missing: the resume state needs all images"):
        sharded(small, tmp_path).load_state(state)
