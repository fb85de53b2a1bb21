"""Which process a run belongs to, and whether that process is alive. A complete run belongs to nobody once its resume state is gone."""

import logging
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

FOLDER = "owners"
_log = logging.getLogger(__name__)


class Owner:
    """This process as an owner of runs: a file that it keeps locked as long as it is alive.

    **Liveness.** The operating system releases the lock when the process ends, however it ends, and not before: a process that is slow,
    stopped by a debugger or suspended with its machine counts as alive. No clock is involved, so changing the clock cannot make a live
    process look dead, nor a dead one look alive.

    **Requirement.** A file system with locks, such as a local one or NFS.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / FOLDER
        self._folder.mkdir(parents=True, exist_ok=True)
        # held whenever a lock is tested: a test acquires the lock for a moment, which another test would mistake for a live process
        self._gate = FileLock(folder / f"{FOLDER}.lock")
        self.name = uuid.uuid4().hex
        # not thread-local: any thread may close and so release it
        self._lock = FileLock(self._folder / self.name, thread_local=False)
        with self._gate:
            self._lock.acquire()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """During the block no other process is in such a block, registers, unregisters or tests who is alive."""
        with self._gate:
            yield

    def is_alive(self, name: str) -> bool:
        """Whether the process of that name is alive."""
        if name == self.name:
            return True
        with self._gate:
            return self._is_locked(name)

    def remove_stale(self) -> None:
        """Removes the files of dead processes."""
        with self._gate:
            for path in self._folder.iterdir():
                if path.name != self.name and not self._is_locked(path.name):
                    path.unlink(missing_ok=True)

    def _is_locked(self, name: str) -> bool:
        path = self._folder / name
        if not name or not path.exists():
            return False
        try:
            with FileLock(path, timeout=0):
                return False
        except Timeout:
            return True

    def close(self) -> None:
        """This process no longer owns anything."""
        try:
            if self._folder.is_dir():  # the gate would create it again
                with self._gate:
                    self._lock.release()
                    (self._folder / self.name).unlink(missing_ok=True)
        except OSError as error:  # such as a folder that has become read-only; the next census removes the file
            _log.warning("could not remove %s yet: %s", self._folder / self.name, error)
        finally:
            self._lock.release()
