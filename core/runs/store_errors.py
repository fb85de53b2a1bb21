"""What an error of SQLite or of the operating system says about the runs folder, in one sentence."""

import errno
import os
import shutil
import sqlite3
from pathlib import Path

from core.errors import StoreError, first_line
from core.files import is_full

DATABASE = "runs.sqlite3"
_SHARED_MEMORY = 1 << 15  # bytes by which SQLite's -shm file grows
_NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)


def is_locked(error: BaseException) -> bool:
    """Whether another process holds the lock of the database that was needed."""
    return isinstance(error, sqlite3.OperationalError) and "locked" in str(error)


def is_read_only(folder: Path) -> bool:
    """Whether a runs folder has a database that this process can only read."""
    database = folder / DATABASE
    return os.path.exists(database) and not all(os.access(path, os.W_OK) for path in (folder, database))


def read_only_error(folder: Path) -> StoreError:
    """The sentence for what cannot be written."""
    return StoreError(f"the runs folder must be writable, but {folder} is read-only: make it writable and try again")


def store_error(error: BaseException, folder: Path) -> StoreError | None:
    """The sentence for an error while the runs folder was read or written; None for an error that is not about the folder."""
    of_file = isinstance(error, OSError) and (error.filename is None or _is_inside(error.filename, folder))
    of_database = isinstance(error, sqlite3.OperationalError) or type(error) is sqlite3.DatabaseError
    # SQLite fails with "disk I/O error" when there is no space for the memory that its processes share
    if is_full(error) or ("disk I/O error" in str(error) and of_database and _has_no_space(folder)):
        return StoreError(f"the disk that holds {folder} is full: free some space and try again")
    if not (of_file or of_database):
        return None
    if not os.path.exists(folder / DATABASE):
        return StoreError(f"the runs folder {folder} was removed or is not mounted: put it back and try again")
    if is_locked(error):
        return StoreError(f"the database in {folder} is locked by another process: try again when that process is done")
    if getattr(error, "errno", None) in _NOT_WRITABLE or (of_database and ("readonly" in str(error) or not os.access(folder, os.W_OK))):
        return read_only_error(folder)
    if of_database:
        return StoreError(f"the database in {folder} cannot be read or written ({first_line(error)}): check its disk and try again")
    return None


def _has_no_space(folder: Path) -> bool:
    try:
        return shutil.disk_usage(folder).free < _SHARED_MEMORY
    except OSError:  # it was removed
        return False


def _is_inside(name: object, folder: Path) -> bool:
    return isinstance(name, (str, bytes)) and Path(os.fsdecode(name)).is_relative_to(folder)
