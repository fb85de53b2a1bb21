"""Which process a run belongs to, and whether it still lives."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

FOLDER = "owners"


class Owner:
    """This process, as the others that use the folder see it: a file that it keeps locked for as long as it lives.

    The operating system gives the lock free when the process ends, however it ends, and not before: a process that is only slow,
    stopped by a debugger or asleep with its machine lives. No clock is involved, so none that is put forward or back can bury the
    living or wake the dead. Needs a file system with locks, as local ones and NFS have.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / FOLDER
        self._folder.mkdir(parents=True, exist_ok=True)
        # held for every look at a lock: a look takes the lock for a moment, which a second look would mistake for life
        self._gate = FileLock(folder / f"{FOLDER}.lock")
        self.name = uuid.uuid4().hex
        # one lock for the process: whichever thread closes gives it free
        self._lock = FileLock(self._folder / self.name, thread_local=False)
        with self._gate:
            self._lock.acquire()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """No other process is in such a block, or comes, goes or looks who lives, while this one is."""
        with self._gate:
            yield

    def lives(self, name: str) -> bool:
        """Whether the process of that name still lives."""
        if name == self.name:
            return True
        with self._gate:
            return self._held(name)

    def sweep(self) -> None:
        """Removes the files that dead processes left."""
        with self._gate:
            for path in self._folder.iterdir():
                if path.name != self.name and not self._held(path.name):
                    path.unlink(missing_ok=True)

    def _held(self, name: str) -> bool:
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
        with self._gate:
            self._lock.release()
            (self._folder / self.name).unlink(missing_ok=True)
