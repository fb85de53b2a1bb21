"""Untrusted archives: valid ones are unpacked completely; all others are refused in one sentence and leave no files."""

import io
import json
import os
import sys
import tarfile
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from core.data.archives import is_archive, unpack_apart, unpack_data_set, unpack_images
from core.data.image_sets import load_image_set
from core.errors import DataError
from core.files import remove
from core.models.registry import MODELS
from core.untrusted import MEMORY_BYTES

SPEC = MODELS["resnet20_cifar10"][1]


def picture(value=0, size=(8, 8), kind="PNG", mode="RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, (value,) * 3 if mode == "RGB" else value).save(buffer, format=kind)
    return buffer.getvalue()


TWO_CLASSES = {"ant/a.png": picture(10), "ant/b.png": picture(20), "bee/c.png": picture(30)}


def zipped(files, compression=zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name) if isinstance(name, str) else name, content, compression)
    return buffer.getvalue()


def tarred(files, mode) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            info.size = len(content) if info.isreg() else 0
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    """An empty folder, alone in its parent, where no other file may appear."""
    target = tmp_path / "around" / "images"
    target.mkdir(parents=True)
    return target


def refused(content, folder, name="own images.zip") -> str:
    with pytest.raises(DataError) as caught:
        unpack_images(io.BytesIO(content), folder, name)
    assert os.listdir(folder) == []
    assert os.listdir(folder.parent) == ["images"]
    message = str(caught.value)
    assert message.isprintable()
    assert name in message
    assert "must" in message
    assert len(message) < 500
    return message


# valid archives


@pytest.mark.parametrize("top", ["", "my pets/", "./"])
def test_one_folder_per_class(folder, top):
    assert unpack_images(io.BytesIO(zipped({top + name: content for name, content in TWO_CLASSES.items()})), folder) == 3
    inside = folder / top.strip("./")
    assert sorted(str(path.relative_to(inside)) for path in folder.rglob("*.*")) == ["ant/a.png", "ant/b.png", "bee/c.png"]
    images = load_image_set(folder)
    assert images.images[:, 0, 0, 0].tolist() == [10, 20, 30]
    assert images.labels.tolist() == [0, 0, 1]


def test_formats_and_modes_of_pillow(folder):
    deep = io.BytesIO()
    Image.fromarray(np.full((8, 8), 40 * 257, dtype=np.uint16)).save(deep, format="TIFF")
    files = {
        "ant/a.gif": picture(10, kind="GIF"),
        "ant/b.JFIF": picture(20, kind="JPEG"),
        "ant/c.png": picture(30, kind="WEBP"),
        "bee/d.tif": deep.getvalue(),
    }
    assert unpack_images(io.BytesIO(zipped(files)), folder) == 4
    assert load_image_set(folder).images[:, 1, 0, 0].tolist() == pytest.approx([10, 20, 30, 40], abs=1)


@pytest.mark.parametrize("top", ["", "mi-fgsm/"])
def test_set_written_by_generate(folder, top):
    images = torch.arange(2 * 3 * 8 * 8).reshape(2, 3, 8, 8).to(torch.uint8)
    tensors = save({"images": images, "labels": torch.tensor([1, 0])})
    assert unpack_images(io.BytesIO(zipped({top + "images.safetensors": tensors, top + "manifest.json": b'{"a": 1}'})), folder) == 2
    back = load_image_set(folder)
    assert torch.equal(back.images, images)
    assert (back.labels.tolist(), back.manifest) == ([1, 0], {"a": 1})


@pytest.mark.parametrize("top", ["", "a-run/"])
def test_set_written_by_export(folder, top):
    manifest = {"folders": {"bee": 1, "ant": 0}, "images": 3, "optimizer": "adam"}
    files = {"bee/000000.png": picture(1), "ant/000002.png": picture(3), "bee/000001.png": picture(2)}
    packed = {top + name: content for name, content in {**files, "manifest.json": json.dumps(manifest).encode()}.items()}
    assert unpack_images(io.BytesIO(zipped(packed)), folder) == 3
    image_set = load_image_set(folder)
    assert image_set.images[:, 0, 0, 0].tolist() == [1, 2, 3]  # in the order of their numbers, not of the archive
    assert image_set.labels.tolist() == [1, 1, 0]
    assert image_set.manifest["optimizer"] == "adam"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"ant/000000.png": picture(), "ant/manifest.json": b"{}"}, ["'ant/manifest.json'", "must be beside the folders"]),
        ({"ant/first.png": picture(), "manifest.json": b"{}"}, ["'ant/first.png'", "must be numbered"]),
        ({"ant/000000.png": picture(), "manifest.json": b"[]"}, ["must be a JSON object"]),
        ({"ant/000000.png": picture(), "manifest.json": b"{"}, ["cannot be read"]),
        ({"ant/000000.png": picture(), "manifest.json": b"{}", "ant/../../manifest.json": b"{}"}, [".."]),
        ({"000000.png": picture(), "manifest.json": b"{}"}, ["must be beside the folders"]),
        ({"a/b/ant/000000.png": picture(), "a/b/manifest.json": b"{}"}, ["must be beside the folders"]),
        ({"ant/000000.sh": b"#!/bin/sh", "ant/000001.png": picture(), "manifest.json": b"{}"}, ["'ant/000000.sh'", "must be numbered"]),
        ({"ant/000000.png": picture()[:40], "manifest.json": b"{}"}, ["ant/000000.png must be an image"]),
    ],
)
def test_invalid_exported_sets_are_refused(folder, files, words):
    with pytest.raises(DataError) as caught:
        unpack_images(io.BytesIO(zipped(files)), folder, "a.zip")
    for word in ["a.zip", *words]:
        assert word in str(caught.value)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(("suffix", "kind"), [("png", "PNG"), ("JPG", "JPEG"), ("jpeg", "JPEG"), ("bmp", "BMP"), ("webp", "WEBP")])
def test_files_of_every_format_keep_their_bytes(folder, suffix, kind):
    content = picture(77, kind=kind)
    unpack_images(io.BytesIO(zipped({f"ant/a.{suffix}": content})), folder)
    (file,) = folder.rglob("*.*")
    assert file.read_bytes() == content
    assert len(load_image_set(folder)) == 1


def test_path_of_an_archive_on_disk(tmp_path, folder):
    (tmp_path / "a.zip").write_bytes(zipped(TWO_CLASSES))
    assert unpack_images(tmp_path / "a.zip", folder) == 3
    with pytest.raises(DataError, match=r"none\.zip' cannot be read .*; it must be"):
        unpack_images(tmp_path / "none.zip", folder / "ant")


def test_load_image_set_accepts_an_archive(tmp_path):
    (tmp_path / "a.zip").write_bytes(zipped(TWO_CLASSES))
    images = load_image_set(tmp_path / "a.zip")
    assert images.labels.tolist() == [0, 0, 1]
    assert images.manifest["source"] == str(tmp_path / "a.zip")
    (tmp_path / "b.zip").write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"b\.zip': must be a zip file .* begins with b'no archi'"):
        load_image_set(tmp_path / "b.zip")
    with pytest.raises(DataError, match="a path that does not exist"):
        load_image_set(tmp_path / "none.zip")


@pytest.mark.parametrize("name", ["a.zip", "A.ZIP"])
def test_is_archive(tmp_path, name):
    assert is_archive(tmp_path / name)
    assert not is_archive(tmp_path / f"{name}.png")


def test_files_added_by_operating_systems_are_skipped(folder):
    litter = {"__MACOSX/ant/._a.png": b"x", "ant/.DS_Store": b"x", "Thumbs.db": b"x", "ant/._b.png": b"x"}
    assert unpack_images(io.BytesIO(zipped({**litter, **TWO_CLASSES})), folder) == 3
    assert len(list(folder.rglob("*.*"))) == 3


def test_folder_entries_in_a_zip_are_allowed(folder):
    assert unpack_images(io.BytesIO(zipped({"pets/": b"", "pets/ant/": b"", "pets/ant/a.png": picture()})), folder) == 1


# damaged archives and other files


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_tar_is_refused(folder, tmp_path, mode):
    content = tarred(TWO_CLASSES, mode)
    message = refused(content, folder, "own images.tar.gz")
    assert "must be a zip file with one folder of images per class" in message
    assert "unpacked to a folder first" in message
    (tmp_path / "a.tar.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"images must be a folder .*a \.zip file .*got another file: '.*a\.tar\.gz'"):
        load_image_set(tmp_path / "a.tar.gz")


@pytest.mark.parametrize("content", [b"", b"x", b"GIF89a" + bytes(600), b"7z\xbc\xaf\x27\x1c" + bytes(600), b"\xfd7zXZ\x00" + bytes(600)])
def test_other_files_are_refused(folder, content):
    assert "begins with" in refused(content, folder)


@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_truncated_zip_is_refused(folder, part):
    content = zipped({name: os.urandom(3000) for name in TWO_CLASSES})
    assert refused(content[: int(part * len(content))], folder)


def test_damaged_zip(folder):
    """With a byte changed anywhere, it is refused with DataError, or unpacked if the byte does not matter."""
    content = zipped(TWO_CLASSES)
    refusals, left = [], []
    for place in range(0, min(len(content), 3000), 7):
        damaged = bytearray(content)
        damaged[place] ^= 0x55
        try:
            unpack_images(io.BytesIO(bytes(damaged)), folder, "a")
        except DataError as error:
            refusals.append(str(error))
            left += os.listdir(folder)
        for path in list(folder.iterdir()):
            remove(path)
    assert len(refusals) > 10
    assert all(message.isprintable() for message in refusals)
    assert left == []


def test_encrypted_zip_is_refused(folder):
    content = bytearray(zipped(TWO_CLASSES))
    content[content.index(b"PK\x01\x02") + 8] |= 1
    assert "must not be encrypted" in refused(bytes(content), folder)


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compression_methods_that_need_much_memory_are_refused(folder, compression):
    assert "compression method must be" in refused(zipped(TWO_CLASSES, compression), folder)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"Thumbs.db": b"x"}, "got no images"),
        ({"a.png": picture()}, "labels are needed here"),
        ({"ant/notes.txt": b"text"}, "must contain one folder of images per class"),
        ({"ant/more.zip": zipped(TWO_CLASSES)}, "must contain one folder of images per class"),
        ({"ant/a.svg": b"<svg onload=alert(1)>"}, "must contain one folder of images per class"),
        ({".hidden/a.png": picture()}, "must contain one folder of images per class"),
        ({"ant/a.png": b"no image at all"}, "must be an image"),
        ({"ant/a.png": picture()[:40]}, "must be an image"),
        ({"ant/a.png": picture(), "ant/b.png": picture(size=(9, 8))}, "8 x 8 and 9 x 8"),
    ],
)
def test_invalid_contents_are_refused(folder, files, words):
    assert words in refused(zipped(files), folder)


LAYOUTS = {
    "one folder above": {f"pets/{name}": content for name, content in TWO_CLASSES.items()},
    "nested": {"ant/one/a.png": picture(10), "ant/two/b.png": picture(20), "bee/c.png": picture(30)},
    "parts": {
        **{f"train/{name}": content for name, content in TWO_CLASSES.items()},
        "val/ant/a.png": picture(),
        "val/bee/b.png": picture(),
    },
    "a list": {"a.png": picture(10), "b c.png": picture(20), "c.png": picture(30), "val.txt": b"a.png ant\nb c.png ant\nc.png bee\n"},
    "with other files": {"notes.txt": b"x", "ant/a.xml": b"<a/>", "cow/": b"", **TWO_CLASSES},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_are_those_of_folders(tmp_path, folder, layout):
    """A zip file gives what the folder gives that it was made of."""
    content = zipped(LAYOUTS[layout])
    assert unpack_images(io.BytesIO(content), folder) >= 3
    (tmp_path / "a.zip").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        archive.extractall(tmp_path / "a")
    ours, expected = (load_image_set(tmp_path / name, replace(SPEC, classes=("ant", "bee"))) for name in ("a.zip", "a"))
    assert torch.equal(ours.images, expected.images)
    assert ours.images[:, 0, 0, 0].tolist() == [10, 20, 30]
    assert torch.equal(ours.labels, expected.labels)
    assert ours.notes == [note.replace(str(tmp_path / "a"), str(tmp_path / "a.zip")) for note in expected.notes]
    assert list(folder.rglob("*.xml")) == list(folder.rglob("notes.txt")) == []


def test_images_without_labels_are_read_where_none_are_needed(tmp_path):
    (tmp_path / "a.zip").write_bytes(zipped({"a.png": picture(1), "b.png": picture(2)}))
    assert load_image_set(tmp_path / "a.zip").labels.tolist() == [0, 1]
    with pytest.raises(DataError, match=r"a\.zip.* because labels are needed here") as caught:
        load_image_set(tmp_path / "a.zip", SPEC)
    assert "data-free-quantization-" not in str(caught.value)


def test_damaged_images_are_skipped_as_in_folders(tmp_path):
    files = {f"ant/{index:03}.png": picture(index) for index in range(200)} | {"bee/x.png": picture()[:40]}
    (tmp_path / "a.zip").write_bytes(zipped({**files, "bee/y.png": picture()}))
    images = load_image_set(tmp_path / "a.zip")
    assert len(images) == 201
    assert images.notes == [f"1 of 202 images of {tmp_path / 'a.zip'} cannot be read and are skipped: 'x.png'."]
    with pytest.raises(DataError, match=r"a\.zip.*x\.png must be an image"):
        load_image_set(tmp_path / "a.zip", strict=True)


def some_set(**changes) -> dict[str, bytes]:
    tensors = {"images": torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "labels": torch.zeros(2, dtype=torch.long), **changes}
    return {"images.safetensors": save({k: v for k, v in tensors.items() if v is not None}), "manifest.json": b"{}"}


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({**some_set(), "more.txt": b"x"}, "nothing else"),
        ({"images.safetensors": b"x"}, "nothing else"),
        ({f"a/b/{name}": content for name, content in some_set().items()}, "nothing else"),
        ({**some_set(), "images.safetensors": b"garbage"}, "cannot be read as one"),
        ({**some_set(), "images.safetensors": b"\xff" * 100}, "cannot be read as one"),
        ({**some_set(), "manifest.json": b"[]"}, "must be a JSON object"),
        ({**some_set(), "manifest.json": b"\xff"}, "cannot be read as one"),
        ({**some_set(), "manifest.json": b"[" * 100_000}, "cannot be read as one"),
        (some_set(images=torch.zeros(2, 3, 8, 8)), "F32"),
        (some_set(images=torch.zeros(2, 5, 8, 8, dtype=torch.uint8)), "(2, 5, 8, 8)"),
        (some_set(images=torch.zeros(0, 3, 8, 8, dtype=torch.uint8), labels=torch.zeros(0, dtype=torch.long)), "(0, 3, 8, 8)"),
        (some_set(labels=torch.zeros(3, dtype=torch.long)), "tensors in images.safetensors must be"),
        (some_set(labels=None), "tensors in images.safetensors must be"),
        (some_set(more=torch.zeros(1)), "tensors in images.safetensors must be"),
    ],
)
def test_invalid_sets_are_refused(folder, files, words):
    assert words in refused(zipped(files, zipfile.ZIP_STORED), folder)


def test_manifest_that_is_too_large_is_refused(folder):
    files = {**some_set(), "manifest.json": json.dumps({"a": os.urandom(600_000).hex()}).encode()}
    assert "must be at most 1,048,576 bytes" in refused(zipped(files), folder)


def test_full_disk_is_not_reported_as_a_bad_archive(folder, monkeypatch):
    def fails(self, mode):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.open", fails)
    with pytest.raises(OSError, match="No space left"):
        unpack_images(io.BytesIO(zipped(TWO_CLASSES)), folder)
    assert os.listdir(folder) == []


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured there")
def test_checking_large_images_takes_little_memory(tmp_path, children):
    """Ten black images of 4096 x 4096 pixels, each 48 MB of pixels in a file of 50 kB."""
    (tmp_path / "small.zip").write_bytes(zipped({"ant/a.png": picture()}))
    (tmp_path / "large.zip").write_bytes(zipped({f"ant/{index}.png": picture(size=(4096, 4096)) for index in range(10)}))
    peaks = []
    for name in ("small", "large"):
        (tmp_path / name).mkdir()
        unpack_apart(tmp_path / f"{name}.zip", tmp_path / name)
        peaks.append(children.peak())
    assert len(list((tmp_path / "large" / "ant").iterdir())) == 10
    assert 0 < peaks[0] < peaks[1] < peaks[0] + MEMORY_BYTES


def test_refused_archive_is_named_in_a_process_of_its_own(tmp_path):
    (tmp_path / "a.zip").write_bytes(zipped({"../a.png": picture()}))
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="^'mine.zip': paths must stay inside the zip file"):
        unpack_apart(tmp_path / "a.zip", tmp_path / "out", "mine.zip")


# data sets in any layout


def test_data_set_is_unpacked_under_its_own_names(tmp_path):
    files = {
        "set/val/b é.PNG": picture(1),
        "set/val.txt": b"\xef\xbb\xbfb \xc3\xa9.PNG 0",
        "set/classes.json": b"{}",
        "set/run.sh": b"#!/bin/sh",
        "set/manifest.json": b"{}",
    }
    (tmp_path / "a.zip").write_bytes(zipped({**files, zipfile.ZipInfo("set/empty/"): b""}))
    (tmp_path / "out").mkdir()
    unpack_data_set(tmp_path / "a.zip", tmp_path / "out")
    found = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*"))
    assert found == ["set", "set/classes.json", "set/empty", "set/val", "set/val.txt", "set/val/b é.PNG"]
    assert (tmp_path / "out/set/val/b é.PNG").read_bytes() == files["set/val/b é.PNG"]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"../a.png": picture()}, "must stay inside"),
        ({"/a.png": picture()}, "must be relative"),
        ({"a/../../a.png": picture()}, "must stay inside"),
        ({"a.png": picture(), "a.png/b.png": picture()}, "none both a file and a folder, got 'a.png'"),
        ({"a.png": picture(), "a.png/b/c.png": picture()}, "none both a file and a folder, got 'a.png/b'"),
        ({"val.txt": bytes(10 << 20)}, "compression ratio"),
    ],
)
def test_data_set_that_leads_elsewhere_or_is_a_bomb_is_refused(tmp_path, files, words):
    (tmp_path / "a.zip").write_bytes(zipped(files))
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError) as caught:
        unpack_data_set(tmp_path / "a.zip", tmp_path / "out")
    assert words in str(caught.value)
    assert "a.zip" in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"a.zip", "out"}
