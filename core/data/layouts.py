"""Folders of image files: one folder per class; a single folder, possibly with a list of the classes; or any, where no class is needed.

Symbolic links are followed, because data sets are often assembled from links; a link to one of its parent folders is refused, because
its images would be counted repeatedly. Hidden files, and what operating systems add to folders, are skipped.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from core.data.label_lists import LABELS, read_labels
from core.data.pictures import LARGEST, has_unknown_white, is_picture_name, is_unread_picture, open_picture, read_picture, unreadable
from core.errors import DataError, quoted

# names of the parts of a data set, best first: what is evaluated on, and what is trained on
FOR_EVALUATION = ("val", "valid", "validation", "dev", "eval", "test", "testing", "train", "training")
FOR_TRAINING = ("train", "training", *FOR_EVALUATION[:-2])
ONE_PER_CLASS = "a folder with one folder of images per class"
WITH_OR_WITHOUT_CLASSES = "a folder of images, with one folder per class or without labels"
MOST_DAMAGED = 0.01  # share of the images that may be skipped
_LITTER = {"__MACOSX", "lost+found", "@eaDir", "$RECYCLE.BIN", "System Volume Information"}
_DARK = 1 << 14  # all images of 16 bits below this have 14 bits or fewer, as cameras and scanners write them
_DEEPEST = 5  # folders above the one that contains the classes
_NAMED = 3  # files and folders named in a sentence
_Inode = tuple[int, int]  # device and inode


@dataclass
class ImageFiles:
    """Paths of images with their indices into `classes`. Items are (PIL image in `mode`, index).

    source: the folder or list that the classes are from, the subject of error messages about them. empty: names of folders beside those
    of the classes with nothing in them. notes: sentences on what was guessed or ignored. strict: whether the first image that cannot be
    read is an error; otherwise at most 1 % of them are skipped, and `damaged` has their paths.
    largest: value of the images of 16 bits that were read; 0 if there were none.
    keep: what must live as long as the files are needed. unpacked: a temporary folder, and the archive that messages name instead of it.
    """

    classes: list[str]
    paths: list[str]
    targets: list[int]
    source: Path
    empty: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    strict: bool = False
    damaged: dict[str, DataError] = field(default_factory=dict)
    largest: int = 0
    keep: Any = None
    mode: str = "RGB"
    unpacked: tuple[str, str] = ("", "")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """Raises DataError, naming the file, if it cannot be read."""
        return read_picture(self.paths[index], self.mode), self.targets[index]

    @property
    def kind(self) -> str:
        """What has the names of the classes, for messages."""
        return "classes" if self.source.name == LABELS else "folders"

    def read(self, index: int) -> Image.Image | None:
        """An image, or None if it is damaged. Raises DataError for the first of these if `strict`, or for more than 1 % of them."""
        path = self.paths[index]
        if path in self.damaged:
            return None
        try:
            image = read_picture(path, self.mode)
        except DataError as error:
            self._skip(path, error)
            return None
        self.largest = max(self.largest, image.info.get(LARGEST, 0))
        return image

    def named(self, text: str) -> str:
        """The text with the name of the archive."""
        folder, archive = self.unpacked
        return text.replace(folder, archive) if folder else text

    def _skip(self, path: str, error: DataError) -> None:
        error = DataError(self.named(str(error)))
        if self.strict:
            raise error
        self.damaged[path] = error
        if len(self.damaged) > MOST_DAMAGED * len(self):
            first = next(iter(self.damaged.values()))
            raise DataError(
                f"{first}; at most 1 % of the images may be skipped, got {len(self.damaged)} of {len(self):,} so far"
            ) from error

    def check_headers(self) -> None:
        """Does what `read` does with every file that has no header of an image. Errors in the rest of a file are only found by reading it.

        Adds a note for images of which only their values tell what white is.
        """
        guessed = []
        for path in self.paths:
            try:
                with open_picture(path) as image:
                    if has_unknown_white(image):
                        guessed.append(os.path.basename(path))
            except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error and others
                self._skip(path, unreadable(path, error))
        if guessed:
            self.notes.append(f"Images of 32 bits are scaled by their largest values: {some(guessed)}.")

    def check_pixels(self, each: int, total: int) -> None:
        """Does what `read` does with every file, one at a time and without keeping any.

        each: limit on the pixels of an image; total: on the bytes of all of them in RGB. Both are checked before an image is decoded.
        Raises DataError, also for images of several sizes.
        """
        first: tuple[int, int] | None = None
        count = 0
        for path in self.paths:
            try:
                with open_picture(path) as image:
                    size = image.size
                    if size[0] * size[1] <= each:
                        image.load()
            except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error and others
                self._skip(path, unreadable(path, error))
                continue
            if size[0] * size[1] > each:
                raise DataError(f"{path} must have at most {each >> 20} million pixels, got {size[0]} x {size[1]}")
            first = first or size
            if size != first:
                expected, found = (f"{width} x {height}" for width, height in (first, size))
                raise DataError(f"images must have the same size, got {expected} and {found} pixels ({path})")
            count += 3 * size[0] * size[1]
            if count > total:
                raise DataError(f"all images together must have at most {total >> 20:,} MB of pixels, got more")

    def readable(self) -> "ImageFiles":
        """The images that can be read, all of which are decoded once."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            found = list(pool.map(lambda index: self.read(index) is not None, range(len(self))))
        kept = [index for index, is_read in enumerate(found) if is_read]
        notes = [*map(self.named, self.notes), *self.damage()]
        paths, targets = [self.paths[index] for index in kept], [self.targets[index] for index in kept]
        return replace(self, paths=paths, targets=targets, notes=notes, damaged={}, keep=self)

    def damage(self) -> list[str]:
        """Sentences on the images that were skipped, and on those of 16 bits if they use few of these; none if all could be read."""
        found = []
        if self.damaged:
            names = some([os.path.basename(path) for path in sorted(self.damaged)])
            found.append(f"{len(self.damaged):,} of {len(self):,} images of {self.source} cannot be read and are skipped: {names}.")
        if 0 < self.largest < _DARK:
            found.append(
                f"Images of {self.source} with 16 bits have no value above {self.largest:,} of 65,535, so they are dark for the network; "
                "if they are of fewer bits, multiply them so that white is 65,535."
            )
        return [self.named(one) for one in found]


def some(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - _NAMED
    shown = ", ".join(quoted(name) for name in names[:_NAMED])
    return f"{shown} and {more:,} more" if more > 0 else shown


def open_images(path: Path, parts: Sequence[str], *names: str, labels_needed: bool = True, strict: bool = False) -> ImageFiles:
    """The images of a folder in any layout. Classes are in the order of their names.

    The folder contains one folder of images per class, possibly nested; or images, and the list `val.txt` in or beside it; or parts such
    as `train` and `val`; or a single folder with one of these. Folders without images are ignored.

    parts: names of parts, best first. names: alternatives to a folder that the caller accepts, for the error message. labels_needed:
    without them, images in a single folder need no list: each is a class of its own, and `classes` is empty. strict: see ImageFiles.
    Raises DataError if the folder is missing or has no images, a link leads to one of its parent folders, or labels are missing.
    """
    _check_folder(path, names)
    notes: list[str] = []
    folder = _folder_of_classes(path, parts, notes)
    folders = _Folders(folder)
    if folders.images:
        files = ImageFiles([entry.name for entry in folders.images], [], [], folder, folders.empty, notes, strict)
        unread: list[str] = []
        for index, entry in enumerate(folders.images):
            found = list(_images_below(entry, _inode(folder), unread))
            files.paths += found
            files.targets += [index] * len(found)
        if folders.others:
            notes.append(f"Folders of {folder} without images are ignored: {some(folders.others)}.")
        if folders.loose:
            notes.append(f"Images of {folder} beside the folders of its classes are ignored: {some(folders.loose)}.")
        notes += _on_unread(unread, folder)
        return files
    if not folders.loose:
        got = f"no images in {some(folders.others)}" if folders.others else "no folders"
        got = f"formats that are not read ({some(folders.unread)})" if folders.unread else got
        wanted = "one folder of images per class" if labels_needed else "images"
        raise DataError(f"folder {str(path)!r} must contain {wanted}, got {got}")
    notes += _on_unread(folders.unread, folder)
    labels = _list_of(folder)
    paths = {name: str(folder / name) for name in folders.loose}
    if labels is not None:
        label_of = read_labels(labels, paths, folder)
        classes = sorted(set(label_of.values()))
        index_of = {name: number for number, name in enumerate(classes)}
        return ImageFiles(classes, list(paths.values()), [index_of[label_of[name]] for name in paths], labels, [], notes, strict)
    if labels_needed:
        raise DataError(
            f"folder {str(folder)!r} must contain one folder per class, or {LABELS} with a line 'FILE CLASS' for each image, "
            "because labels are needed here, got images without either"
        )
    return ImageFiles([], list(paths.values()), list(range(len(paths))), folder, [], notes, strict)


def open_all_images(path: Path, parts: Sequence[str], *names: str, strict: bool = False) -> ImageFiles:
    """All images of a folder and of those below it, without their classes: each is a class of its own, and `classes` is empty.

    Only the best of several parts is used. Arguments and errors are those of `open_images`.
    """
    _check_folder(path, names)
    notes: list[str] = []
    folder = _folder_of_classes(path, parts, notes)
    entries = _entries(folder)
    paths = [entry.path for entry in entries if _is_image(entry)]
    unread = [entry.name for entry in entries if is_unread_picture(entry.name)]
    for entry in entries:
        if os.path.isdir(entry.path):
            paths += _images_below(entry, _inode(folder), unread)
    notes += _on_unread(unread, folder)
    return ImageFiles([], paths, list(range(len(paths))), folder, [], notes, strict)


def _on_unread(names: Sequence[str], folder: Path) -> list[str]:
    """A sentence on pictures in formats that are not read, if there are any."""
    return [f"{len(names):,} files of {folder} have formats that are not read, and are ignored: {some(names)}."] if names else []


class _Folders:
    """What is in a folder: folders with images, names of other folders, those of them with nothing inside, and names of loose images.

    unread: names of pictures in other formats, all of them if there are no images.
    """

    def __init__(self, path: Path) -> None:
        entries = _entries(path)
        self.images: list[os.DirEntry] = []
        self.others: list[str] = []
        self.empty: list[str] = []
        self.unread = [entry.name for entry in entries if is_unread_picture(entry.name)]
        for entry in entries:
            if not os.path.isdir(entry.path):
                continue
            if next(_images_below(entry, _inode(path), self.unread), None) is not None:
                self.images.append(entry)
                continue
            self.others.append(entry.name)
            if not _entries(entry.path):
                self.empty.append(entry.name)
        self.loose = [entry.name for entry in entries if _is_image(entry)]


def _folder_of_classes(path: Path, parts: Sequence[str], notes: list[str]) -> Path:
    """`path`, or the folder below it that contains the classes: a part, or the only folder with images. Adds notes on what was chosen."""
    current = path
    for _ in range(_DEEPEST):
        found = _Folders(current)
        names = [entry.name for entry in found.images]
        if not names or (found.loose and not _are_parts(names, parts)):
            break
        chosen = Path(min(found.images, key=lambda entry: _rank(entry.name, parts)).path)
        if len(names) == 1:
            # a folder of images without a list is a class
            if any(_is_image(entry) for entry in _entries(chosen)) and _list_of(chosen) is None:
                break
        elif not _are_parts(names, parts):
            break
        if len(names) > 1 and chosen.name.lower() != parts[0]:
            notes.append(f"Images of {chosen} are used; beside it: {some([name for name in names if name != chosen.name])}.")
        elif len(names) == 1:
            notes.append(f"Images of {chosen} are used, the only folder of {current} with images.")
        current = chosen
    return current


def _are_parts(names: Sequence[str], parts: Sequence[str]) -> bool:
    return all(name.lower() in parts for name in names)


def _rank(name: str, parts: Sequence[str]) -> int:
    return parts.index(name.lower()) if name.lower() in parts else len(parts)


def _list_of(path: Path) -> Path | None:
    """The list of classes in or beside a folder of images."""
    return next((folder / LABELS for folder in (path, path.parent) if os.path.lexists(folder / LABELS)), None)


def _check_folder(path: Path, names: tuple[str, ...]) -> None:
    if not os.path.isdir(path):  # unlike Path.is_dir, returns False for names that are too long
        others = "".join(f"{name}, " for name in names) + ("or " if names else "")
        if os.path.lexists(path):
            raise DataError(f"data must be {others}{ONE_PER_CLASS}, or a zip file of one, got another file: {str(path)!r}")
        raise DataError(f"data must be {others}{ONE_PER_CLASS}, folder {str(path)!r} does not exist")
    if path.resolve().parent == path.resolve():
        # searching it would take hours, because links are followed
        raise DataError(f"data must be {' or '.join([*names, ONE_PER_CLASS])}, {str(path)!r} is the root of the file system")


def _entries(path: str | Path) -> list[os.DirEntry]:
    """The entries of a folder that are not hidden, sorted by name."""
    try:
        with os.scandir(path) as entries:
            seen = [entry for entry in entries if not entry.name.startswith(".") and entry.name not in _LITTER]
    except OSError as error:
        raise DataError(f"folder {str(path)!r} must be readable ({error.strerror})") from error
    return sorted(seen, key=lambda entry: entry.name)


def _images_below(folder: os.DirEntry, above: _Inode, unread: list[str]) -> Iterator[str]:
    """Paths of all images in a folder and its subfolders. above: its parent folder. unread: gets the names of pictures in other formats."""
    waiting: list[tuple[os.DirEntry, tuple[_Inode, ...]]] = [(folder, (above,))]
    while waiting:
        current, around = waiting.pop()
        inode = _inode(current.path)
        if inode in around:
            raise DataError(f"links must not lead to one of their parent folders, {current.path} does")
        entries = _entries(current.path)
        unread += [entry.name for entry in entries if is_unread_picture(entry.name)]
        yield from (entry.path for entry in entries if _is_image(entry))
        waiting += [(entry, (*around, inode)) for entry in reversed(entries) if os.path.isdir(entry.path)]


def _inode(path: str | Path) -> _Inode:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _is_image(entry: os.DirEntry) -> bool:
    """Whether an entry has the suffix of an image and is no folder. It may be a broken link or a device, which cannot be read."""
    return is_picture_name(entry.name) and not os.path.isdir(entry.path)
