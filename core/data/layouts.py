"""Folders of labeled image files: one folder per class, or a single folder with a list of the classes.

Symbolic links are followed, because data sets are often assembled from links; a link to one of its parent folders is refused, because
its images would be counted repeatedly. Hidden files, and files that operating systems add to folders, are skipped.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from core.errors import DataError, quoted
from core.files import read_bounded

LABELS = "val.txt"  # Caffe's name for the list of ImageNet's validation images
LABELS_BYTES = 64 << 20  # a line for each of a million images
PIXELS = 50_000_000  # of an image, which is then resized: four bytes each while it is decoded
PARTS = frozenset(("train", "val", "test"))
ONE_PER_CLASS = "a folder with one folder of images per class"
_Inode = tuple[int, int]  # device and inode


@dataclass(frozen=True)
class ImageFiles:
    """Paths of images with their indices into `classes`. Items are (PIL image in `mode`, index)."""

    classes: list[str]
    paths: list[str]
    targets: list[int]
    mode: str = "RGB"

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """Raises DataError, naming the file, if it cannot be read."""
        return _load(self.paths[index], self.mode), self.targets[index]

    def __iter__(self) -> Iterator[tuple[Image.Image, int]]:
        return (self[index] for index in range(len(self)))

    def check_headers(self) -> None:
        """Raises DataError for the first file without the header of an image. Errors in the rest of a file are only found by reading it."""
        for path in self.paths:
            try:
                with Image.open(path):
                    pass
            except Exception as error:
                raise _unreadable(path) from error


def open_image_folder(path: Path, *names: str) -> ImageFiles:
    """A folder with one folder of images per class, possibly nested. Classes are in the order of their names.

    names: alternatives to a folder that the caller accepts, for the error message. Raises DataError if the folder is missing, one of its
    folders has no image, or a link leads to one of its parent folders. Reading a file that is not an image raises DataError.
    """
    _check_folder(path, names)
    classes = [entry for entry in _entries(path) if os.path.isdir(entry.path)]
    if not classes:
        raise DataError(f"folder {str(path)!r} must contain one folder of images per class, got no folders")
    paths: list[str] = []
    targets: list[int] = []
    empty = []
    for index, entry in enumerate(classes):
        found = list(_images_below(entry, _inode(path)))
        if not found:
            empty.append(entry.name)
        paths += found
        targets += [index] * len(found)
    if empty:
        raise DataError(f"every class folder of {str(path)!r} must contain images, got none in {', '.join(empty[:3])}")
    return ImageFiles([entry.name for entry in classes], paths, targets)


def part_of(path: Path, part: str) -> Path:
    """The subfolder `part` (train or val) of a folder that contains nothing but such parts, as ImageNet's; otherwise the folder itself."""
    if os.path.isdir(path):
        folders = {entry.name for entry in _entries(path) if os.path.isdir(entry.path)}
        if part in folders and folders <= PARTS:
            return path / part
    return path


def list_of(path: Path, *names: str) -> Path | None:
    """The list of classes, `val.txt` in or beside a folder that contains images and no folders; None if it contains folders.

    Raises DataError if the folder is missing, or contains images without a list.
    """
    _check_folder(path, names)
    entries = _entries(path)
    if any(os.path.isdir(entry.path) for entry in entries) or not any(_is_image(entry) for entry in entries):
        return None
    found = next((folder / LABELS for folder in (path, path.parent) if os.path.lexists(folder / LABELS)), None)
    if found is None:
        raise DataError(
            f"folder {str(path)!r} must contain one folder per class, or {LABELS} with a line 'FILE CLASS' for each image, "
            "got images without either"
        )
    return found


def open_image_list(path: Path, labels: Path) -> ImageFiles:
    """The images of a folder with the classes in a list of lines "FILE CLASS"; a class is a name, a number or a WordNet id.

    Lines for missing images are skipped, because a part of a data set may be enough. Names are looked up among the files of the folder
    and never used as paths. Raises DataError for an image without a line or with two classes, and for a list that cannot be read.
    """
    images = {entry.name: entry.path for entry in _entries(path) if _is_image(entry)}
    label_of: dict[str, str] = {}
    try:
        lines = read_bounded(labels, LABELS_BYTES).decode().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{labels} must be a text file in UTF-8 with lines 'FILE CLASS', but cannot be read ({reason})") from error
    for number, line in enumerate(lines, 1):
        words = line.split(maxsplit=1)
        if len(words) == 1:
            raise DataError(f"line {number} of {labels} must be a file name, a space, and a class, got {quoted(line.strip())}")
        name = words[0].rpartition("/")[2] if words else ""
        if name in images and label_of.setdefault(name, words[1].strip()) != words[1].strip():
            raise DataError(f"{labels} must have one class per image, got two for {quoted(name)}")
    missing = next((name for name in images if name not in label_of), None)
    if missing is not None:
        raise DataError(f"{labels} must have a class for every image of {path}, got none for {quoted(missing)}")
    classes = sorted(set(label_of.values()))
    index = {name: number for number, name in enumerate(classes)}
    return ImageFiles(classes, list(images.values()), [index[label_of[name]] for name in images])


def _check_folder(path: Path, names: tuple[str, ...]) -> None:
    if not os.path.isdir(path):  # unlike Path.is_dir, returns False for names that are too long
        others = "".join(f"{name}, " for name in names) + ("or " if names else "")
        raise DataError(f"data must be {others}{ONE_PER_CLASS}, folder {str(path)!r} does not exist")
    if path.resolve().parent == path.resolve():
        # searching it would take hours, because links are followed
        raise DataError(f"data must be {' or '.join([*names, ONE_PER_CLASS])}, {str(path)!r} is the root of the file system")


def _entries(path: str | Path) -> list[os.DirEntry]:
    """The entries of a folder that are not hidden, sorted by name."""
    try:
        with os.scandir(path) as entries:
            seen = [entry for entry in entries if not entry.name.startswith(".") and entry.name != "__MACOSX"]
    except OSError as error:
        raise DataError(f"folder {str(path)!r} must be readable ({error.strerror})") from error
    return sorted(seen, key=lambda entry: entry.name)


def _images_below(folder: os.DirEntry, above: _Inode) -> Iterator[str]:
    """Paths of all images in a folder and its subfolders. above: its parent folder."""
    waiting: list[tuple[os.DirEntry, tuple[_Inode, ...]]] = [(folder, (above,))]
    while waiting:
        current, around = waiting.pop()
        inode = _inode(current.path)
        if inode in around:
            raise DataError(f"links must not lead to one of their parent folders, {current.path} does")
        entries = _entries(current.path)
        yield from (entry.path for entry in entries if _is_image(entry))
        waiting += [(entry, (*around, inode)) for entry in reversed(entries) if os.path.isdir(entry.path)]


def _inode(path: str | Path) -> _Inode:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _is_image(entry: os.DirEntry) -> bool:
    """Whether an entry is a file with the suffix of an image. Raises DataError for a broken link or a device with such a suffix."""
    if not entry.name.lower().endswith(IMG_EXTENSIONS) or os.path.isdir(entry.path):
        return False
    if not os.path.isfile(entry.path):  # reading a pipe would block forever
        raise DataError(f"{entry.path} must be a file or a link to one, got a broken link or a device")
    return True


def _load(path: str, mode: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            size = image.size
            if size[0] * size[1] <= PIXELS:
                return image.convert(mode)
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error and others
        raise _unreadable(path) from error
    raise DataError(f"{path} must have at most {PIXELS // 1_000_000} million pixels, got {size[0]} x {size[1]}")


def _unreadable(path: str) -> DataError:
    return DataError(f"{path} must be an image in a format that Pillow supports, but cannot be read as one")
