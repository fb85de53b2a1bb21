"""Files that are there whole or not at all: written under a temporary name, synced, renamed.

What a run leaves on disk goes through `atomic_write`, so that a process that is killed, or a disk that is full, leaves the earlier file or
none under a name, and at worst a `.NAME.partial` that `remove_partials` finds.
"""

import errno
import json
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from core.errors import DataError, quoted
from core.layout import NAME_BYTES, PATH_BYTES, plain_rights

PARTIAL = ".partial"


@contextmanager
def atomic_write(path: Path, durable: bool = True) -> Iterator[Path]:
    """A temporary name beside `path` for the block to write a file to; it takes the name `path` when the block ends well.

    durable: synced, so that it outlives a power cut; without, it outlives only the process. Raises OSError when the disk does.
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


def write_json(path: Path, value: Any) -> None:
    """A JSON file, whole."""
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(value, indent=2) + "\n")


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open a folder, and writes names down by itself
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """`sync` for everything below a folder, and the folder."""
    for path in [*folder.rglob("*"), folder]:
        sync(path)


def temporary_copy_path(out: Path, run_id: str) -> Path:
    """What a run's copy to `out` is called until it is whole: the run's own name, so that it is found after a kill."""
    return out.with_name(f".{out.name}.{run_id}{PARTIAL}")


def remove_partials(folder: Path) -> list[Path]:
    """Removes what writers that were killed left below `folder`; returns what it removed."""
    found = list(folder.rglob(f".*{PARTIAL}"))
    for path in found:
        remove(path)
    return found


def remove(path: Path) -> None:
    """Removes a file or a whole folder. What is gone already, as when two processes remove it together, is no error."""
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
    while path.is_dir() and not path.is_symlink():
        with suppress(FileNotFoundError):
            shutil.rmtree(path)


def is_full(error: BaseException) -> bool:
    """Whether an error, or one that it hides, says that the disk, or what one may use of it, is full."""
    codes = (errno.ENOSPC, errno.EDQUOT)
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and link.errno in codes:
            return True
        if isinstance(link, sqlite3.Error) and "is full" in str(link):
            return True
        # safetensors says it in the words of Rust, with no error of Python's behind them
        if any(f"(os error {code})" in str(link) for code in codes):
            return True
        link = link.__cause__ or link.__context__
    return False


OUT_BYTES = 200  # until it is whole, what is written has a longer name


@contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its name when the block ends well, and disappears when it does not.

    Raises DataError when `out` exists and is not an empty folder: nothing that is there is overwritten.
    """
    check_free(out)
    out = Path(os.path.realpath(out))
    with parents_of(out):
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        try:
            yield temporary
            plain_rights(temporary)
            sync_tree(temporary)
            if out.is_dir():
                out.rmdir()
            temporary.rename(out)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


@contextmanager
def parents_of(out: Path) -> Iterator[None]:
    """Makes the folders above `out` for the block; those that were missing are removed again when it does not end well."""
    missing = [parent for parent in out.parents if not parent.exists()]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for parent in missing:
            # someone else may have put something there
            with suppress(OSError):
                parent.rmdir()
        raise


def check_free(out: Path) -> None:
    """Raises DataError unless `out` is a new name that can be made, or an empty folder other than the current one."""
    # the functions of os.path, unlike those of Path, take what cannot be looked at for what is not there
    if os.path.lexists(out) and not _is_empty_folder(out):
        raise DataError(f"{str(out)!r} exists already: allowed is a new or an empty folder")
    if os.path.realpath(out) == os.path.realpath("."):
        raise DataError(f"{str(out)!r} is the current folder: allowed is a new folder, or another empty one")
    check_parents(out)


def _is_empty_folder(path: Path) -> bool:
    try:
        return not any(path.iterdir())
    except OSError:  # no folder, or none that may be looked into
        return False


def check_parents(out: Path) -> None:
    """Raises DataError unless `out` lies, however deep, in a folder that can be written to."""
    path = out.absolute()
    if len(os.fsencode(path.name)) > OUT_BYTES or any(len(os.fsencode(part)) > NAME_BYTES for part in path.parts):
        raise DataError(
            f"{quoted(str(out))} is too long: allowed is a name of at most {OUT_BYTES} bytes, in folders of at most {NAME_BYTES}"
        )
    if len(os.fsencode(path)) > PATH_BYTES:
        raise DataError(f"{quoted(str(out))} is too long: allowed is a path of at most {PATH_BYTES:,} bytes")
    parent = next(parent for parent in path.parents if os.path.lexists(parent))
    if not os.path.isdir(parent) or not os.access(parent, os.W_OK | os.X_OK):
        raise DataError(f"{str(out)!r} cannot be made in {str(parent)!r}: allowed is a name in a folder that can be written to")
