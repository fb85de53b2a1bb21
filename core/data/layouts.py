"""Folders of labelled image files: one folder a class, or all in one folder with a list that says the class of each.

Links are followed, as sets of images are often put together from links; one that leads back to a folder above it is refused, as
its images would be counted again and again. What is hidden, and what systems put into folders without being asked, is passed over.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from core.errors import DataError, quoted

LABELS = "val.txt"  # Caffe's name for the list of ImageNet's validation images
PARTS = frozenset(("train", "val", "test"))
ONE_A_CLASS = "a folder with one folder of images a class"
_Place = tuple[int, int]  # device and inode


@dataclass(frozen=True)
class ImageFiles:
    """Paths of images and, for each, the index of its class in `classes`. Items are (PIL image in RGB, that index)."""

    classes: list[str]
    paths: list[str]
    targets: list[int]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """Raises DataError, naming the file, when it cannot be read."""
        return _load_rgb(self.paths[index]), self.targets[index]

    def __iter__(self) -> Iterator[tuple[Image.Image, int]]:
        return (self[index] for index in range(len(self)))

    def check_headers(self) -> None:
        """Raises DataError for the first file that does not begin as an image does; whether it goes on so, only reading it shows."""
        for path in self.paths:
            try:
                with Image.open(path):
                    pass
            except Exception as error:
                raise _unreadable(path) from error


def open_image_folder(path: Path, *names: str) -> ImageFiles:
    """A folder with one folder of images a class, possibly in folders of their own. Classes are in the order of their names.

    names: what the caller takes in place of a folder, for the message. Raises DataError when the folder is missing, one of its folders
    holds no image, or a link leads in a circle. Reading an image that is none raises DataError.
    """
    _check_folder(path, names)
    classes = [entry for entry in _entries(path) if os.path.isdir(entry.path)]
    if not classes:
        raise DataError(f"folder {str(path)!r} has no folders with images in it: allowed is one folder a class")
    paths: list[str] = []
    targets: list[int] = []
    empty = []
    for index, entry in enumerate(classes):
        found = list(_images_below(entry, _place(path)))
        if not found:
            empty.append(entry.name)
        paths += found
        targets += [index] * len(found)
    if empty:
        raise DataError(f"folder {str(path)!r} has no images in {', '.join(empty[:3])}: allowed is one folder a class with images in each")
    return ImageFiles([entry.name for entry in classes], paths, targets)


def part_of(path: Path, part: str) -> Path:
    """The folder `part` (train or val) of a folder that has only such parts, as ImageNet has; any other folder as it is."""
    if os.path.isdir(path):
        folders = {entry.name for entry in _entries(path) if os.path.isdir(entry.path)}
        if part in folders and folders <= PARTS:
            return path / part
    return path


def list_of(path: Path, *names: str) -> Path | None:
    """The list of classes of a folder that has images and no folders: `val.txt` in it or beside it. None where there are folders.

    Raises DataError when the folder is missing, or there are images and no list.
    """
    _check_folder(path, names)
    entries = _entries(path)
    if any(os.path.isdir(entry.path) for entry in entries) or not any(_is_image(entry) for entry in entries):
        return None
    found = next((place / LABELS for place in (path, path.parent) if os.path.isfile(place / LABELS)), None)
    if found is None:
        raise DataError(
            f"folder {str(path)!r} has images, but neither folders nor {LABELS}: allowed is one folder a class, "
            f"or {LABELS} with a line 'FILE CLASS' for each image"
        )
    return found


def open_image_list(path: Path, labels: Path) -> ImageFiles:
    """The images of a folder whose classes a list says: lines of a file's name, space, and its class (name, number or WordNet id).

    Lines for images that are not there are passed over, as part of a set may be enough; names are looked up among the files of the
    folder and never become paths. Raises DataError for an image without a line or with two, and for a list that cannot be read.
    """
    images = {entry.name: entry.path for entry in _entries(path) if _is_image(entry)}
    label_of: dict[str, str] = {}
    try:
        with labels.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                words = line.split(maxsplit=1)
                if len(words) == 1:
                    raise DataError(f"{labels} has {quoted(line.strip())} in line {number}: allowed is a file's name, space, and its class")
                name = words[0].rpartition("/")[2] if words else ""
                if name in images and label_of.setdefault(name, words[1].strip()) != words[1].strip():
                    raise DataError(f"{labels} has two classes for {quoted(name)}: allowed is one")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{labels} cannot be read ({error}): allowed is a text in UTF-8 with lines 'FILE CLASS'") from error
    missing = next((name for name in images if name not in label_of), None)
    if missing is not None:
        raise DataError(f"{labels} has no line for {quoted(missing)}: allowed is a class for every image of {path}")
    classes = sorted(set(label_of.values()))
    index = {name: number for number, name in enumerate(classes)}
    return ImageFiles(classes, list(images.values()), [index[label_of[name]] for name in images])


def _check_folder(path: Path, names: tuple[str, ...]) -> None:
    if not os.path.isdir(path):  # unlike Path's, False for a name that is too long
        others = "".join(f"{name}, " for name in names) + ("or " if names else "")
        raise DataError(f"folder {str(path)!r} does not exist: allowed is {others}{ONE_A_CLASS}")
    if path.resolve().parent == path.resolve():
        # searching it would take hours, as it goes through every link of the system
        raise DataError(
            f"folder {str(path)!r} is the whole file system: allowed is {' or '.join([*names, 'a folder with one folder a class'])}"
        )


def _entries(path: str | Path) -> list[os.DirEntry]:
    """What is in a folder, in the order of names, without what is hidden."""
    try:
        with os.scandir(path) as entries:
            seen = [entry for entry in entries if not entry.name.startswith(".") and entry.name != "__MACOSX"]
    except OSError as error:
        raise DataError(f"folder {str(path)!r} cannot be read ({error.strerror}): allowed is one that may be looked into") from error
    return sorted(seen, key=lambda entry: entry.name)


def _images_below(folder: os.DirEntry, above: _Place) -> Iterator[str]:
    """Paths of all images in a folder and those in it. above: the folder that it lies in."""
    waiting: list[tuple[os.DirEntry, tuple[_Place, ...]]] = [(folder, (above,))]
    while waiting:
        current, around = waiting.pop()
        place = _place(current.path)
        if place in around:
            raise DataError(f"{current.path} is a link to a folder that it lies in: allowed are links that lead elsewhere")
        entries = _entries(current.path)
        yield from (entry.path for entry in entries if _is_image(entry))
        waiting += [(entry, (*around, place)) for entry in reversed(entries) if os.path.isdir(entry.path)]


def _place(path: str | Path) -> _Place:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _is_image(entry: os.DirEntry) -> bool:
    """Whether an entry is a file whose name says that it is an image. Raises DataError for a broken link, or a device, of such a name."""
    if not entry.name.lower().endswith(IMG_EXTENSIONS) or os.path.isdir(entry.path):
        return False
    if not os.path.isfile(entry.path):  # reading a pipe would wait for ever
        raise DataError(f"{entry.path} is no file, or a link to none: allowed are images that can be read")
    return True


def _load_rgb(path: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except Exception as error:  # Pillow raises whatever its decoders hit on: OSError, SyntaxError, struct.error and more
        raise _unreadable(path) from error


def _unreadable(path: str) -> DataError:
    return DataError(f"{path} cannot be read as an image: allowed are the formats Pillow knows")
