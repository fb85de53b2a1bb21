"""Folders of PNG files: untrusted names never lead outside, and pixels, labels and order are preserved."""

import json
import os
import struct
import zlib
from pathlib import PurePosixPath, PureWindowsPath

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from core.data import class_folders
from core.data.class_folders import folder_names, read_class_folders, write_class_folders
from core.data.image_sets import load_image_set
from core.errors import DataError

CLASSES = ("cat", "dog", "great white shark, white shark", "cup")
LABELS = torch.tensor([3, 0, 2, 0, 3, 2, 0])  # no dog


def some_pixels(count=7, height=4, width=5) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, height, width), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)


def write(folder, classes=CLASSES) -> None:
    manifest = write_class_folders(folder, some_pixels(), LABELS, classes)
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def change(folder, **values) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")


def refused(path) -> str:
    with pytest.raises(DataError) as error:
        load_image_set(path)
    message = str(error.value)
    assert str(path) in message
    assert "must" in message
    assert message.isprintable()
    return message


def test_round_trip(tmp_path):
    write(tmp_path)
    images = load_image_set(tmp_path)
    assert torch.equal(images.images, some_pixels())
    assert images.images.dtype == torch.uint8
    assert torch.equal(images.labels, LABELS)
    assert images.labels.dtype == torch.int64
    assert images.manifest["images"] == 7


def test_files_and_folders(tmp_path):
    write(tmp_path)
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png"))
    assert found == [
        "cat/000001.png", "cat/000003.png", "cat/000006.png", "cup/000000.png", "cup/000004.png",
        "great white shark, white shark/000002.png", "great white shark, white shark/000005.png",
    ]  # fmt: skip
    assert json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))["folders"] == {
        "cat": 0,
        "great white shark, white shark": 2,
        "cup": 3,
    }


def test_torchvision_reads_the_same_pixels(tmp_path):
    write(tmp_path)
    (tmp_path / "manifest.json").unlink()
    dataset = ImageFolder(str(tmp_path))
    expected = [1, 3, 6, 0, 4, 2, 5]
    for (image, label), number in zip(dataset, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(image).transpose(2, 0, 1), some_pixels()[number].numpy())
        assert dataset.classes[label] == CLASSES[LABELS[number]]


def test_same_set_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write(tmp_path / name)
    names = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*"))
    assert len(names) == 8
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_channels_last_images(tmp_path):
    (tmp_path / "a").mkdir()
    pixels = some_pixels().contiguous(memory_format=torch.channels_last)
    manifest = write_class_folders(tmp_path / "a", pixels, LABELS, CLASSES)
    assert torch.equal(read_class_folders(tmp_path / "a", manifest)[0], some_pixels())


@pytest.mark.parametrize("classes", [("cat", "dog"), CLASSES, ("Müller's", "jack-o'-lantern"), ("猫", "犬"), ("tank (car)", "3")])
def test_plain_class_names_are_kept(classes):
    assert folder_names(classes) == list(classes)


HOSTILE = (
    "../x", "/etc", "..", ".", "", " ", "a/b", "a\\b", "C:", "a\0b", "a\nb", "manifest.json", ".hidden", "-rf", "~", "con", "LPT1", "a.",
    "a ", "\u202eabc", "<b>", "x" * 61, "x" * 300, "\ud800", "e\u0301", "images.safetensors", "*", "'", "$(id)", "%2e%2e",
)  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_name(tmp_path, name):
    """It becomes one plain folder name, which the manifest maps to the class; no file is written outside the folder."""
    folder = tmp_path / "around" / "set"
    folder.mkdir(parents=True)
    write(folder, classes=(name, "dog", "cup", "cat"))
    for found in folder_names((name, "dog")):
        assert len(PurePosixPath(found).parts) == len(PureWindowsPath(found).parts) == 1
        assert class_folders._is_plain(found)
        assert len(os.fsencode(found)) <= 255
    assert torch.equal(load_image_set(folder).labels, LABELS)
    assert sorted(os.listdir(tmp_path)) == ["around"]
    assert os.listdir(tmp_path / "around") == ["set"]
    assert len(os.listdir(folder)) == 4


def test_folders_of_hostile_names_are_unique_and_in_order():
    names = folder_names(HOSTILE)
    assert len(set(names)) == len(HOSTILE)
    assert len({name.casefold() for name in names}) == len(HOSTILE)
    assert names == sorted(names)


@pytest.mark.parametrize("classes", [("crane", "crane"), ("Crane", "crane"), ("\ufb01n", "fin")])
def test_names_that_coincide_on_some_file_systems_are_numbered(classes):
    names = folder_names(classes)
    assert [name[:2] for name in names] == ["0_", "1_"]


def test_numbers_are_zero_padded_class_indices():
    names = folder_names([f"a/{number}" for number in range(11)])
    assert names[10] == "10_a_10"
    assert names[2] == "02_a_2"


@pytest.mark.parametrize(
    "folders",
    [
        {"../set/cat": 0, "cup": 3, "great white shark, white shark": 2},
        {"/etc": 0},
        {"..": 0},
        {"": 0},
        {".": 0},
        {"a\0b": 0},
        {"x" * 400: 0},
        {"cat": "0"},
        {"cat": True},
        {"cat": -1},
        {"cat": 1 << 63},
        {"cat": 0.0},
        {"cat": None},
        ["cat"],
        "cat",
        None,
        {},
    ],
)
def test_invalid_folders_in_the_manifest_are_refused(tmp_path, folders):
    (tmp_path / "set").mkdir()
    write(tmp_path / "set")
    change(tmp_path / "set", folders=folders)
    refused(tmp_path / "set")


@pytest.mark.parametrize("images", [None, 6, 8, 0, -7, 10**12, True, "7", 7.0])
def test_wrong_count_in_the_manifest_is_refused(tmp_path, images):
    write(tmp_path)
    change(tmp_path, images=images)
    assert "got 7 images" in refused(tmp_path)


def test_missing_folder_is_refused(tmp_path):
    write(tmp_path)
    change(tmp_path, folders={"cat": 0, "cup": 3, "great white shark, white shark": 2, "dog": 1})
    assert "No such file" in refused(tmp_path)


def test_folder_missing_from_the_manifest_is_refused(tmp_path):
    write(tmp_path)
    (tmp_path / "dog").mkdir()
    assert "must be in its manifest" in refused(tmp_path)


def test_missing_file_is_refused(tmp_path):
    write(tmp_path)
    (tmp_path / "cat" / "000003.png").unlink()
    assert "in its manifest (7), got 6 images" in refused(tmp_path)


@pytest.mark.parametrize("name", ["0.png", "000000.png", "0000001.png", "000007.jpg", "mine.png", "Thumbs.db"])
def test_file_with_another_name_or_number_is_refused(tmp_path, name):
    write(tmp_path)
    (tmp_path / "cat" / "000001.png").rename(tmp_path / "cat" / name)
    refused(tmp_path)


def test_gap_in_the_numbers_is_refused(tmp_path):
    write(tmp_path)
    (tmp_path / "cat" / "000001.png").rename(tmp_path / "cat" / "000007.png")
    assert "got 7 images" in refused(tmp_path)


def test_hidden_files_are_ignored(tmp_path):
    write(tmp_path)
    (tmp_path / ".DS_Store").write_text("x", encoding="utf-8")
    (tmp_path / "cat" / "._000001.png").write_text("x", encoding="utf-8")
    (tmp_path / ".git").mkdir()
    assert len(load_image_set(tmp_path)) == 7


def test_pipe_is_never_opened(tmp_path):
    write(tmp_path)
    (tmp_path / "cat" / "000001.png").unlink()
    os.mkfifo(tmp_path / "cat" / "000001.png")
    refused(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n"])
@pytest.mark.parametrize("name", ["cup/000000.png", "cat/000006.png"])
def test_file_that_is_not_an_image_is_refused(tmp_path, name, content):
    write(tmp_path)
    (tmp_path / name).write_bytes(content)
    assert "must be a PNG image" in refused(tmp_path)


@pytest.mark.parametrize(
    ("mode", "size", "kind"), [("RGB", (5, 5), "PNG"), ("L", (5, 4), "PNG"), ("RGBA", (5, 4), "PNG"), ("RGB", (5, 4), "BMP")]
)
def test_image_that_differs_from_the_others_is_refused(tmp_path, mode, size, kind):
    write(tmp_path)
    Image.new(mode, size).save(tmp_path / "cat" / "000006.png", format=kind)
    refused(tmp_path)


def png_of(width: int, height: int) -> bytes:
    """A PNG that claims this size and has no pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(5000, 5000), (1 << 30, 1 << 30), (1 << 20, 17)])
def test_image_that_claims_to_be_huge_is_refused(tmp_path, width, height):
    write(tmp_path)
    (tmp_path / "cup" / "000000.png").write_bytes(png_of(width, height))
    refused(tmp_path)


def test_more_pixels_than_allowed_are_refused(tmp_path, monkeypatch):
    write(tmp_path)
    monkeypatch.setattr(class_folders, "UNPACKED_BYTES", 7 * 60 - 1)
    assert "7 images of 5 x 4 pixels" in refused(tmp_path)
    monkeypatch.setattr(class_folders, "UNPACKED_BYTES", 7 * 60)
    assert len(load_image_set(tmp_path)) == 7


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("LA", 2), ("RGB", 3), ("RGBA", 4)])
def test_files_have_the_channels_of_the_images(tmp_path, mode, channels):
    pixels = torch.randint(0, 256, (6, channels, 5, 7), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    manifest = write_class_folders(tmp_path, pixels, torch.arange(6) % 2, ["a", "b"])
    with Image.open(tmp_path / "a" / "000000.png") as image:
        assert (image.mode, image.size) == (mode, (7, 5))
    read, labels = read_class_folders(tmp_path, manifest)
    assert torch.equal(read, pixels)
    assert torch.equal(labels, torch.arange(6) % 2)


@pytest.mark.parametrize("mode", ["P", "1", "I;16"])
def test_files_of_other_kinds_are_refused(tmp_path, mode):
    manifest = write_class_folders(tmp_path, torch.zeros(1, 1, 4, 5, dtype=torch.uint8), torch.zeros(1, dtype=torch.long), ["a"])
    Image.new(mode, (5, 4)).save(tmp_path / "a" / "000000.png")
    with pytest.raises(DataError, match=f"must have one of the modes L, LA, RGB, RGBA, got {mode}$"):
        read_class_folders(tmp_path, manifest)
