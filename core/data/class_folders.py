"""A set of images as PNG files in one folder per class, which preserves all pixels, labels and the order.

Class names are untrusted, so folders have the names of the classes only if all of these are plain and different; otherwise a folder name
is the number of the class and the plain characters of its name. The manifest maps folders to classes. Files are numbered across all
folders, in the order of the set.
"""

import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from core.channels import MODES
from core.data.archives import PIXELS
from core.data.sharded_images import Images
from core.data.zip_files import MEGABYTE, UNPACKED_BYTES
from core.errors import DataError, quoted

FOLDERS = "folders"  # key of the manifest: folder name -> class index
IMAGES = "images"  # key of the manifest: number of images
NAME_LENGTH = 60  # characters; file systems accept 255 bytes, and a character has up to four
ALLOWED = "a folder of PNG files written by `export`"
# letters and digits of any script, and punctuation without special meaning in shells, file systems and web pages
_PLAIN = re.compile(r"\w([\w ,'()-]*[\w)])?")
_OF_WINDOWS = re.compile(r"con|prn|aux|nul|(com|lpt)\d", re.IGNORECASE)
_FILE = re.compile(r"([0-9]{6}|[1-9][0-9]{6,8})\.png")


def folder_names(classes: Sequence[str]) -> list[str]:
    """A folder name for each class: valid on every file system, unique, and, if numbered, in the order of the classes."""
    # some file systems ignore case, or the encoding of accents
    different = len({unicodedata.normalize("NFKC", name).casefold() for name in classes}) == len(classes)
    if different and all(_is_plain(name) for name in classes):
        return list(classes)
    digits = len(str(len(classes) - 1))
    return [f"{number:0{digits}d}_{_plain_part(name)}" for number, name in enumerate(classes)]


def _plain_part(name: str) -> str:
    return re.sub(r"\W+", "_", name)[: NAME_LENGTH - 10].strip("_")


def _is_plain(name: str) -> bool:
    return len(name) <= NAME_LENGTH and _PLAIN.fullmatch(name) is not None and not _OF_WINDOWS.fullmatch(name)


def write_class_folders(folder: Path, pixels: Images, labels: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """Writes the images into `folder`, which must exist; returns their entries for the manifest.

    pixels: uint8 `(N, 1 to 4, H, W)`; labels: int64 `(N,)`, below the number of classes. Classes without images get no folder.
    """
    names = folder_names(classes)
    present = labels.unique().tolist()
    for label in present:
        (folder / names[label]).mkdir()
    for number, (image, label) in enumerate(zip(pixels, labels.tolist())):
        to_pil_image(image).save(folder / names[label] / f"{number:06d}.png", format="PNG")
    return {FOLDERS: {names[label]: label for label in present}, IMAGES: len(pixels)}


def read_class_folders(folder: Path, manifest: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Reads pixels uint8 `(N, C, H, W)` and labels int64 `(N,)` from a folder written by `write_class_folders`.

    Raises DataError unless the folder contains exactly the numbered images of the manifest, all of one size and within the limits of zip
    files.
    """
    folders, count = manifest.get(FOLDERS), manifest.get(IMAGES)
    if not isinstance(folders, Mapping) or not all(_is_plain(name) for name in folders):
        _refuse(folder, f"folders in its manifest must be plain names, got {quoted(folders)}")
    if not all(type(label) is int and 0 <= label < 1 << 31 for label in folders.values()):
        _refuse(folder, f"folders in its manifest must have class indices, got {quoted(folders)}")
    found = _numbered(folder, folders)
    if type(count) is not int or len(found) != count or not count or max(found) != count - 1:
        _refuse(folder, f"images must be numbered from 0 to the count in its manifest ({quoted(count)}), got {len(found):,} images")
    size, mode = _header(found[0][0])
    channels = next((channels for channels, one in MODES.items() if one == mode), None)
    if channels is None:
        _refuse(found[0][0], f"must have one of the modes {', '.join(MODES.values())}, got {mode}")
    if size[0] * size[1] > PIXELS or channels * size[0] * size[1] * count > UNPACKED_BYTES:
        _refuse(
            folder,
            f"images must have at most {PIXELS // MEGABYTE} million pixels each and {UNPACKED_BYTES // MEGABYTE:,} MB in total, "
            f"got {count:,} images of {size[0]} x {size[1]} pixels",
        )
    pixels = torch.empty(count, channels, size[1], size[0], dtype=torch.uint8)
    for number in range(count):
        pixels[number] = _decoded(found[number][0], size, mode)
    return pixels, torch.tensor([found[number][1] for number in range(count)])


def _numbered(folder: Path, folders: Mapping[str, int]) -> dict[int, tuple[Path, int]]:
    """Number -> file and label of every image. Hidden files, which operating systems create, are skipped."""
    found: dict[int, tuple[Path, int]] = {}
    try:
        there = {entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")}
        # some file systems change the encoding of accents
        others = {unicodedata.normalize("NFC", name) for name in there} - {unicodedata.normalize("NFC", name) for name in folders}
        if others:
            _refuse(folder, f"folders must be in its manifest ({quoted(list(folders))}), got {quoted(min(others))}")
        for name, label in folders.items():
            for entry in sorted(os.listdir(folder / name)):
                if entry.startswith("."):
                    continue
                match = _FILE.fullmatch(entry)
                if match is None or int(match[1]) in found or not os.path.isfile(folder / name / entry):
                    _refuse(folder, f"files must be PNG files with unique numbers, got {quoted(f'{name}/{entry}')}")
                found[int(match[1])] = (folder / name / entry, label)
    except OSError as error:
        raise DataError(f"{folder} must be {ALLOWED}, but cannot be read as one ({error.strerror})") from error
    return found


def _header(path: Path) -> tuple[tuple[int, int], str]:
    """Width and height, and Pillow's mode, of an image, without decoding it."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return image.size, image.mode
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error and others
        raise DataError(f"{path} must be a PNG image, but cannot be read as one") from error


def _decoded(path: Path, size: tuple[int, int], mode: str) -> Tensor:
    """Pixels uint8 `(C, H, W)`."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            found = image.size, image.mode
            pixels = pil_to_tensor(image) if found == (size, mode) else None
    except Exception as error:  # as above
        raise DataError(f"{path} must be a PNG image, but cannot be read as one") from error
    if pixels is None:
        wanted, got = (f"{width} x {height} pixels and {kind}" for (width, height), kind in ((size, mode), found))
        _refuse(path, f"must be {wanted}, as the first image of its set, got {got}")
    return pixels


def _refuse(path: Path, problem: str) -> NoReturn:
    raise DataError(f"{path}: {problem}")
