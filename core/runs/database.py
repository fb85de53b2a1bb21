"""The SQLite database of a runs folder: connections, transactions, schema versions, and the reserve for a full disk."""

import queue
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from core.config import RunConfig
from core.errors import RunError
from core.files import atomic_write, is_full
from core.runs.owner import Owner
from core.runs.run import Run, config_of_row, require_listed, run_of_row

_T = TypeVar("_T")

DATABASE = "runs.sqlite3"
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
)


class Database:
    """The database of one runs folder, opened by one process.

    **Threads.** Every method may be called from any thread; each thread has its own connection.

    **Durability.** A durable transaction is on the disk when it ends, together with everything written before it. Others survive the end
    of the process, but the last ones may be lost in a power failure. The database stays consistent either way.

    **Full disk.** `write_or_use_reserve` and `change_run` delete the reserve file and try again. `refill_reserve` restores it.

    **Errors.** The constructor raises RunError for a folder that cannot be written to, a file that is not a database, a newer schema
    version, and a full disk. It creates a missing folder and upgrades an older schema; a failed upgrade changes nothing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # connections not in use; a new one is opened for each thread that needs one at the same time
        self._idle: queue.LifoQueue[sqlite3.Connection] = queue.LifoQueue()
        self._process: Owner | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._process = Owner(self.folder)
            with self._process.exclusive():
                self.write_or_use_reserve(self._migrate)
            self.refill_reserve()
        except (OSError, NotImplementedError) as error:  # the latter from a file system without locks
            self.close()
            raise RunError(f"the runs folder must be a writable folder, got {str(self.folder)!r} ({error})") from error
        except sqlite3.DatabaseError as error:
            self.close()
            if is_full(error):
                raise RunError(f"the disk that holds {self.folder} is full: free at least one megabyte") from error
            raise RunError(
                f"{self.folder / DATABASE} must be a database of this program or absent, but cannot be read ({error})"
            ) from error
        except RunError:
            self.close()
            raise

    def _migrate(self, connection: sqlite3.Connection) -> None:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > len(_VERSIONS):
            raise RunError(f"{self.folder / DATABASE} must have schema version 0 to {len(_VERSIONS)}, got {version}: update this program")
        if version == len(_VERSIONS):
            return  # without a write, so that stored runs can be read on a full disk
        for statements in _VERSIONS[version:]:
            for statement in statements.split(";"):
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(_VERSIONS)}")

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.folder / DATABASE, timeout=30, isolation_level=None, check_same_thread=False)
        try:
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA foreign_keys = ON")
        except BaseException:
            connection.close()
            raise
        return connection

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A connection that no other thread uses during the block."""
        try:
            connection = self._idle.get_nowait()
        except queue.Empty:
            connection = self._connect()
        try:
            yield connection
        finally:
            if connection.in_transaction:
                connection.close()  # the rollback failed too; the next user would continue that transaction
            else:
                self._idle.put(connection)

    @contextmanager
    def write(self, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """A transaction: committed when the block ends, rolled back when it raises. durable: see the class."""
        with self.read() as connection:
            connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            connection.execute("BEGIN IMMEDIATE")  # at once: a transaction that starts by reading may be outdated when it writes
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
        try:
            with self.write() as connection:
                return change(connection)
        except sqlite3.OperationalError:
            reserve = self.folder / RESERVE
            if not reserve.exists():
                raise
            reserve.unlink(missing_ok=True)
        with self.write() as connection:
            return change(connection)

    def refill_reserve(self) -> None:
        """Restores the reserve file if there is space for it; otherwise continues without it."""
        reserve = self.folder / RESERVE
        with self.process.exclusive():
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
            connection.execute(f"PRAGMA user_version = {len(_VERSIONS)}")

    def run(self, run_id: str) -> Run:
        """One run. Raises RunError for an unknown id and for a run in the trash."""
        with self.read() as connection:
            row = connection.execute("SELECT * FROM run WHERE id = ? AND NOT deleted", (run_id,)).fetchone()
        return run_of_row(require_listed(row, run_id))

    def config(self, run_id: str) -> RunConfig:
        """The config of one run. Raises RunError as `run` does, and ConfigError when this version cannot read the config."""
        with self.read() as connection:
            row = connection.execute("SELECT id, config, trashed FROM run WHERE id = ? AND NOT deleted", (run_id,)).fetchone()
        return config_of_row(require_listed(row, run_id))

    def change_run(self, run_id: str, statement: str, values: tuple, refusal: str) -> None:
        """Executes a statement that changes one run and must succeed even on a full disk.

        Raises RunError when no run was changed: as `run` does, else with `refusal`, whose "{state}" is replaced by the run's state.
        """
        if not self.write_or_use_reserve(lambda connection: connection.execute(statement, values).rowcount):
            raise RunError(refusal.format(state=self.run(run_id).state))

    @property
    def process(self) -> Owner:
        """This process as an owner of runs."""
        assert self._process is not None
        return self._process

    def close(self) -> None:
        """Closes idle connections and releases the runs of this process. May be called more than once."""
        with suppress(queue.Empty):
            while True:
                self._idle.get_nowait().close()
        if self._process is not None:
            self._process.close()
