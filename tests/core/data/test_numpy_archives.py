"""Calibration sets: NumPy can read them, round trips are exact, and other files are refused in one sentence."""

import io
import json
import pickle
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch

from core.data import numpy_archives
from core.data.image_sets import load_image_set
from core.data.numpy_archives import read_numpy_archive, write_numpy_archive
from core.errors import DataError

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
MANIFEST = {"normalisation": {"mean": list(MEAN), "std": list(STD)}, "name": "ε"}
CLASSES = ("ant", "Bär", "../x")


def normalize(pixels, mean=MEAN, std=STD):
    return (pixels.float() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def some_pixels(count=5, size=4) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)


@pytest.fixture
def path(tmp_path):
    target = tmp_path / "set.npz"
    write_numpy_archive(target, some_pixels(), torch.arange(5) % 3, CLASSES, MANIFEST, normalize)
    return target


def arrays() -> dict:
    """The arrays of a valid file."""
    return {
        "images": normalize(some_pixels()).numpy(),
        "labels": np.arange(5) % 3,
        "classes": np.array(CLASSES),
        "manifest": np.array(json.dumps(MANIFEST)),
    }


def refused(path) -> str:
    with pytest.raises(DataError) as error:
        read_numpy_archive(path)
    message = str(error.value)
    assert str(path) in message
    assert "must" in message
    assert message.isprintable()
    return message


def test_numpy_reads_it_without_pickle(path):
    with np.load(path, allow_pickle=False) as archive:
        assert sorted(archive.files) == ["classes", "images", "labels", "manifest"]
        assert archive["images"].dtype == np.float32
        np.testing.assert_array_equal(archive["images"], normalize(some_pixels()).numpy())
        assert archive["labels"].dtype == np.int64
        assert archive["labels"].tolist() == [0, 1, 2, 0, 1]
        assert archive["classes"].tolist() == list(CLASSES)
        assert json.loads(archive["manifest"].item()) == MANIFEST


def test_round_trip(path):
    pixels, labels, manifest = read_numpy_archive(path)
    assert torch.equal(pixels, some_pixels())
    assert pixels.dtype == torch.uint8
    assert torch.equal(labels, torch.arange(5) % 3)
    assert labels.dtype == torch.int64
    assert manifest == MANIFEST


@pytest.mark.parametrize(("mean", "std"), [(MEAN, STD), ((0.5,) * 3, (0.5,) * 3), ((0.0,) * 3, (1.0,) * 3), ((0.9,) * 3, (1e-6,) * 3)])
def test_every_pixel_value_is_preserved(tmp_path, mean, std):
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    manifest = {"normalisation": {"mean": list(mean), "std": list(std)}}
    write_numpy_archive(
        tmp_path / "a.npz", pixels, torch.zeros(1, dtype=torch.long), CLASSES, manifest, lambda part: normalize(part, mean, std)
    )
    assert torch.equal(read_numpy_archive(tmp_path / "a.npz")[0], pixels)


def test_archive_in_several_parts(tmp_path, monkeypatch):
    """Part sizes that divide neither the set nor an image."""
    monkeypatch.setattr(numpy_archives, "_CHUNK", 100)
    write_numpy_archive(tmp_path / "a.npz", some_pixels(7, 5), torch.arange(7), CLASSES, MANIFEST, normalize)
    assert torch.equal(read_numpy_archive(tmp_path / "a.npz")[0], some_pixels(7, 5))
    np.testing.assert_array_equal(np.load(tmp_path / "a.npz")["images"], normalize(some_pixels(7, 5)).numpy())


def test_same_set_gives_the_same_bytes(tmp_path, path, monkeypatch):
    monkeypatch.setattr("time.time", lambda: 2e9)
    write_numpy_archive(tmp_path / "again.npz", some_pixels(), torch.arange(5) % 3, CLASSES, MANIFEST, normalize)
    assert (tmp_path / "again.npz").read_bytes() == path.read_bytes()


def test_normalization_that_loses_pixels_is_refused(tmp_path):
    manifest = {"normalisation": {"mean": [9e5] * 3, "std": [1.0] * 3}}
    with pytest.raises(DataError, match="must be those of values in .*900000.*lose pixels in float32"):
        write_numpy_archive(
            tmp_path / "a.npz", some_pixels(), torch.arange(5), CLASSES, manifest, lambda part: normalize(part, (9e5,) * 3, (1.0,) * 3)
        )


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_archives_saved_by_numpy_are_read(tmp_path, save):
    save(tmp_path / "b.npz", **arrays())
    assert torch.equal(read_numpy_archive(tmp_path / "b.npz")[0], some_pixels())


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("entry", ["images", "labels", "manifest"])
def test_pickled_array_is_refused(tmp_path, entry):
    made = np.empty(1, dtype=object)
    made[0] = Trap(tmp_path / "sprung")
    np.savez(tmp_path / "a.npz", allow_pickle=True, **(arrays() | {entry: made}))
    assert "'|O'" in refused(tmp_path / "a.npz")
    assert not (tmp_path / "sprung").exists()


def test_pickle_instead_of_an_array_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("images.npy", pickle.dumps(Trap(tmp_path / "sprung")))
        archive.writestr("manifest.npy", saved(arrays()["manifest"]))
    assert "array 'images' must be in NumPy's format" in refused(tmp_path / "a.npz")
    assert not (tmp_path / "sprung").exists()


def saved(array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


GOOD = arrays()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": GOOD["images"].astype(np.float64)}, "got '<f8' in row order"),
        ({"images": GOOD["images"].astype(">f4")}, "got '>f4' in row order"),
        ({"images": some_pixels().numpy()}, "got '|u1' in row order"),
        ({"images": np.asfortranarray(GOOD["images"])}, "in column order"),
        ({"images": GOOD["images"][0]}, "pixel values, got (3, 4, 4)"),
        ({"images": GOOD["images"][:, :1].repeat(5, 1)}, "pixel values, got (5, 5, 4, 4)"),
        ({"images": GOOD["images"][:0]}, "pixel values, got (0, 3, 4, 4)"),
        ({"images": GOOD["images"] * np.nan}, "got values that no pixel has"),
        ({"images": GOOD["images"] + np.inf}, "got values that no pixel has"),
        ({"images": GOOD["images"] + np.float32(3e38)}, "got values that no pixel has"),
        ({"images": GOOD["images"] + 5}, "got values that no pixel has"),
        ({"images": GOOD["images"] + np.float32(0.5 / 255 / 0.25)}, "got values that no pixel has"),
        ({"labels": GOOD["labels"].astype(np.int32)}, "got '<i4' in row order"),
        ({"labels": GOOD["labels"][:3]}, "shape of labels must be (5,), one for each image, got (3,)"),
        ({"labels": GOOD["labels"][None]}, "got (1, 5)"),
        ({"manifest": np.array(3)}, "got '<i8' in row order"),
        ({"manifest": np.array(["{}", "{}"])}, "got shape (2,)"),
        ({"manifest": np.array("{")}, "cannot be read"),
        ({"manifest": np.array("[" * 100_000)}, "too many nested brackets"),
        ({"manifest": np.array("[]")}, "must be a JSON object"),
        ({"manifest": np.array("{}")}, "each, got None"),
        ({"manifest": np.array('{"normalisation": {"mean": [0, 0, 0]}}')}, "each, got {'mean': [0, 0, 0]}"),
        ({"manifest": np.array('{"normalisation": {"mean": [0, 0, NaN], "std": [1, 1, 1]}}')}, "normalisation"),
        ({"manifest": np.array('{"normalisation": {"mean": [0, 0, 1e400], "std": [1, 1, 1]}}')}, "normalisation"),
        ({"manifest": np.array('{"normalisation": {"mean": [0, 0, true], "std": [1, 1, 1]}}')}, "normalisation"),
        ({"manifest": np.array('{"normalisation": [1, 2]}')}, "each, got [1, 2]"),
    ],
)
def test_wrong_arrays_are_refused(tmp_path, change, words):
    np.savez(tmp_path / "a.npz", **(GOOD | change))
    assert words in refused(tmp_path / "a.npz")


@pytest.mark.parametrize("entry", ["images", "labels", "manifest"])
def test_missing_array_is_refused(tmp_path, entry):
    np.savez(tmp_path / "a.npz", **{name: array for name, array in GOOD.items() if name != entry})
    assert f"array '{entry}' is missing" in refused(tmp_path / "a.npz")


def header_of(shape: str, kind="<f4", length=None) -> bytes:
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) if length is None else length) + text


@pytest.mark.parametrize(
    "start",
    [
        b"",
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff",
        b"\x93NUMPY\x01\x00\xff\xff",
        header_of("(5, 3, 4, 4)", length=20),
        header_of("(5, -3, 4, 4)"),
        header_of("(5, 3.0, 4, 4)"),
        header_of("__import__('os')"),
        header_of("(" * 90),
        header_of("(5, 3, 4, 4)", kind="<f4', 'x': '"),
        header_of("(5, 3, 4, 4)").replace(b"'shape'", b"'Shape'"),
    ],
)
def test_headers_that_numpy_does_not_write_are_refused(tmp_path, start):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("images.npy", start + bytes(960))
        archive.writestr("manifest.npy", saved(GOOD["manifest"]))
    assert "must be in NumPy's format" in refused(tmp_path / "a.npz")


@pytest.mark.parametrize("shape", ["(5, 3, 4, 5)", "(1000000, 3, 1024, 1024)", "(5, 3, 4)", "(" + "9" * 60 + ", 3, 4, 4)", "()"])
def test_shape_that_does_not_match_the_file_is_refused(tmp_path, shape):
    """The claimed size is never allocated."""
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("images.npy", header_of(shape) + bytes(960))
        archive.writestr("manifest.npy", saved(GOOD["manifest"]))
    tracemalloc.start()
    assert "must have as many bytes as its shape" in refused(tmp_path / "a.npz")
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


def test_zip_bomb_is_refused(tmp_path):
    """64 MB of zeros in 64 kB are refused because of their declared sizes, before anything is unpacked."""
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", header_of("(16, 3, 590, 590)") + bytes(16 * 3 * 590 * 590 * 4))
        archive.writestr("manifest.npy", saved(GOOD["manifest"]))
    tracemalloc.start()
    assert "ratio must be at most 200" in refused(tmp_path / "a.npz")
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


def test_more_pixels_than_allowed_are_refused(tmp_path, path, monkeypatch):
    monkeypatch.setattr(numpy_archives, "UNPACKED_BYTES", 100)
    assert "with 1 to 100 pixel values" in refused(path)
    with pytest.raises(DataError, match="at most 100 bytes of pixels, got 240"):
        write_numpy_archive(tmp_path / "b.npz", some_pixels(), torch.arange(5), CLASSES, MANIFEST, normalize)
    assert not (tmp_path / "b.npz").exists()


def test_manifest_that_is_too_long_is_refused(tmp_path, path, monkeypatch):
    monkeypatch.setattr(numpy_archives, "MANIFEST_BYTES", 200)
    assert "got shape ()" in refused(path)


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x05\x06" + bytes(18), b"\x93NUMPY", pickle.dumps({"images": 1})])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    refused(tmp_path / "a.npz")


def test_hostile_names_in_the_archive_are_refused(tmp_path, path):
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../../images.npy", b"")
    assert "leads elsewhere" in refused(path)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.99])
def test_truncated_archive_is_refused(path, part):
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    refused(path)


def test_damaged_archive(path):
    """With a byte changed anywhere, it is refused with DataError, or read unchanged if the byte does not matter."""
    content = path.read_bytes()
    good = read_numpy_archive(path)
    refusals = []
    for place in range(0, len(content), 3):
        damaged = bytearray(content)
        damaged[place] ^= 0x55
        path.write_bytes(bytes(damaged))
        try:
            pixels, labels, manifest = read_numpy_archive(path)
            assert (torch.equal(pixels, good[0]), torch.equal(labels, good[1]), manifest == good[2]) == (True, True, True)
        except DataError as error:
            refusals.append(str(error))
    assert len(refusals) > len(content) / 6
    assert all(message.isprintable() for message in refusals)


def test_unreadable_and_missing_files_are_refused(tmp_path):
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(DataError, match="cannot be read .*must be a .npz file"):
        read_numpy_archive(tmp_path / "folder.npz")
    with pytest.raises(DataError, match="must be .*.npz file .*does not exist: '.*none.npz'"):
        load_image_set(tmp_path / "none.npz")
