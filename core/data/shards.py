"""Sets of images as shards: tar files as WebDataset reads them (https://github.com/webdataset/webdataset). Imports no torch.

A sample is an image and its class, the files `00000012.png` and `00000012.cls` in a tar file. The same images give the same bytes: a
shard has no times and no owners.
"""

import hashlib
import io
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from PIL import Image

from core.data.archives import IMAGE_BYTES
from core.data.pictures import is_picture_name, read_picture
from core.errors import DataError, quoted
from core.files import check_regular

SHARDS = "shards"  # key of the manifest: name, number of images and SHA-256 of each shard
SHARD_SUFFIX = ".tar"
ALLOWED = "a shard of images, a tar file with an image and its class (such as 0.png and 0.cls) for each sample"
_CLASS = "cls"
_CLASS_BYTES = 20
_AT_ONCE = 256  # images that are encoded side by side before they are written
_MOST_CLASSES = 1 << 31
_PLACE = np.dtype([("shard", "i4"), ("offset", "i8"), ("size", "i4"), ("label", "i8")])  # of an image, as in Sample


def shard_name(number: int) -> str:
    """The file name of shard `number`, counted from 0."""
    return f"images-{number:06d}{SHARD_SUFFIX}"


def write_shard(path: Path, first: int, samples: Iterable[tuple[np.ndarray, int]]) -> None:
    """Writes one shard. first: number of its first sample in the set. samples: uint8 `(1 to 4, H, W)` with their classes."""
    rest, number = iter(samples), first
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar, ThreadPoolExecutor(os.cpu_count()) as encoders:
        while some := list(islice(rest, _AT_ONCE)):
            for picture, (_, label) in zip(encoders.map(_as_png, (pixels for pixels, _ in some)), some, strict=True):
                for suffix, content in (("png", picture), (_CLASS, str(int(label)).encode())):
                    entry = tarfile.TarInfo(f"{number:08d}.{suffix}")  # of no owner, at time 0
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
                number += 1


def _as_png(pixels: np.ndarray) -> bytes:
    """uint8 `(1 to 4, H, W)` as a PNG file."""
    picture = io.BytesIO()
    values = pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0))
    Image.fromarray(values).save(picture, format="PNG")
    return picture.getvalue()


def about_shards(files: Sequence[Path], counts: Sequence[int]) -> list[dict[str, Any]]:
    """The entry of the manifest for these shards. counts: images in each."""
    found = []
    for path, images in zip(files, counts, strict=True):
        with path.open("rb") as file:
            found.append({"name": path.name, "images": images, "sha256": hashlib.file_digest(file, "sha256").hexdigest()})
    return found


def shard_files(folder: Path, manifest: Mapping[str, Any] | None = None) -> list[Path]:
    """The shards of a set in their order: those of its manifest or, without one, the tar files in a folder that has no folders and no
    images in it; none where a set is of another kind. Raises DataError for a manifest with other entries than `about_shards` makes.
    """
    if manifest is None:
        with os.scandir(folder) as entries:
            found = [entry for entry in entries if not entry.name.startswith(".")]
        if any(entry.is_dir() or is_picture_name(entry.name) for entry in found):
            return []
        return [folder / name for name in sorted(entry.name for entry in found) if name.lower().endswith(SHARD_SUFFIX)]
    stated = manifest.get(SHARDS)
    if stated is None:
        return []
    names = [one.get("name") if isinstance(one, Mapping) else None for one in stated] if isinstance(stated, list) else []
    if not names or not all(isinstance(name, str) and name == os.path.basename(name) and name.endswith(SHARD_SUFFIX) for name in names):
        _refuse(folder, f"{SHARDS} in its manifest must be a list of shards with their names, got {quoted(str(stated)[:80])}")
    return [folder / str(name) for name in names]


@dataclass(frozen=True)
class Sample:
    """Where an image is in its shard, in bytes; its name there, and its class."""

    name: str
    offset: int
    size: int
    label: int


def samples_of(path: Path) -> Iterator[Sample]:
    """The samples of one shard, in their order, without their images. Raises DataError for anything but a shard."""
    try:
        check_regular(path)
        with tarfile.open(path, "r:") as tar:
            key, picture, label = "", None, None
            while (entry := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # which would keep every entry of the file
                if not entry.isreg():
                    continue
                folder, _, name = entry.name.rpartition("/")
                start, _, suffix = name.partition(".")
                if (own := f"{folder}/{start}") != key:
                    if key:
                        yield _sample(path, key, picture, label)
                    key, picture, label = own, None, None
                if suffix.lower() == _CLASS:
                    label = _class_of(path, tar, entry)
                elif is_picture_name(f".{suffix}"):
                    if picture is not None:
                        _refuse(path, f"a sample must have one image, got {quoted(picture.name)} and {quoted(entry.name)}")
                    if entry.size > IMAGE_BYTES:
                        _refuse(path, f"images must have at most {IMAGE_BYTES:,} bytes, got {entry.size:,} of {quoted(entry.name)}")
                    picture = entry
            if key:
                yield _sample(path, key, picture, label)
            end = tar.offset
        with path.open("rb") as file:
            file.seek(end)
            if any(file.read(tarfile.BLOCKSIZE)):  # tarfile takes a damaged header for the end
                _refuse(path, f"it must be {ALLOWED}, and is damaged after its first {end:,} bytes")
    except (tarfile.TarError, OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path} must be {ALLOWED}, but cannot be read as one ({reason})") from error


def _class_of(path: Path, tar: tarfile.TarFile, entry: tarfile.TarInfo) -> int:
    content = b""
    if entry.size <= _CLASS_BYTES and (file := tar.extractfile(entry)) is not None:
        content = file.read().strip()
    if not content.isdigit() or int(content) >= _MOST_CLASSES:
        _refuse(path, f"{quoted(entry.name)} must have the number of a class, got {quoted(content.decode(errors='replace'))}")
    return int(content)


def _sample(path: Path, key: str, picture: tarfile.TarInfo | None, label: int | None) -> Sample:
    if picture is None or label is None:
        missing = "no image" if picture is None else f"no file .{_CLASS}"
        _refuse(path, f"each sample must have an image and its class, got {missing} of {quoted(key.lstrip('/'))}")
    return Sample(picture.name, picture.offset_data, picture.size, label)


def every_sample(files: Sequence[Path], counts: Sequence[int] | None = None) -> Iterator[tuple[int, Sample]]:
    """All samples, each with the number of its shard. counts: images that each shard must have; None: any. Raises as `samples_of`."""
    for number, path in enumerate(files):
        count = 0
        for sample in samples_of(path):
            yield number, sample
            count += 1
        if counts is not None and count != counts[number]:
            _refuse(path, f"it must have {counts[number]:,} images, as its manifest says, got {count:,}")


class Shards:
    """Images in shards, which are read when they are asked for. No image is kept and no file stays open: what is in memory is where each
    image is, and its class, 24 bytes for each.

    files: the shards. samples: those of `every_sample`, or some of them. mode: of core.channels, in which the images are read; default:
    that of the first image. labels: int64 `(N,)`. shape: `(N, C, H, W)`. Raises DataError without samples, and if the first image cannot
    be read.
    """

    def __init__(self, files: Sequence[Path], samples: Iterable[tuple[int, Sample]], mode: str = "") -> None:
        self.files = list(files)
        places = np.fromiter(((number, one.offset, one.size, one.label) for number, one in samples), dtype=_PLACE)
        if not len(places):
            raise DataError(f"{self.files[0].parent} must have at least one image in its shards, got none")
        self._shard, self._offset, self._size = (np.ascontiguousarray(places[name]) for name in ("shard", "offset", "size"))
        self.labels = np.ascontiguousarray(places["label"])
        with self.files[self._shard[0]].open("rb") as file:
            first = self._picture(file, 0, mode or None)
        self.mode = first.mode
        self.shape = (len(self.labels), Image.getmodebands(first.mode), first.height, first.width)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """The images of these numbers, uint8 `(n, C, H, W)`; a shard is opened once. Raises DataError, naming the image, if one cannot be
        read or has another size than the first one of the set."""
        channels, height, width = self.shape[1:]
        found = np.empty((len(indices), height, width, channels), dtype=np.uint8)
        for shard in np.unique(self._shard[indices]):
            path = self.files[shard]
            try:
                with path.open("rb") as file:
                    for place in np.flatnonzero(self._shard[indices] == shard):
                        picture = self._picture(file, int(indices[place]), self.mode)
                        if picture.size != (width, height):
                            got = f"{picture.width} x {picture.height}"
                            _refuse(path, f"images must have the size of the first one, {width} x {height} pixels, got {got}")
                        found[place] = np.asarray(picture).reshape(height, width, channels)
            except OSError as error:
                raise DataError(f"{path} cannot be read any more ({error.strerror or error})") from error
        return np.ascontiguousarray(found.transpose(0, 3, 1, 2))

    def _picture(self, file: io.BufferedReader, index: int, mode: str | None) -> Image.Image:
        file.seek(int(self._offset[index]))
        content = io.BytesIO(file.read(int(self._size[index])))
        return read_picture(f"{file.name}, image {index},", mode, content)


def _refuse(path: Path, problem: str) -> NoReturn:
    raise DataError(f"{path}: {problem}")
