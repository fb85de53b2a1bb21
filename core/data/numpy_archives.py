"""Calibration sets: a NumPy archive (.npz) with the images as the network takes them, written and read without pickle, part by part.

`numpy.load(path)`, which refuses pickled arrays by default, reads every entry:

- `images`: float32 `(N, 3, H, W)`, normalised, because the readers of calibration sets feed to the network what they are given
- `labels`: int64 `(N,)`; `classes`: texts `(C,)`, the name of each label
- `manifest`: one text, a JSON object that says how the images were made and, in `normalisation`, by which mean and std

The pixels come back to the bit, as pixel = (image * std + mean) * 255. Nothing is compressed and no time is noted: the same set gives
the same bytes.
"""

import json
import math
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from core.data.archives import MEGABYTE, UNPACKED_BYTES, Member, open_zip
from core.errors import DataError, quoted

SUFFIX = ".npz"
ALLOWED = "a .npz file written by `export`"
MANIFEST_BYTES = 64 * MEGABYTE  # as a text of NumPy it has four bytes a character, and it has the names of all classes
_CHUNK = MEGABYTE
_VERSION = b"\x93NUMPY\x01\x00"
# as numpy.save writes it; a header that says anything else is not evaluated
_HEADER = re.compile(rb"\{'descr': '([^']{2,20})', 'fortran_order': (True|False), 'shape': \(([0-9, ]{0,200})\), \} *\n")


def write_numpy_archive(
    path: Path, pixels: Tensor, labels: Tensor, classes: Sequence[str], manifest: Mapping[str, Any], normalise: Callable[[Tensor], Tensor]
) -> None:
    """Writes a calibration set to `path`, in the memory of a few images besides those given.

    pixels: uint8 `(N, 3, H, W)`; labels: int64 `(N,)`. manifest: plain values, with {"normalisation": {"mean", "std"}}, three numbers
    each. normalise: pixels to what the network takes, by that mean and std.
    Raises DataError when there are more pixels than are read back, or they are lost in float32 because mean or std is extreme.
    """
    if pixels.numel() > UNPACKED_BYTES:
        raise DataError(f"the set has {pixels.numel():,} bytes of pixels: allowed are at most {UNPACKED_BYTES:,}")
    mean, std = _normalisation(manifest, path)
    texts = {"classes": np.array(classes, dtype=np.str_), "manifest": np.array(json.dumps(manifest))}
    if max(text.nbytes for text in texts.values()) > MANIFEST_BYTES - _CHUNK:
        raise DataError(f"the names of {len(classes):,} classes are too long: allowed are {MANIFEST_BYTES // MEGABYTE} MB of manifest")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        with _new_entry(archive, "images", "<f4", pixels.shape) as file:
            for part in pixels.split(_images_at_once(pixels.shape)):
                values = normalise(part).cpu().numpy().astype("<f4")
                back = _to_pixels(values, mean, std)
                if back is None or not np.array_equal(back, part.numpy()):
                    raise DataError(
                        f"mean {_three(mean)} and std {_three(std)} lose pixels in float32: allowed are those of values in [0, 1]"
                    )
                file.write(values.tobytes())
        with _new_entry(archive, "labels", "<i8", labels.shape) as file:
            file.write(labels.numpy().astype("<i8").tobytes())
        for name, text in texts.items():
            with _new_entry(archive, name, text.dtype.newbyteorder("<").str, text.shape) as file:
                file.write(text.astype(text.dtype.newbyteorder("<")).tobytes())


def read_numpy_archive(path: Path) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Pixels uint8 `(N, 3, H, W)`, labels int64 `(N,)` and manifest of a file written by `write_numpy_archive`.

    Raises DataError for any other file; sizes are checked before anything is unpacked, and no object is ever unpickled.
    """
    with open_zip(path, 4 * UNPACKED_BYTES + 2 * MANIFEST_BYTES, ALLOWED) as members:
        manifest = _read_manifest(members, path)
        mean, std = _normalisation(manifest, path)
        with _entry(members, "images", "<f4", path) as (shape, file):
            if len(shape) != 4 or shape[1] != 3 or not math.prod(shape) or math.prod(shape) > UNPACKED_BYTES:
                _refuse(
                    path, f"has images of shape {quoted(shape)}", f"(N, 3, H, W) with at least one pixel and at most {UNPACKED_BYTES:,}"
                )
            pixels = torch.empty(shape, dtype=torch.uint8)
            for part in pixels.split(_images_at_once(shape)):
                values = _to_pixels(np.frombuffer(_exactly(file, 4 * part.numel()), dtype="<f4").reshape(part.shape), mean, std)
                if values is None:
                    _refuse(path, "has values in images that no pixel has", "images normalised by the mean and std of its manifest")
                part.copy_(torch.from_numpy(values))
        with _entry(members, "labels", "<i8", path) as (lengths, file):
            if lengths != shape[:1]:
                _refuse(path, f"has labels of shape {quoted(lengths)}", f"{shape[:1]}, one for each image")
            labels = torch.from_numpy(np.frombuffer(_exactly(file, 8 * shape[0]), dtype="<i8").astype(np.int64))
    return pixels, labels, manifest


def _images_at_once(shape: Sequence[int]) -> int:
    return max(1, _CHUNK // math.prod(shape[1:]))


def _to_pixels(values: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray | None:
    """The pixels, uint8, that were normalised to `values`; None where a value is not near any."""
    with np.errstate(over="ignore", invalid="ignore"):
        exact = (values * std + mean) * 255
        nearest = np.rint(exact)
        # false for what is not finite
        fits = (np.abs(exact - nearest) < 0.25) & (nearest >= 0) & (nearest <= 255)
    return nearest.astype(np.uint8) if fits.all() else None


def _normalisation(manifest: Mapping[str, Any], path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the channels, float64 `(3, 1, 1)`. Raises DataError."""
    constants = manifest.get("normalisation")
    both = [constants.get(key) if isinstance(constants, Mapping) else None for key in ("mean", "std")]
    for values in both:
        # the bound is for NaN and infinity
        if not isinstance(values, list) or len(values) != 3 or not all(type(one) in (int, float) and abs(one) < 1e6 for one in values):
            _refuse(path, f"has normalisation {quoted(constants)} in its manifest", "mean and std, three finite numbers each")
    mean, std = (np.array(values, dtype=np.float64).reshape(3, 1, 1) for values in both)
    return mean, std


def _three(values: np.ndarray) -> str:
    return ", ".join(f"{value:g}" for value in values.flat)


def _read_manifest(members: Mapping[str, Member], path: Path) -> dict[str, Any]:
    with _entry(members, "manifest", "<U", path) as (shape, file):
        size = members["manifest.npy"].size
        if shape or size > MANIFEST_BYTES:
            _refuse(path, f"has a manifest of shape {quoted(shape)} and {size:,} bytes", f"one text of at most {MANIFEST_BYTES:,} bytes")
        text = _exactly(file, size - file.tell()).decode("utf-32-le").rstrip("\0")
    try:
        manifest = json.loads(text)
    except RecursionError as error:
        raise DataError(f"{str(path)!r} has a manifest with too many brackets: allowed is {ALLOWED}") from error
    if not isinstance(manifest, dict):
        _refuse(path, "has a manifest that is no JSON object", ALLOWED)
    return manifest


# the entries: a header of 128 bytes or so, then the array as it lies in memory


@contextmanager
def _new_entry(archive: zipfile.ZipFile, name: str, kind: str, shape: Sequence[int]) -> Iterator[IO[bytes]]:
    info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
    info.create_system, info.external_attr = 3, 0o644 << 16  # as on Unix, wherever it is written
    with archive.open(info, "w", force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": tuple(shape)})
        yield file


@contextmanager
def _entry(members: Mapping[str, Member], name: str, kind: str, path: Path) -> Iterator[tuple[tuple[int, ...], IO[bytes]]]:
    """Shape, and the file where the values begin, which are as many as both the header and the archive say. kind: as `dtype.str`."""
    member = members.get(f"{name}.npy")
    if member is None:
        _refuse(path, f"has no array {name!r}", ALLOWED)
    with member.open() as file:
        start = file.read(len(_VERSION) + 2)
        header = _HEADER.fullmatch(file.read(int.from_bytes(start[-2:], "little"))) if start.startswith(_VERSION) else None
        if header is None:
            _refuse(path, f"has an array {name!r} that does not begin as NumPy's do", ALLOWED)
        found, shape = header[1].decode("ascii", "replace"), tuple(int(one) for one in header[3].replace(b" ", b"").split(b",") if one)
        fits = re.fullmatch(kind + "[0-9]{1,9}", found) if kind == "<U" else found == kind
        if not fits or header[2] == b"True":
            _refuse(path, f"has an array {name!r} of type {quoted(found)}{', by columns' * (header[2] == b'True')}", f"{kind}, by rows")
        width = 4 * int(found[2:]) if kind == "<U" else int(found[2:])
        if len(start) + len(header[0]) + width * math.prod(shape) != member.size:
            _refuse(path, f"has an array {name!r} of shape {quoted(shape)} in {member.size:,} bytes", "as many bytes as the shape needs")
        yield shape, file
        if file.read(1):
            raise EOFError(f"{name} does not end where it should")


def _exactly(file: IO[bytes], count: int) -> bytes:
    """The next `count` bytes, read in small pieces. Raises EOFError when there are fewer."""
    pieces = []
    while count:
        pieces.append(file.read(min(count, _CHUNK)))
        if not pieces[-1]:
            raise EOFError("an array ends too early")
        count -= len(pieces[-1])
    return b"".join(pieces)


def _refuse(path: Path, what: str, allowed: str) -> NoReturn:
    raise DataError(f"{str(path)!r} {what}: allowed is {allowed}")
