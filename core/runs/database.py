"""The SQLite database of a runs folder: connections, transactions, schema versions, and the reserve for a full disk."""

import errno
import logging
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from core.config import RunConfig
from core.errors import ConfigError, CoreError, RunError, StoreError
from core.files import atomic_write, is_full
from core.models.registry import NETWORK_SUFFIXES
from core.runs.owner import Owner
from core.runs.places import portable
from core.runs.run import Run, config_of_row, portable_text, require_listed, run_of_row, searched_columns
from core.runs.store_errors import DATABASE, is_locked, is_read_only, read_only_error, store_error

_T = TypeVar("_T")
_log = logging.getLogger(__name__)

SECONDS_FOR_A_LOCK = 10.0  # how long a transaction waits for another process; those of runs wait on, see Database.patient
RESERVE = ".reserve"  # deleted when the disk is full, so that a run can still record that it failed
RESERVE_BYTES = 1 << 20
# one entry per schema version, starting from an empty database: a database of version n still needs the entries from index n on
_VERSIONS = (
    """
    CREATE TABLE run (
        id TEXT PRIMARY KEY, name TEXT NOT NULL, config TEXT NOT NULL, state TEXT NOT NULL, owner TEXT NOT NULL,
        created REAL NOT NULL, started REAL, ended REAL, error TEXT NOT NULL DEFAULT '', traceback TEXT NOT NULL DEFAULT '',
        stage TEXT NOT NULL DEFAULT '', stage_started REAL, step INTEGER NOT NULL DEFAULT 0, total INTEGER NOT NULL DEFAULT 0
    );
    CREATE TABLE record (
        id INTEGER PRIMARY KEY, run TEXT NOT NULL REFERENCES run(id) ON DELETE CASCADE,
        stage TEXT NOT NULL, lane TEXT NOT NULL, step INTEGER NOT NULL, data TEXT NOT NULL
    );
    CREATE INDEX record_by_run ON record (run, stage, id);
    CREATE TABLE change (
        id INTEGER PRIMARY KEY, run TEXT NOT NULL REFERENCES run(id) ON DELETE CASCADE,
        lane TEXT NOT NULL, step INTEGER NOT NULL, name TEXT NOT NULL, value REAL NOT NULL
    );
    CREATE TABLE result (
        run TEXT NOT NULL REFERENCES run(id) ON DELETE CASCADE, name TEXT NOT NULL, data TEXT NOT NULL, PRIMARY KEY (run, name)
    )
    """,
    """
    ALTER TABLE run ADD COLUMN place INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE run ADD COLUMN attempt INTEGER NOT NULL DEFAULT 1;
    ALTER TABLE run ADD COLUMN user TEXT NOT NULL DEFAULT '';
    ALTER TABLE run ADD COLUMN out TEXT NOT NULL DEFAULT '';
    ALTER TABLE run ADD COLUMN part TEXT NOT NULL DEFAULT '';
    ALTER TABLE run ADD COLUMN stage_done INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE run ADD COLUMN deleted INTEGER NOT NULL DEFAULT 0;
    CREATE INDEX change_by_run ON change (run, id)
    """,
    """
    ALTER TABLE run ADD COLUMN note TEXT NOT NULL DEFAULT '';
    ALTER TABLE run ADD COLUMN tags TEXT NOT NULL DEFAULT '';
    ALTER TABLE run ADD COLUMN pinned INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE run ADD COLUMN trashed REAL
    """,
    """
    ALTER TABLE record RENAME COLUMN lane TO series;
    ALTER TABLE change RENAME COLUMN lane TO method
    """,
    # see `searched_columns`; `mixed`: whether layers have different bits
    """
    ALTER TABLE run ADD COLUMN model TEXT NOT NULL DEFAULT '';
    ALTER TABLE run ADD COLUMN data TEXT NOT NULL DEFAULT '';
    ALTER TABLE run ADD COLUMN images_from TEXT NOT NULL DEFAULT '';
    ALTER TABLE run ADD COLUMN methods TEXT NOT NULL DEFAULT '';
    ALTER TABLE run ADD COLUMN widths TEXT NOT NULL DEFAULT '';
    ALTER TABLE run ADD COLUMN mixed INTEGER NOT NULL DEFAULT 0;
    CREATE INDEX run_by_time ON run (created DESC, id DESC) WHERE NOT deleted AND trashed IS NULL;
    CREATE INDEX run_by_state ON run (state, place, deleted, trashed);
    CREATE INDEX run_by_model ON run (model, created DESC, id DESC) WHERE NOT deleted AND trashed IS NULL;
    CREATE INDEX run_by_images ON run (images_from) WHERE images_from != '';
    CREATE INDEX run_in_trash ON run (trashed) WHERE trashed IS NOT NULL;
    CREATE INDEX run_deleted ON run (deleted) WHERE deleted;
    CREATE INDEX result_by_name ON result (name)
    """,
    # `network`: see Run; from this version on, paths are stored as places.py describes
    """
    ALTER TABLE run ADD COLUMN network TEXT NOT NULL DEFAULT ''
    """,
    """
    ALTER TABLE run ADD COLUMN parent TEXT NOT NULL DEFAULT ''; ALTER TABLE run ADD COLUMN branch_at INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE run ADD COLUMN planned TEXT NOT NULL DEFAULT '[]'; CREATE INDEX run_by_parent ON run (parent) WHERE parent != ''
    """,
)
_FIRST_WITH_PLACES = 6
_File = tuple[int, int]  # device and number of a file


class Database:
    """The database of one runs folder, opened by one process.

    **Threads.** Every method may be called from any thread; each thread has its own connection.

    **Durability.** A durable transaction is on the disk when it ends, together with everything written before it. Others survive the end
    of the process, but the last ones may be lost in a power failure. The database stays consistent either way.

    **Full disk.** `write_or_use_reserve` and `change_run` delete the reserve file and try again. `refill_reserve` restores it.

    **Locks.** A transaction waits SECONDS_FOR_A_LOCK for one of another process, and in a block of `patient` as long as it takes.

    **Read-only folders.** One that has a database is opened for reading. What writes raises StoreError, until the folder can be written.

    **Errors.** Every method raises StoreError when the folder cannot be read or written, such as on a full disk, and works again when it
    can be. The constructor also raises RunError for a path that is not a writable folder or one with a database, a file that is not a
    database, a newer schema version, and an older one in a read-only folder. It creates a missing folder and upgrades an older schema; a
    failed upgrade changes nothing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # connections not in use, each with the database file that it has open; a new one is opened for each thread that needs one at the
        # same time
        self._idle: queue.LifoQueue[tuple[sqlite3.Connection, _File]] = queue.LifoQueue()
        self._thread = threading.local()
        self._opening = threading.RLock()
        self._process: Owner | None = None
        self._open()

    def _open(self) -> None:
        """Registers this process and upgrades the schema; of a read-only folder, only checks that the schema needs no upgrade."""
        try:
            if is_read_only(self.folder):
                self._check_version()
                return
            self.folder.mkdir(parents=True, exist_ok=True)
            self._process = Owner(self.folder)
            with self._process.exclusive():
                if not os.path.exists(self.folder / DATABASE):
                    with self.errors():
                        self._connect().close()
                # read first: that does not wait for a process that writes
                if not self._or_use_reserve(self._is_migrated):
                    self.write_or_use_reserve(self._migrate)
            self.refill_reserve()
        except (OSError, NotImplementedError) as error:  # the latter from a file system without locks
            self.close()
            found = store_error(error, self.folder) if is_full(error) else None
            raise found or RunError(f"the runs folder must be a writable folder, got {str(self.folder)!r} ({error})") from error
        except StoreError as error:
            self.close()
            cause = error.__cause__
            if type(cause) is sqlite3.DatabaseError or not (self.folder / DATABASE).is_file():
                raise RunError(
                    f"{self.folder / DATABASE} must be a database of this program or absent, but cannot be read ({cause})"
                ) from error
            raise
        except RunError:
            self.close()
            raise

    @contextmanager
    def errors(self, kinds: tuple[type[Exception], ...] = (sqlite3.Error, OSError)) -> Iterator[None]:
        """Errors of these kinds in the block become StoreErrors if they are about the folder."""
        try:
            yield
        except kinds as error:
            found = store_error(error, self.folder)
            if found is None:
                raise
            raise found from error

    @contextmanager
    def patient(self) -> Iterator[None]:
        """In this thread, transactions in the block wait for another process that locks the database as long as it takes."""
        before = getattr(self._thread, "patient", False)
        self._thread.patient = True
        try:
            yield
        finally:
            self._thread.patient = before

    def _when_unlocked(self, act: Callable[[], _T]) -> _T:
        """The result of `act`, which is called again when it finds the database locked and this thread is patient."""
        while True:
            try:
                return act()
            except sqlite3.OperationalError as error:
                if not is_locked(error) or not getattr(self._thread, "patient", False):
                    raise
                _log.warning("the database in %s is locked by another process: waiting for it", self.folder)

    def _is_migrated(self) -> bool:
        with self.read() as connection:
            return bool(connection.execute("PRAGMA user_version").fetchone()[0] == len(_VERSIONS))

    def _check_version(self) -> None:
        with self.read() as connection:
            version = self._version(connection)
        if version < len(_VERSIONS):
            raise RunError(f"{self.folder} must be upgraded from schema version {version} to {len(_VERSIONS)}, but is read-only: copy it")

    def _version(self, connection: sqlite3.Connection) -> int:
        version = int(connection.execute("PRAGMA user_version").fetchone()[0])
        if version > len(_VERSIONS):
            raise RunError(f"{self.folder / DATABASE} must have schema version 0 to {len(_VERSIONS)}, got {version}: update this program")
        return version

    def _migrate(self, connection: sqlite3.Connection) -> None:
        version = self._version(connection)
        for statements in _VERSIONS[version:]:
            for statement in statements.split(";"):
                try:
                    connection.execute(statement)
                except sqlite3.OperationalError as error:
                    # processes of versions before 7 that still run reset the number of a schema that was upgraded
                    if "duplicate column" not in str(error) and "already exists" not in str(error):
                        raise
        if version < _FIRST_WITH_PLACES:
            self._rewrite_runs(connection)
        connection.execute(f"PRAGMA user_version = {len(_VERSIONS)}")

    def _rewrite_runs(self, connection: sqlite3.Connection) -> None:
        """Of earlier versions: their paths in the stored form of today, names without a hash, and the searched columns.

        A config that cannot be read stays as it is.
        """
        for row in connection.execute("SELECT id, name, config, out FROM run").fetchall():
            with suppress(ValueError, RecursionError):
                connection.execute("UPDATE run SET config = ? WHERE id = ?", (portable_text(row["config"], self.folder), row["id"]))
            connection.execute("UPDATE run SET out = ? WHERE id = ?", (portable(row["out"], self.folder), row["id"]))
            with suppress(ConfigError):
                config = config_of_row(connection.execute("SELECT id, config FROM run WHERE id = ?", (row["id"],)).fetchone(), self.folder)
                columns = searched_columns(config, self.folder)
                if config.model.endswith(NETWORK_SUFFIXES):
                    columns["name"] = row["name"].replace(Path(config.model).name, columns["network"])
                names = ", ".join(f"{name} = ?" for name in columns)
                connection.execute(f"UPDATE run SET {names} WHERE id = ?", (*columns.values(), row["id"]))

    @property
    def is_for_reading(self) -> bool:
        """Whether the folder is read-only, and was so from the start."""
        return self._process is None and is_read_only(self.folder)

    def _connect(self, read_only: bool = False) -> sqlite3.Connection:
        address = (self.folder / DATABASE).absolute().as_uri()
        if read_only:
            # in mode=ro, SQLite also reads what a write-ahead log has and follows a process that can write, but only where it finds the
            # log; nothing changes a database without one
            log = self.folder / f"{DATABASE}-wal"
            address += "?mode=ro" if log.exists() and log.stat().st_size else "?mode=ro&immutable=1"
        connection = sqlite3.connect(address, timeout=SECONDS_FOR_A_LOCK, isolation_level=None, check_same_thread=False, uri=True)
        try:
            connection.row_factory = sqlite3.Row
            connection.create_function("casefold", 1, str.casefold, deterministic=True)
            if not read_only:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA foreign_keys = ON")
        except BaseException:
            connection.close()
            raise
        return connection

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A connection that no other thread uses during the block. Raises StoreError, also for what SQLite raises in the block."""
        with self.errors():
            connection, file = self._when_unlocked(self._take)
        try:
            with self.errors((sqlite3.Error,)):
                yield connection
        finally:
            # in a transaction, the rollback failed too; the next user would continue it
            if connection.in_transaction or file is None:
                connection.close()
            else:
                self._idle.put((connection, file))

    def _take(self) -> tuple[sqlite3.Connection, _File | None]:
        """An idle or new connection, and the file it has open; None for a read-only one, which is for one use: a process that can write
        may start at any time, and an immutable database would not show what it writes."""
        # a connection would go on with the file that it has open, also when it was deleted, and what it writes would be lost
        found = os.stat(self.folder / DATABASE)
        file = found.st_dev, found.st_ino
        with suppress(queue.Empty):
            while True:
                connection, opened = self._idle.get_nowait()
                if opened == file:
                    return connection, file
                connection.close()
        read_only = is_read_only(self.folder)
        connection = self._connect(read_only)
        try:
            connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone()  # finds out whether it is locked
        except BaseException:
            connection.close()
            raise
        return connection, None if read_only else file

    @contextmanager
    def write(self, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """A transaction: committed when the block ends, rolled back when it raises. durable: see the class."""
        _ = self.process  # raises StoreError, or upgrades the schema of what was read-only
        with self.read() as connection:
            connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            # at once: a transaction that starts by reading may be outdated when it writes
            self._when_unlocked(lambda: connection.execute("BEGIN IMMEDIATE"))
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                # a full disk has ended the transaction already
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def write_or_use_reserve(self, change: Callable[[sqlite3.Connection], _T]) -> _T:
        """A durable transaction that deletes the reserve and tries again when the disk is full. Returns what `change` returns."""

        def transaction() -> _T:
            with self.write() as connection:
                return change(connection)

        return self._or_use_reserve(transaction)

    def _or_use_reserve(self, act: Callable[[], _T]) -> _T:
        try:
            return act()
        except StoreError as error:
            reserve = self.folder / RESERVE
            # a full disk may also show as "disk I/O error"
            if not isinstance(error.__cause__, sqlite3.OperationalError) or is_locked(error.__cause__) or not reserve.exists():
                raise
            with self.errors():
                reserve.unlink(missing_ok=True)
        return act()

    def refill_reserve(self) -> None:
        """Restores the reserve file if there is space for it; otherwise continues without it."""
        reserve = self.folder / RESERVE
        with self.errors():
            # the lock files of `Owner` would create the folder again
            if not os.path.exists(self.folder / DATABASE):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.folder / DATABASE))
            with self.process.exclusive():
                self._refill(reserve)

    @staticmethod
    def _refill(reserve: Path) -> None:
        if reserve.exists() and reserve.stat().st_size >= RESERVE_BYTES:
            return
        try:
            with atomic_write(reserve) as partial:
                partial.write_bytes(bytes(RESERVE_BYTES))
        except OSError as error:
            if not is_full(error):
                raise

    def sync(self) -> None:
        """Everything written so far is on the disk when this returns."""
        with self.write(durable=True) as connection:
            # a transaction without a change writes nothing, and so would not wait for the disk
            (version,) = connection.execute("PRAGMA user_version").fetchone()  # a newer program may have upgraded the schema
            connection.execute(f"PRAGMA user_version = {version}")

    def run(self, run_id: str) -> Run:
        """One run. Raises RunError for an unknown id and for a run in the trash."""
        with self.read() as connection:
            row = connection.execute("SELECT * FROM run WHERE id = ? AND NOT deleted", (run_id,)).fetchone()
        return run_of_row(require_listed(row, run_id), self.folder)

    def config(self, run_id: str) -> RunConfig:
        """The config of one run. Raises RunError as `run` does, and ConfigError when this version cannot read the config."""
        with self.read() as connection:
            row = connection.execute("SELECT id, config, trashed FROM run WHERE id = ? AND NOT deleted", (run_id,)).fetchone()
        return config_of_row(require_listed(row, run_id), self.folder)

    def change_run(self, run_id: str, statement: str, values: tuple, refusal: str) -> None:
        """Executes a statement that changes one run and must succeed even on a full disk.

        Raises RunError when no run was changed: as `run` does, else with `refusal`, whose "{state}" is replaced by the run's state.
        """
        if not self.write_or_use_reserve(lambda connection: connection.execute(statement, values).rowcount):
            raise RunError(refusal.format(state=self.run(run_id).state))

    @property
    def process(self) -> Owner:
        """This process as an owner of runs. Raises StoreError while the folder is read-only, and was so from the start."""
        with self._opening:
            if self._process is None:
                if is_read_only(self.folder):
                    raise read_only_error(self.folder)
                try:
                    self._open()
                except CoreError:
                    self._process = None  # what has been opened so far is closed
                    raise
            assert self._process is not None
            return self._process

    def close(self) -> None:
        """Closes idle connections and releases the runs of this process. May be called more than once."""
        with suppress(queue.Empty):
            while True:
                self._idle.get_nowait()[0].close()
        if self._process is not None:
            self._process.close()
