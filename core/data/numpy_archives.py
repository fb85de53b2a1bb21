"""Calibration sets: NumPy archives (.npz) with normalized images, written and read without pickle, in parts.

`numpy.load(path)`, which refuses pickled arrays by default, reads every entry:

- `images`: float32 `(N, 1 to 4, H, W)`, normalized, because tools feed calibration images to the network as they are
- `labels`: int64 `(N,)`; `classes`: strings `(C,)`, the name of each class
- `manifest`: a string with a JSON object, which describes how the images were generated; its `normalisation` contains mean and std

The pixels are recovered exactly, as pixel = (image * std + mean) * 255. The files are uncompressed and have no time stamps, so the same
set always gives the same bytes.
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

from core.channels import MODES
from core.data.manifests import parse_manifest
from core.data.sharded_images import Images
from core.data.zip_files import MEGABYTE, UNPACKED_BYTES, Member, open_zip
from core.errors import DataError, first_line, quoted

ALLOWED = "a .npz file written by `export`"
MANIFEST_BYTES = 64 * MEGABYTE  # NumPy strings have four bytes per character, and the manifest contains the names of all classes
_CHUNK = MEGABYTE
_VERSION = b"\x93NUMPY\x01\x00"
# the format of numpy.save; other headers are refused, and none is evaluated
_HEADER = re.compile(rb"\{'descr': '([^']{2,20})', 'fortran_order': (True|False), 'shape': \(([0-9, ]{0,200})\), \} *\n")


def write_numpy_archive(
    path: Path, pixels: Images, labels: Tensor, classes: Sequence[str], manifest: Mapping[str, Any], normalize: Callable[[Tensor], Tensor]
) -> None:
    """Writes a calibration set to `path`. Needs memory for only a few images besides those given.

    pixels: uint8 `(N, C, H, W)`; labels: int64 `(N,)`. manifest: JSON values with {"normalisation": {"mean", "std"}}, one number for
    each channel. normalize: pixels -> normalized float images, with that mean and std.
    Raises DataError if there are more pixels than `read_numpy_archive` accepts, or float32 cannot represent them because mean or std is
    extreme.
    """
    if pixels.numel() > UNPACKED_BYTES:
        raise DataError(f"image set must have at most {UNPACKED_BYTES:,} bytes of pixels, got {pixels.numel():,}")
    mean, std = _normalization(manifest, pixels.shape[1], path)
    texts = {"classes": np.array(classes, dtype=np.str_), "manifest": np.array(json.dumps(manifest))}
    if max(text.nbytes for text in texts.values()) > MANIFEST_BYTES - _CHUNK:
        raise DataError(
            f"class names and manifest must have at most {MANIFEST_BYTES // MEGABYTE} MB each, got more ({len(classes):,} classes)"
        )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        with _new_entry(archive, "images", "<f4", pixels.shape) as file:
            for part in pixels.split(_images_at_once(pixels.shape)):
                values = normalize(part).cpu().numpy().astype("<f4")
                back = _to_pixels(values, mean, std)
                if back is None or not np.array_equal(back, part.numpy()):
                    raise DataError(
                        f"mean and std must be those of values in [0, 1], {_listed(mean)} and {_listed(std)} lose pixels in float32"
                    )
                file.write(values.tobytes())
        with _new_entry(archive, "labels", "<i8", labels.shape) as file:
            file.write(labels.numpy().astype("<i8").tobytes())
        for name, text in texts.items():
            with _new_entry(archive, name, text.dtype.newbyteorder("<").str, text.shape) as file:
                file.write(text.astype(text.dtype.newbyteorder("<")).tobytes())


def read_numpy_archive(path: Path) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Pixels uint8 `(N, C, H, W)`, labels int64 `(N,)` and manifest of a file written by `write_numpy_archive`.

    Raises DataError for any other file. Sizes are checked before anything is unpacked, and nothing is ever unpickled.
    """
    with open_zip(path, 4 * UNPACKED_BYTES + 2 * MANIFEST_BYTES, ALLOWED) as members:
        manifest = _read_manifest(members, path)
        with _entry(members, "images", "<f4", path) as (shape, file):
            if len(shape) != 4 or shape[1] not in MODES or not math.prod(shape) or math.prod(shape) > UNPACKED_BYTES:
                _refuse(
                    path,
                    f"shape of images must be (N, 1 to 4 channels, H, W) with 1 to {UNPACKED_BYTES:,} pixel values, got {quoted(shape)}",
                )
            mean, std = _normalization(manifest, shape[1], path)
            pixels = torch.empty(shape, dtype=torch.uint8)
            for part in pixels.split(_images_at_once(shape)):
                values = _to_pixels(np.frombuffer(_exactly(file, 4 * part.numel()), dtype="<f4").reshape(part.shape), mean, std)
                if values is None:
                    _refuse(path, "images must be normalized with the mean and std of its manifest, got values that no pixel has")
                part.copy_(torch.from_numpy(values))
        with _entry(members, "labels", "<i8", path) as (lengths, file):
            if lengths != shape[:1]:
                _refuse(path, f"shape of labels must be {shape[:1]}, one for each image, got {quoted(lengths)}")
            labels = torch.from_numpy(np.frombuffer(_exactly(file, 8 * shape[0]), dtype="<i8").astype(np.int64))
    return pixels, labels, manifest


def _images_at_once(shape: Sequence[int]) -> int:
    return max(1, _CHUNK // math.prod(shape[1:]))


def _to_pixels(values: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray | None:
    """The pixels, uint8, whose normalized values are `values`; None if a value is not close to that of any pixel."""
    with np.errstate(over="ignore", invalid="ignore"):
        exact = (values * std + mean) * 255
        nearest = np.rint(exact)
        # False for NaN and infinity
        fits = (np.abs(exact - nearest) < 0.25) & (nearest >= 0) & (nearest <= 255)
    return nearest.astype(np.uint8) if fits.all() else None


def _normalization(manifest: Mapping[str, Any], channels: int, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the channels, float64 `(C, 1, 1)`. Raises DataError."""
    constants = manifest.get("normalisation")
    both = [constants.get(key) if isinstance(constants, Mapping) else None for key in ("mean", "std")]
    for values in both:
        # the bound excludes NaN and infinity
        if (
            not isinstance(values, list)
            or len(values) != channels
            or not all(type(one) in (int, float) and abs(one) < 1e6 for one in values)
        ):
            _refuse(
                path,
                f"normalisation in its manifest must be mean and std, {channels} finite numbers each, got {quoted(constants)}",
            )
    mean, std = (np.array(values, dtype=np.float64).reshape(-1, 1, 1) for values in both)
    return mean, std


def _listed(values: np.ndarray) -> str:
    return ", ".join(f"{value:g}" for value in values.flat)


def _read_manifest(members: Mapping[str, Member], path: Path) -> dict[str, Any]:
    with _entry(members, "manifest", "<U", path) as (shape, file):
        size = members["manifest.npy"].size
        if shape or size > MANIFEST_BYTES:
            _refuse(path, f"manifest must be one string of at most {MANIFEST_BYTES:,} bytes, got shape {quoted(shape)} and {size:,} bytes")
        text = _exactly(file, size - file.tell()).decode("utf-32-le").rstrip("\0")
    try:
        return parse_manifest(text)
    except ValueError as error:
        raise DataError(f"{str(path)!r} must be {ALLOWED}, but cannot be read as one ({first_line(error)})") from error


# entries: a header of about 128 bytes, followed by the bytes of the array


@contextmanager
def _new_entry(archive: zipfile.ZipFile, name: str, kind: str, shape: Sequence[int]) -> Iterator[IO[bytes]]:
    info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
    info.create_system, info.external_attr = 3, 0o644 << 16  # the same on every operating system
    with archive.open(info, "w", force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": tuple(shape)})
        yield file


@contextmanager
def _entry(members: Mapping[str, Member], name: str, kind: str, path: Path) -> Iterator[tuple[tuple[int, ...], IO[bytes]]]:
    """Yields the shape of an array and a file at the start of its values, after checking the size. kind: as `dtype.str`."""
    member = members.get(f"{name}.npy")
    if member is None:
        _refuse(path, f"must be {ALLOWED}, array {name!r} is missing")
    with member.open() as file:
        start = file.read(len(_VERSION) + 2)
        header = _HEADER.fullmatch(file.read(int.from_bytes(start[-2:], "little"))) if start.startswith(_VERSION) else None
        if header is None:
            _refuse(path, f"array {name!r} must be in NumPy's format, as in {ALLOWED}")
        found, shape = header[1].decode("ascii", "replace"), tuple(int(one) for one in header[3].replace(b" ", b"").split(b",") if one)
        fits = re.fullmatch(kind + "[0-9]{1,9}", found) if kind == "<U" else found == kind
        if not fits or header[2] == b"True":
            order = "column" if header[2] == b"True" else "row"
            _refuse(path, f"array {name!r} must be of type {kind} in row order, got {quoted(found)} in {order} order")
        width = 4 * int(found[2:]) if kind == "<U" else int(found[2:])
        if len(start) + len(header[0]) + width * math.prod(shape) != member.size:
            _refuse(path, f"array {name!r} must have as many bytes as its shape {quoted(shape)} needs, got {member.size:,}")
        yield shape, file
        if file.read(1):
            raise EOFError(f"{name} is longer than its shape")


def _exactly(file: IO[bytes], count: int) -> bytes:
    """The next `count` bytes, read in small pieces. Raises EOFError if there are fewer."""
    pieces = []
    while count:
        pieces.append(file.read(min(count, _CHUNK)))
        if not pieces[-1]:
            raise EOFError("an array is shorter than its shape")
        count -= len(pieces[-1])
    return b"".join(pieces)


def _refuse(path: Path, problem: str) -> NoReturn:
    raise DataError(f"{str(path)!r}: {problem}")
