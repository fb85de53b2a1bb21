"""Shards: what Python's tarfile and Pillow find in them, the same bytes for the same images, and bounded memory when they are read."""

import hashlib
import io
import json
import tarfile
import time
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image

from core.data.image_sets import ImageSet, load_image_set, save_image_set
from core.data.shards import SHARDS, Shards, about_shards, every_sample, shard_files, shard_name, write_shard
from core.errors import DataError
from core.models.registry import ModelSpec

SPEC = ModelSpec("pets", "resnet20_cifar10", ("ant", "bee"), 4, (0.5,) * 3, (0.25,) * 3, "nothing")


def pixels(count, channels=3, height=6, width=4):
    random = np.random.default_rng(count)
    return random.integers(0, 256, (count, channels, height, width), dtype=np.uint8)


def write_set(folder, images, size, manifest=None):
    """Shards of `size` images with classes 0, 1, ..., and their manifest."""
    folder.mkdir(exist_ok=True)
    files, counts = [], []
    for number, first in enumerate(range(0, len(images), size)):
        part = images[first : first + size]
        files.append(folder / shard_name(number))
        counts.append(len(part))
        write_shard(files[-1], first, zip(part, range(first, first + len(part))))
    (folder / "manifest.json").write_text(json.dumps({**(manifest or {}), SHARDS: about_shards(files, counts)}), encoding="utf-8")
    return files


def write_tar(path, members, **options):
    """A tar file as another program writes it: names with their content."""
    with tarfile.open(path, "w", **options) as tar:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime, entry.uname = len(content), 1_700_000_000.25, "somebody"
            tar.addfile(entry, io.BytesIO(content))


def picture(value, mode="RGB", kind="PNG", size=(4, 4)):
    content = io.BytesIO()
    Image.new(mode, size, value).save(content, kind)
    return content.getvalue()


def test_images_that_are_encoded_side_by_side_keep_their_order(tmp_path, monkeypatch):
    """Seven images, of which three are encoded at a time."""
    monkeypatch.setattr("core.data.shards._AT_ONCE", 3)
    images = pixels(7)
    (path,) = write_set(tmp_path, images, 7)
    with tarfile.open(path) as tar:
        names = tar.getnames()
        found = [np.asarray(Image.open(tar.extractfile(name))) for name in names[::2]]
    assert names == [f"{number:08d}.{suffix}" for number in range(7) for suffix in ("png", "cls")]
    assert (np.stack(found) == images.transpose(0, 2, 3, 1)).all()


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_shards_contain_each_image_and_its_class(tmp_path, channels):
    images = pixels(5, channels)
    files = write_set(tmp_path, images, 3)
    assert [path.name for path in files] == ["images-000000.tar", "images-000001.tar"]
    found = {}
    for path in files:
        with tarfile.open(path) as tar:
            for entry in tar:
                assert (entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname, entry.mode) == (0, 0, 0, "", "", 0o644)
                found[entry.name] = tar.extractfile(entry).read()
    assert list(found) == [f"0000000{number}.{suffix}" for number in range(5) for suffix in ("png", "cls")]
    for number, image in enumerate(images):
        read = np.asarray(Image.open(io.BytesIO(found[f"0000000{number}.png"]))).reshape(6, 4, channels)
        assert np.array_equal(read.transpose(2, 0, 1), image)
        assert found[f"0000000{number}.cls"] == str(number).encode()


def test_manifest_has_the_number_and_the_hash_of_each_shard(tmp_path):
    files = write_set(tmp_path, pixels(5), 3)
    stated = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))[SHARDS]
    assert [(one["name"], one["images"]) for one in stated] == [("images-000000.tar", 3), ("images-000001.tar", 2)]
    assert [one["sha256"] for one in stated] == [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]


def test_the_same_images_give_the_same_bytes(tmp_path):
    first = [path.read_bytes() for path in write_set(tmp_path / "a", pixels(5), 3)]
    time.sleep(1.1)  # a tar file has whole seconds
    assert [path.read_bytes() for path in write_set(tmp_path / "b", pixels(5), 3)] == first


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_set_of_shards_is_the_set_in_memory(tmp_path, channels):
    images = torch.from_numpy(pixels(7, channels))
    manifest = {"method": "mi-fgsm", "summary": {"images": 7}}
    write_set(tmp_path / "shards", images.numpy(), 3, manifest)
    (tmp_path / "one").mkdir()
    save_image_set(ImageSet(images, torch.arange(7)), tmp_path / "one")
    found, plain = load_image_set(tmp_path / "shards"), load_image_set(tmp_path / "one")
    assert {name: value for name, value in found.manifest.items() if name != SHARDS} == manifest
    assert torch.equal(found.pixels(), plain.pixels())
    assert torch.equal(found.labels, plain.labels)
    assert (len(found), found.images.shape, found.images.dtype) == (7, plain.images.shape, torch.uint8)
    assert found.images.numel() == plain.images.numel()
    for index in (torch.tensor([6, 0, 3, 3]), torch.tensor([], dtype=torch.long), slice(2, 5), slice(None, None, 2)):
        assert torch.equal(found.images[index], plain.images[index])
    assert [len(part) for part in found.images.split(4)] == [4, 3]
    assert torch.equal(torch.stack(list(found.images)), plain.images)


def test_memory_does_not_grow_with_the_number_of_shards(tmp_path):
    """Eight times as many images of 48 kB, two at a time."""
    grown = []
    for count in (40, 320):
        write_set(tmp_path / str(count), np.zeros((1, 3, 128, 128), dtype=np.uint8).repeat(count, axis=0), 10)
        tracemalloc.start()
        images = load_image_set(tmp_path / str(count)).images
        kept, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        for part in images.split(2):
            assert part.shape == (2, 3, 128, 128)
        grown.append(tracemalloc.get_traced_memory()[1] - kept)
        tracemalloc.stop()
        assert kept < 100_000 + 200 * count  # none of the 48 kB of each image
    assert grown[1] < 2 * grown[0]
    assert grown[1] < 10 * 2 * 48 * 1024


def test_shards_of_other_programs(tmp_path):
    """JPEG, folders in names, more files in a sample, headers of PAX as the `webdataset` package writes them; classes are the network's."""
    first = [("train/0001.jpg", picture((200, 0, 0), kind="JPEG")), ("train/0001.cls", b"1"), ("train/0001.json", b"{}")]
    second = [("train/0002.json", b"{}"), ("train/0002.cls", b"0\n"), ("train/0002.seg.txt", b""), ("train/0002.PNG", picture(7, "L"))]
    write_tar(tmp_path / "b.tar", second, format=tarfile.GNU_FORMAT)
    write_tar(tmp_path / "a.tar", first, format=tarfile.PAX_FORMAT)
    found = load_image_set(tmp_path, SPEC)
    assert found.labels.tolist() == [1, 0]
    assert found.images.shape == (2, 3, 4, 4)
    assert found.pixels()[1].unique().tolist() == [7]
    assert found.manifest == {"source": str(tmp_path), "images": 2}


@pytest.mark.parametrize("other", ["folder", "image"])
def test_tar_files_beside_images_are_no_set(tmp_path, other):
    """Such as the download that the folders were unpacked from."""
    write_tar(tmp_path / "download.tar", [("0.png", picture(1)), ("0.cls", b"0")])
    if other == "folder":
        (tmp_path / "ant").mkdir()
    picture_file = tmp_path / ("ant/0.png" if other == "folder" else "0.png")
    picture_file.write_bytes(picture((9, 9, 9)))
    assert shard_files(tmp_path) == []
    assert load_image_set(tmp_path).pixels().unique().tolist() == [9]


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([], "at least one image in its shards, got none"),
        ([("0.png", picture(1))], "must have an image and its class, got no file .cls of '0'"),
        ([("0.cls", b"1")], "must have an image and its class, got no image of '0'"),
        ([("0.png", picture(1)), ("0.cls", b"cat")], "'0.cls' must have the number of a class, got 'cat'"),
        ([("0.png", picture(1)), ("0.cls", b"-1")], "'0.cls' must have the number of a class, got '-1'"),
        ([("0.png", picture(1)), ("0.cls", b"1" * 21)], "'0.cls' must have the number of a class"),
        ([("0.png", picture(1)), ("0.cls", b"3000000000")], "'0.cls' must have the number of a class, got '3000000000'"),
        ([("0.png", picture(1)), ("0.jpg", picture(1)), ("0.cls", b"1")], "must have one image, got '0.png' and '0.jpg'"),
        ([("0.png", b"no image"), ("0.cls", b"1")], "image 0, must be an image in a format that Pillow supports"),
    ],
)
def test_samples_that_are_refused(tmp_path, members, words):
    write_tar(tmp_path / "0.tar", members)
    with pytest.raises(DataError) as error:
        load_image_set(tmp_path)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_an_image_of_another_size_is_refused_when_it_is_read(tmp_path):
    members = [("0.png", picture(1)), ("0.cls", b"0"), ("1.png", picture(1, size=(4, 5))), ("1.cls", b"0")]
    write_tar(tmp_path / "0.tar", members)
    images = load_image_set(tmp_path).images
    assert images[torch.tensor([0])].shape == (1, 3, 4, 4)
    with pytest.raises(DataError, match="images must have the size of the first one, 4 x 4 pixels, got 4 x 5"):
        images[torch.tensor([1])]


@pytest.mark.parametrize("damage", ["cut", "header", "no tar", "missing", "a folder", "fewer"])
def test_damaged_shards_are_refused(tmp_path, damage):
    files = write_set(tmp_path, pixels(5), 3)
    content = files[1].read_bytes()
    if damage == "cut":
        files[1].write_bytes(content[:700])
    elif damage == "header":
        files[1].write_bytes(content[:1024] + b"\xff" + content[1025:])
    elif damage == "no tar":
        files[1].write_bytes(b"no tar file " * 100)
    elif damage == "fewer":
        write_shard(files[1], 3, zip(pixels(1), [0]))
    else:
        files[1].unlink()
        if damage == "a folder":
            files[1].mkdir()
    with pytest.raises(DataError, match=r"images-000001\.tar.* must ") as error:
        load_image_set(tmp_path)
    assert "\n" not in str(error.value)


def test_a_shard_that_is_gone_when_it_is_read(tmp_path):
    files = write_set(tmp_path, pixels(5), 3)
    images = load_image_set(tmp_path).images
    files[1].unlink()
    assert len(images[torch.tensor([0, 2])]) == 2
    with pytest.raises(DataError, match=r"images-000001\.tar cannot be read any more"):
        images[torch.tensor([4])]


@pytest.mark.parametrize("stated", [{}, [], 3, [{}], [{"name": 3}], [{"name": "../a.tar", "images": 3}], [{"name": "a.png"}], ["a.tar"]])
def test_manifests_with_other_shards_are_refused(tmp_path, stated):
    write_set(tmp_path, pixels(3), 3)
    (tmp_path / "manifest.json").write_text(json.dumps({SHARDS: stated}), encoding="utf-8")
    with pytest.raises(DataError, match="shards in its manifest must be a list of shards with their names"):
        load_image_set(tmp_path)


def test_one_file_at_a_time_is_open(tmp_path, monkeypatch):
    files = write_set(tmp_path, pixels(9), 3)
    shards, opened = Shards(files, every_sample(files)), []
    usual = type(files[0]).open

    def counted(path, *arguments):
        assert all(file.closed for file in opened)
        opened.append(usual(path, *arguments))
        return opened[-1]

    monkeypatch.setattr(type(files[0]), "open", counted)
    assert np.array_equal(shards.read(np.array([8, 0, 4, 1])), pixels(9)[[8, 0, 4, 1]])
    assert [file.name for file in opened] == [str(path) for path in files]
    assert all(file.closed for file in opened)
