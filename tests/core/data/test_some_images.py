"""A few images of a set, in one file or in shards: the requested ones in their order, and no others are decoded."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from core.data import shards
from core.data.shards import SHARDS, about_shards, shard_name, write_shard
from core.data.some_images import SomeImages


def pictures(count, size=4):
    return np.stack([np.full((3, size, size), 10 + i, dtype=np.uint8) for i in range(count)])


def write(folder, kind, count, size=4):
    """Images 10, 11, ... with labels count - 1, count - 2, ..., in one file or in shards of `size`."""
    images, labels = pictures(count), np.arange(count)[::-1].copy()
    if kind == "file":
        save_file({"images": images, "labels": labels}, folder / "images.safetensors")
        return
    firsts = range(0, count, size)
    files = [folder / shard_name(number) for number in range(len(firsts))]
    for path, first in zip(files, firsts):
        write_shard(path, first, zip(images[first : first + size], labels[first : first + size]))
    stated = about_shards(files, [min(size, count - first) for first in firsts])
    (folder / "manifest.json").write_text(json.dumps({SHARDS: stated}), encoding="utf-8")


KINDS = pytest.mark.parametrize("kind", ["file", "shards"])


@KINDS
def test_requested_images_are_read_in_order(tmp_path, kind):
    write(tmp_path, kind, 9)
    found = SomeImages(tmp_path)
    assert found.total == 9
    images, labels = found.read([7, 0, 7])
    assert images.shape == (3, 3, 4, 4)
    assert [int(image[0, 0, 0]) for image in images] == [17, 10, 17]
    assert labels.tolist() == [1, 8, 1]


@KINDS
def test_missing_images_give_none(tmp_path, kind):
    assert (SomeImages(tmp_path).total, SomeImages(tmp_path).read([0]), SomeImages(tmp_path).labels()) == (0, None, None)
    assert SomeImages(tmp_path).spread(5) == []
    write(tmp_path, kind, 2)
    assert SomeImages(tmp_path).read([1]) is not None
    assert SomeImages(tmp_path).read([2]) is None
    assert SomeImages(tmp_path).read([]) is None
    there = SomeImages(tmp_path)
    path = next(path for path in tmp_path.iterdir() if path.suffix != ".json")
    path.write_bytes(b"no images")
    assert there.read([0]) is None
    path.unlink()
    assert there.read([0]) is None


def test_a_set_in_another_format_has_none(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps({"folders": {"ant": 0}, "images": 1}), encoding="utf-8")
    assert SomeImages(tmp_path).total == 0
    (tmp_path / "manifest.json").write_text(json.dumps({SHARDS: [{"name": "a.tar", "images": "many"}]}), encoding="utf-8")
    assert SomeImages(tmp_path).total == 0


def test_images_spread_over_a_file_and_over_shards(tmp_path):
    for kind, expected in (("file", [0, 3, 6, 9]), ("shards", [0, 1, 4, 8])):
        folder = tmp_path / kind
        folder.mkdir()
        write(folder, kind, 10)
        assert SomeImages(folder).spread(4) == expected
        assert SomeImages(folder).spread(100) == list(range(10))
    assert SomeImages(tmp_path / "file").labels().tolist() == list(range(9, -1, -1))
    assert SomeImages(tmp_path / "shards").labels() is None


def test_of_each_shard_no_more_is_read_than_its_first_images(tmp_path, monkeypatch):
    write(tmp_path, "shards", 100, size=25)
    seen = []
    usual = shards._class_of
    monkeypatch.setattr(shards, "_class_of", lambda *arguments: seen.append(1) or usual(*arguments))
    found = SomeImages(tmp_path)
    numbers = found.spread(8)
    assert numbers == [0, 1, 25, 26, 50, 51, 75, 76]
    images, labels = found.read(numbers)
    assert images[:, 0, 0, 0].tolist() == [10 + number for number in numbers]
    assert labels.tolist() == [99 - number for number in numbers]
    assert len(seen) <= 12  # of 100
