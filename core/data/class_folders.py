"""A set of images as PNG files, one folder a class: every pixel, label and the order come back as they were.

Names of classes come from outside, so that a folder has the name of its class only where all of them are plain and differ; otherwise
each gets its number and what is plain of its name. Which folder is which class is in the manifest, not in the name. Files are numbered
through all folders, in the order of the set.
"""

import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from core.data.archives import MEGABYTE, PIXELS, UNPACKED_BYTES
from core.errors import DataError, quoted

FOLDERS = "folders"  # key of the manifest: name of a folder -> class index
IMAGES = "images"  # key of the manifest: how many there are
NAME_LENGTH = 60  # characters; a file system takes 255 bytes, which are four a character
ALLOWED = "a folder of PNG files as `export` writes it"
# letters and digits of any script, and what no shell, system or web page takes for more than itself
_PLAIN = re.compile(r"\w([\w ,'()-]*[\w)])?")
_OF_WINDOWS = re.compile(r"con|prn|aux|nul|(com|lpt)\d", re.IGNORECASE)
_FILE = re.compile(r"([0-9]{6}|[1-9][0-9]{6,8})\.png")


def folder_names(classes: Sequence[str]) -> list[str]:
    """A name for the folder of each class: safe on every file system, all different, and in the order of the classes where numbered."""
    # on some file systems what differs only in case or in how accents are written is one name
    different = len({unicodedata.normalize("NFKC", name).casefold() for name in classes}) == len(classes)
    if different and all(_is_plain(name) for name in classes):
        return list(classes)
    digits = len(str(len(classes) - 1))
    return [f"{number:0{digits}d}_{_plain_part(name)}" for number, name in enumerate(classes)]


def _plain_part(name: str) -> str:
    return re.sub(r"\W+", "_", name)[: NAME_LENGTH - 10].strip("_")


def _is_plain(name: str) -> bool:
    return len(name) <= NAME_LENGTH and _PLAIN.fullmatch(name) is not None and not _OF_WINDOWS.fullmatch(name)


def write_class_folders(folder: Path, pixels: Tensor, labels: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """Writes the images into `folder`, which must exist; returns what the manifest has to say of them.

    pixels: uint8 `(N, 3, H, W)`; labels: int64 `(N,)`, below the number of classes. Only classes that have images get a folder.
    """
    names = folder_names(classes)
    present = labels.unique().tolist()
    for label in present:
        (folder / names[label]).mkdir()
    for number, (image, label) in enumerate(zip(pixels, labels.tolist())):
        Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(folder / names[label] / f"{number:06d}.png", format="PNG")
    return {FOLDERS: {names[label]: label for label in present}, IMAGES: len(pixels)}


def read_class_folders(folder: Path, manifest: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Pixels uint8 `(N, 3, H, W)` and labels int64 `(N,)` of what `write_class_folders` wrote, with its manifest.

    Raises DataError unless they are the numbered images that the manifest counts, all of one size and below the limits of an archive.
    """
    folders, count = manifest.get(FOLDERS), manifest.get(IMAGES)
    if not isinstance(folders, Mapping) or not all(_is_plain(name) for name in folders):
        _refuse(folder, f"has folders {quoted(folders)} in its manifest", "plain names of folders beside it")
    if not all(type(label) is int and 0 <= label < 1 << 31 for label in folders.values()):
        _refuse(folder, f"has folders {quoted(folders)} in its manifest", "the number of a class for each")
    found = _numbered(folder, folders)
    if type(count) is not int or len(found) != count or not count or max(found) != count - 1:
        _refuse(folder, f"has {len(found):,} numbered images, and {quoted(count)} in its manifest", "the same, numbered from 0 on")
    size = _size(found[0][0])
    if size[0] * size[1] > PIXELS or 3 * size[0] * size[1] * count > UNPACKED_BYTES:
        _refuse(
            folder,
            f"has {count:,} images of {size[0]} x {size[1]} pixels",
            f"at most {PIXELS // MEGABYTE} million pixels in one and {UNPACKED_BYTES // MEGABYTE:,} MB in all",
        )
    pixels = torch.empty(count, 3, size[1], size[0], dtype=torch.uint8)
    for number in range(count):
        pixels[number] = torch.from_numpy(_decoded(found[number][0], size)).permute(2, 0, 1)
    return pixels, torch.tensor([found[number][1] for number in range(count)])


def _numbered(folder: Path, folders: Mapping[str, int]) -> dict[int, tuple[Path, int]]:
    """Number -> file and label of every image. Hidden files, which systems leave everywhere, are passed over."""
    found: dict[int, tuple[Path, int]] = {}
    try:
        there = {entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")}
        # some file systems write accents their own way
        others = {unicodedata.normalize("NFC", name) for name in there} - {unicodedata.normalize("NFC", name) for name in folders}
        if others:
            _refuse(folder, f"has a folder {quoted(min(others))}, which is not in its manifest", f"one of {quoted(list(folders))}")
        for name, label in folders.items():
            for entry in sorted(os.listdir(folder / name)):
                if entry.startswith("."):
                    continue
                match = _FILE.fullmatch(entry)
                if match is None or int(match[1]) in found or not os.path.isfile(folder / name / entry):
                    _refuse(folder, f"has {quoted(f'{name}/{entry}')}", "PNG files, each with a number of its own")
                found[int(match[1])] = (folder / name / entry, label)
    except OSError as error:
        raise DataError(f"{folder} cannot be read as a set of images ({error.strerror}): allowed is {ALLOWED}") from error
    return found


def _size(path: Path) -> tuple[int, int]:
    """Width and height, without decoding it."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return image.size
    except Exception as error:  # Pillow raises whatever its decoders hit on: OSError, SyntaxError, struct.error and more
        raise DataError(f"{path} cannot be read as an image: allowed is PNG") from error


def _decoded(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Pixels uint8 `(H, W, 3)`."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            found, mode = image.size, image.mode
            pixels = np.array(image) if (found, mode) == (size, "RGB") else None
    except Exception as error:  # as above
        raise DataError(f"{path} cannot be read as an image: allowed is PNG") from error
    if pixels is None:
        _refuse(path, f"is an image of {found[0]} x {found[1]} pixels, {mode}", f"{size[0]} x {size[1]}, RGB, as the first of its set")
    return pixels


def _refuse(path: Path, what: str, allowed: str) -> NoReturn:
    raise DataError(f"{path} {what}: allowed is {allowed}")
