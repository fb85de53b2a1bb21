"""Atomic writes (temporary name, sync, rename), checks of output paths, and bounded reads of files of the user.

Runs write all their files with `atomic_write`. If the process is killed or the disk is full, the earlier file or none exists under the
name, and at worst a `.NAME.partial` is left over, which `remove_partials` removes.
"""

import errno
import glob
import json
import os
import re
import shutil
import sqlite3
import stat
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from core.errors import ConfigError, DataError, causes, quoted
from core.layout import NAME_BYTES, PATH_BYTES, plain_rights

PARTIAL = ".partial"
JSON_BYTES = 8 << 20  # of a JSON text; parsed, it can take 27 times as much memory


@contextmanager
def atomic_write(path: Path, durable: bool = True) -> Iterator[Path]:
    """Yields a temporary path beside `path` for the block to write to; renames it to `path` if the block succeeds.

    durable: sync the file, so that it survives a power failure and not only the end of the process. Raises OSError if writing fails.
    """
    partial = path.with_name(f".{path.name}{PARTIAL}")
    try:
        yield partial
        plain_rights(partial)
        if durable:
            sync(partial)
        os.replace(partial, path)
        if durable:
            sync(path.parent)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise


def not_stored(source: str, folder: Path, error: OSError) -> DataError:
    """The error to raise when a copy of the file `source` cannot be written to `folder`."""
    return DataError(f"{source} could not be stored ({error.strerror or error}): {folder} must be writable and have free space")


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file atomically."""
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (lambda mode: stat.S_ISCHR(mode) or stat.S_ISBLK(mode), "a device"),
)


def check_regular(path: str | Path) -> None:
    """Raises OSError unless the path is that of a regular file, or of a link to one, because opening a pipe or a device can block forever.

    Called before every file of the user is opened. `strerror` of the exception is the reason in words, also for a path with a NUL.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, "it does not exist", str(path)) from error
    except ValueError as error:
        raise OSError(errno.EINVAL, str(error), str(path)) from error
    kind = next((title for is_kind, title in _KINDS if is_kind(mode)), None)
    if kind is not None:
        raise OSError(errno.EINVAL, f"it is {kind}, not a regular file", str(path))


def read_bounded(path: str | Path, most: int) -> bytes:
    """All bytes of a regular file. Raises OSError if it has more than `most`, is not a regular file, or cannot be read."""
    check_regular(path)
    with open(path, "rb") as file:
        content = file.read(most + 1)  # not its stated size, which can change, and is 0 for files of the kernel
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it has more than {most:,} bytes", str(path))
    return content


def read_unicode(path: str | Path, most: int) -> str:
    """The text of `read_bounded` in UTF-8, or in UTF-16 or UTF-32 as Windows writes them, without a byte order mark.

    Raises OSError as `read_bounded`, UnicodeDecodeError for other bytes.
    """
    content = read_bounded(path, most)
    return content.decode(json.detect_encoding(content))


def read_json(path: str | Path) -> Any:
    """The content of a JSON file. Raises OSError if it is not a regular file of at most JSON_BYTES, ValueError or RecursionError for
    anything but JSON."""
    return json.loads(read_bounded(path, JSON_BYTES))


def sync(path: Path) -> None:
    """Waits until a file, or the directory entries of a folder, are on disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open folders, and writes their entries by itself
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """`sync` for a folder and everything in it."""
    for path in [*folder.rglob("*"), folder]:
        sync(path)


def temporary_copy_path(out: Path, run_id: str) -> Path:
    """Temporary path of a run's copy to `out`. It contains the run's id, so that it can be found after the process was killed."""
    return out.with_name(f".{out.name}.{run_id}{PARTIAL}")


def remove_partials(folder: Path) -> list[Path]:
    """Removes temporary files that killed processes left below `folder`; returns their paths."""
    found = list(folder.rglob(f".*{PARTIAL}"))
    for path in found:
        remove(path)
    return found


def remove(path: Path) -> None:
    """Removes a file or folder. It is not an error if it is already gone, for example because two processes remove it together."""
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
    while path.is_dir() and not path.is_symlink():
        with suppress(FileNotFoundError):
            shutil.rmtree(path)


def is_full(error: BaseException) -> bool:
    """Whether an error, or one of its causes, reports a full disk or an exceeded quota."""
    codes = (errno.ENOSPC, errno.EDQUOT)
    for link in causes(error):
        if isinstance(link, OSError) and link.errno in codes:
            return True
        if isinstance(link, sqlite3.Error) and "is full" in str(link):
            return True
        # safetensors raises an error of its own, with Rust's message, and shutil.copytree one with a list of messages; neither has a cause
        if any(text in str(link) for code in codes for text in (f"(os error {code})", f"[Errno {code}]")):
            return True
    return False


_TEMPORARY = "data-free-quantization-"
_LOCK = ".lock"


@contextmanager
def temporary_folder(parent: Path | None = None, prefix: str = _TEMPORARY) -> Iterator[Path]:
    """A new folder in `parent`, by default the system's temporary folder. It is removed after the block, unless the block renamed it.

    First removes the folders with this prefix that killed processes left in `parent`.
    """
    parent = parent or Path(tempfile.gettempdir())
    remove_abandoned(parent, prefix)
    folder = parent / f"{prefix}{uuid.uuid4().hex}"
    # held as long as the process lives, and acquired before the folder exists: a folder whose lock is free is abandoned
    lock = FileLock(folder.with_name(folder.name + _LOCK))
    with suppress(NotImplementedError):  # a file system without locks, where nothing is taken for abandoned
        lock.acquire()
    try:
        folder.mkdir(0o700)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()
        with suppress(OSError):
            os.unlink(lock.lock_file)


def remove_abandoned(parent: Path | None = None, prefix: str = _TEMPORARY) -> None:
    """Removes the temporary folders that killed processes left in `parent`, by default the system's temporary folder."""
    parent = parent or Path(tempfile.gettempdir())
    for path in parent.glob(f"{glob.escape(prefix)}*{_LOCK}"):
        # a live process holds the lock, and what other users left is theirs to remove
        with suppress(Timeout, NotImplementedError, OSError), FileLock(path, timeout=0):
            remove(path.with_name(path.name.removesuffix(_LOCK)))
            path.unlink()


OUT_BYTES = 200  # of an output name; its temporary name is longer, and file systems accept 255


@contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
    """Yields a temporary folder beside `out`; renames it to `out` if the block succeeds, and removes it otherwise.

    Raises DataError if `out` exists and is not an empty folder: nothing is overwritten.
    """
    check_free(out)
    out = Path(os.path.realpath(out))
    with parents_of(out), temporary_folder(out.parent, f".{out.name}.") as temporary:
        yield temporary
        plain_rights(temporary)
        sync_tree(temporary)
        if out.is_dir():
            out.rmdir()
        temporary.rename(out)


@contextmanager
def parents_of(out: Path) -> Iterator[None]:
    """Creates the parent folders of `out` for the block; removes those that were missing if the block fails."""
    missing = [parent for parent in out.parents if not parent.exists()]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for parent in missing:
            # another process may have written to the folder
            with suppress(OSError):
                parent.rmdir()
        raise


def named_as(out: Path, suffix: str) -> Path:
    """`out` if it ends in `suffix`, in upper or lower case; with `suffix` appended if it has no ending. Raises ConfigError for another."""
    if out.suffix.lower() == suffix:
        return out
    if re.match(r"\.[^\W\d]", out.suffix):  # what follows the point of a number is no ending
        raise ConfigError(f"out must end in {suffix}, got {str(out)!r}")
    return out.with_name(out.name + suffix)


def check_free(out: Path) -> None:
    """Raises DataError unless `out` can be created, or is an empty folder other than the current one."""
    # the functions of os.path, unlike those of Path, treat inaccessible paths as missing
    if os.path.lexists(out) and not _is_empty_folder(out):
        raise DataError(f"output path must be new or an empty folder, {str(out)!r} already exists")
    if os.path.realpath(out) == os.path.realpath("."):
        raise DataError(f"output path must be new or an empty folder, {str(out)!r} is the current folder")
    check_parents(out)


def _is_empty_folder(path: Path) -> bool:
    try:
        return not any(path.iterdir())
    except OSError:  # not a folder, or not readable
        return False


def check_parents(out: Path) -> None:
    """Raises DataError unless the closest existing parent folder of `out` is writable, and the names are not too long."""
    path = out.absolute()
    if len(os.fsencode(path.name)) > OUT_BYTES or any(len(os.fsencode(part)) > NAME_BYTES for part in path.parts):
        raise DataError(
            f"output name must have at most {OUT_BYTES} bytes and its folders {NAME_BYTES} each, {quoted(str(out))} is too long"
        )
    if len(os.fsencode(path)) > PATH_BYTES:
        raise DataError(f"output path must have at most {PATH_BYTES:,} bytes, {quoted(str(out))} is too long")
    parent = next(parent for parent in path.parents if os.path.lexists(parent))
    if not os.path.isdir(parent) or not os.access(parent, os.W_OK | os.X_OK):
        raise DataError(f"output path must be in a writable folder, {str(out)!r} cannot be created in {str(parent)!r}")
