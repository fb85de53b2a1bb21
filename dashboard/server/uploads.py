"""Uploaded networks and archives of images: checked in a process of their own before they are stored, under the hash of their content.

In the run store's folder: `uploads/networks/HASH.safetensors` with `HASH.json` (its label on the page) beside it, and
`uploads/images/HASH/given`, an image set or one folder per class. The browser's file name is shown but never used as a path. Files appear
complete: they are written under another name, synced and renamed. The same file twice is one upload.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO
from weakref import WeakValueDictionary

from core.data.archives import ARCHIVE_BYTES, NUMPY_SUFFIX, is_archive, is_numpy_archive, unpack_apart
from core.data.zip_files import RATIO, UNPACKED_BYTES
from core.errors import DataError, ModelError
from core.files import atomic_folder, remove, sync, write_json
from core.layout import NETWORKS, UPLOADS, USER_IMAGES, plain_rights
from core.models.apart import PROGRAM, is_program
from core.models.identification import Identified, identify
from core.models.other_formats import ALLOWED, other_format
from core.models.registry import NETWORK_BYTES, GivenSpec
from core.models.user_files import check_checkpoint, import_network
from core.runs.early_checks import check_architecture
from core.untrusted import AT_ONCE, WAIT_SECONDS
from dashboard import text

MEGABYTE = 1 << 20
NETWORK_ENDINGS = (".safetensors", ".pt", ".pth", PROGRAM)
SPARE_BYTES = 512 * MEGABYTE  # of the disk that uploads leave free for runs
_CHUNK = MEGABYTE
_STALE_SECONDS = 24 * 3600  # older temporary files are from processes that were killed
_lock = threading.Lock()  # of the next; nothing is computed while it is held
# hash of a file -> held while that file is checked and stored
_storing_now: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()
AT_ONCE_OF_ONE = AT_ONCE // 2  # checks for one user: half of all, so that others find a place
# user -> the places that are left to them, while they have an upload
_places: WeakValueDictionary[str, threading.BoundedSemaphore] = WeakValueDictionary()


@contextmanager
def place_of(user: str) -> Iterator[None]:
    """During the block, one of the AT_ONCE_OF_ONE uploads of a user that are checked at the same time; waits for one.

    user: the name of a login, or of a session without one. Raises DataError after WAIT_SECONDS.
    """
    with _lock:
        mine = _places.setdefault(user, threading.BoundedSemaphore(AT_ONCE_OF_ONE))
    if not mine.acquire(timeout=WAIT_SECONDS):
        raise DataError(
            f"at most {AT_ONCE_OF_ONE} files of one user are checked at the same time, and yours took over {WAIT_SECONDS} seconds; "
            "try again later"
        )
    try:
        yield
    finally:
        mine.release()


class Uploads:
    """The uploads of one run store."""

    def __init__(self, store_folder: Path) -> None:
        self.folder = store_folder / UPLOADS

    def store_network(self, file: IO[bytes], name: str) -> str:
        """Stores a weights file as `pretrain` writes it; returns its path, which is a model name. name: the browser's file name.

        Raises DataError or ModelError, naming the file, if it is too large, of another type, or not a usable network.
        """
        name = text.one_line_text(name, 100)
        size = _checked_size(file, name, NETWORK_BYTES)
        _check_start(file, name)
        with _storing(name):
            folder = self._folder_for(NETWORKS, size)
            digest = _hash(file)
            target = folder / f"{digest}.safetensors"
            with _one_at_a_time(digest):
                if not target.exists():
                    self._store_network(file, name, target)
        return str(target)

    def _store_network(self, file: IO[bytes], name: str, target: Path) -> None:
        with _copied(file, target.parent) as temporary:
            title, classes = check_checkpoint(temporary, name)
            plain_rights(temporary)
            sync(temporary)
            # the label first, so that no network is without one
            label = f"{text.one_line_text(title, 60)} ({classes} classes), uploaded as {text.one_line_text(name, 60)}"
            write_json(target.with_suffix(".json"), {"label": label})
            temporary.replace(target)
            sync(target.parent)

    def import_network(self, file: IO[bytes], name: str, architecture: str, given: GivenSpec | None = None) -> str:
        """Imports weights or a program trained elsewhere, with the values that the user gave; returns the path of the stored network.

        architecture: FIND_OUT for the one that the weights are found to be of.

        Raises ConfigError, DataError or ModelError, naming the file, if it cannot be used here.
        """
        name = text.one_line_text(name, 100)
        size = _checked_size(file, name, NETWORK_BYTES)
        _check_format(file, name)
        with _storing(name):
            folder = self._folder_for(NETWORKS, 2 * size)
            with _copied(file, folder) as temporary:
                return str(import_network(temporary, architecture, out_folder=folder, name=name, given=given or GivenSpec()))

    def identify_network(self, file: IO[bytes], name: str) -> Identified:
        """What the network in a file is, see `core.models.identification.identify`; nothing is stored. name: the browser's file name.

        Raises DataError or ModelError, naming the file, if it is too large or cannot be read.
        """
        name = text.one_line_text(name, 100)
        size = _checked_size(file, name, NETWORK_BYTES)
        with _storing(name), _copied(file, self._folder_for(NETWORKS, size)) as temporary:
            return identify(temporary, name)

    def store_images(self, file: IO[bytes], name: str) -> Path:
        """Unpacks and stores an archive of images or a NumPy archive; returns the folder, for `images_from` with the method USER_IMAGES.

        Raises DataError, naming the file, if core.data.archives does not accept it.
        """
        name = text.one_line_text(name, 100)
        size = _checked_size(file, name, ARCHIVE_BYTES)
        with _storing(name):
            digest = _hash(file)
            target = self._folder_for("images", size + min(UNPACKED_BYTES, RATIO * size)) / digest
            with _one_at_a_time(digest):
                if not target.is_dir():
                    with _copied(file, target.parent) as temporary, atomic_folder(target) as folder:
                        (folder / USER_IMAGES).mkdir()
                        unpack_apart(temporary, folder / USER_IMAGES, name)
                    sync(target.parent)
        return target

    def networks(self) -> dict[str, str]:
        """Path -> label on the page, the newest first."""
        stored = [path for suffix in (".safetensors", PROGRAM) for path in (self.folder / NETWORKS).glob(f"[0-9a-f]*{suffix}")]
        paths = sorted(stored, key=lambda path: path.stat().st_mtime, reverse=True)
        return {str(path): _label(path) for path in paths}

    def _folder_for(self, kind: str, size: int) -> Path:
        """The folder for a kind of upload. Raises OSError if it cannot be made, DataError if the disk has no space for `size` bytes."""
        folder = self.folder / kind
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob(".*"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                    remove(path)
        free = shutil.disk_usage(folder).free
        if free < size + SPARE_BYTES:
            raise DataError(f"the disk must have {(size + SPARE_BYTES) // MEGABYTE:,} MB free for this upload, got {free // MEGABYTE:,} MB")
        return folder


def check_file(file: IO[bytes], name: str) -> None:
    """Raises DataError or ModelError, naming the file, if its name or first bytes show that it is no network, of whatever architecture."""
    shown = text.one_line_text(name, 100)
    _check_format(file, shown)
    if not name.lower().endswith(NETWORK_ENDINGS):
        raise DataError(f"network must be a {', '.join(NETWORK_ENDINGS[:-1])} or {NETWORK_ENDINGS[-1]} file, got {shown!r}")


def check_network(file: IO[bytes], name: str, architecture: str) -> None:
    """Raises as `check_file` does, and for a file that cannot be stored or imported as this architecture; UnknownNameError for an
    architecture that its zoo does not have.
    """
    check_file(file, name)
    if is_program(name):
        return
    if architecture:
        check_architecture(architecture)
    else:
        _check_start(file, text.one_line_text(name, 100))


def _check_format(file: IO[bytes], name: str) -> None:
    """Raises ModelError, naming the file and what to do instead, if its first bytes or the ending of its name are of another format."""
    file.seek(0)
    if other := other_format(file.read(9), name):
        raise ModelError(f"{name!r} must be {ALLOWED}, got {other[0]}", other[1])


def _check_start(file: IO[bytes], name: str) -> None:
    """Raises DataError or ModelError, naming the file, unless it begins like a safetensors file."""
    _check_format(file, name)
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    start = file.read(9)
    if len(start) < 9 or int.from_bytes(start[:8], "little") > size or start[8:] != b"{":
        raise DataError(
            f"{name!r} must be a .safetensors file written by `pretrain`, or another one with its architecture given, "
            f"but starts with {start!r}"
        )


def check_images(name: str) -> None:
    """Raises DataError, naming the file, if its name is not that of images that can be stored."""
    if not (is_archive(Path(name)) or is_numpy_archive(Path(name))):
        raise DataError(f"images must be a .zip or {NUMPY_SUFFIX} file, got {text.one_line_text(name, 100)!r}")


@contextmanager
def _copied(file: IO[bytes], folder: Path) -> Iterator[Path]:
    """A copy on the disk, deleted after the block."""
    handle, path = tempfile.mkstemp(prefix=".", suffix=".safetensors", dir=folder)
    temporary = Path(path)
    try:
        file.seek(0)
        with os.fdopen(handle, "wb") as copy:
            shutil.copyfileobj(file, copy, _CHUNK)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _storing(name: str) -> Iterator[None]:
    """Raises DataError, naming the file, for what the disk refuses."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{name!r} could not be stored: the run store must be writable and have space, got {error.strerror or error}"
        ) from error


@contextmanager
def _one_at_a_time(digest: str) -> Iterator[None]:
    """Waits while the same file, sent by somebody else or twice, is checked, so that it becomes one upload. Other files do not wait."""
    with _lock:
        mine = _storing_now.setdefault(digest, threading.Lock())
    with mine:
        yield


def _checked_size(file: IO[bytes], name: str, most: int) -> int:
    """Size in bytes; the file is at its start. Raises DataError if it is larger than `most`."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if size > most:
        raise DataError(f"{name!r} must have at most {most:,} bytes, got {size:,}")
    return size


def _hash(file: IO[bytes]) -> str:
    file.seek(0)
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def _label(path: Path) -> str:
    try:
        return text.one_line_text(json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["label"], 200)
    except (OSError, ValueError, KeyError, TypeError):
        return f"an uploaded network ({path.stem[:8]})"
