"""Runs on disk: a SQLite database for what is small, a folder a run for images and weights.

Contract. A run is created once and keeps its id and config for ever. Its state moves as RunState says. Records are appended; they
come back in the order in which they were written, and change only when a run is resumed: then those after the checkpoint are
forgotten, as they are computed again, and `attempt` is one higher. Results are named values, the last one written holds. What a
method returns is a copy: changing it changes nothing here.

Every method may be called from any thread; several processes may use one folder. A run belongs to the process that created or
resumed it (see owner.py): one that is not finished and whose owner is dead is INTERRUPTED. Runs wait in one line, whichever process
they belong to.

What is written outlives the process that wrote it, at once; a power cut may take the last records, but never those that `sync` was
called for, and never the consistency of the whole. Frames are for looking at, and nothing waits until they are on the disk: a power
cut may take those of the last minute. One that it leaves broken is read as missing, though its step may still be listed. Deleting is
a mark in the database first, then the files, then the row: what a kill leaves between them the next start finishes. A run in the
trash is in no list and cannot be read, but all of it is there and comes back with `restore`; after DAYS_IN_TRASH the next start
deletes it. Files are written whole (see files.py).
"""

import functools
import json
import logging
import os
import queue
import sqlite3
import time
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from core import layout
from core.config import EVALUATION_SETS, RunConfig
from core.errors import ConfigError, RunError, first_line, quoted
from core.files import atomic_write, is_full, remove, remove_partials, temporary_copy_path
from core.reporting import Frame, RunningStatistics
from core.runs.owner import Owner
from core.runs.state import RunState

_log = logging.getLogger(__name__)

_T = TypeVar("_T")

DATABASE = "runs.sqlite3"
RUNS_VARIABLE = "RUNS_DIR"
RESERVE = ".reserve"  # given up when the disk is full, so that a run can still say that it failed
RESERVE_BYTES = 1 << 20
DAYS_IN_TRASH = 7
# of what people write about a run
NAME_CHARACTERS = 200
NOTE_CHARACTERS = 4000
TAG_CHARACTERS = 40
TAGS = 20
# one entry a version, from an empty database on: a database of version n still needs those from index n
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
# its value in an INSERT or UPDATE: the end of the line
_NEXT_PLACE = "(SELECT COALESCE(MAX(place), 0) + 1 FROM run)"
_UNFINISHED = ", ".join(f"'{state}'" for state in RunState if not state.is_finished())
_FINISHED = ", ".join(f"'{state}'" for state in RunState if state.is_finished())
_LISTED = "NOT deleted AND trashed IS NULL"
_RESUMABLE = ", ".join(f"'{state}'" for state in RunState if state.can_resume())


@dataclass(frozen=True)
class Run:
    """One run as it was when it was read."""

    id: str
    name: str
    config: RunConfig
    state: RunState
    created: float  # seconds since the epoch, as all times here
    started: float | None
    ended: float | None
    error: str
    traceback: str
    stage: str
    stage_started: float | None
    step: int
    total: int
    stage_done: int  # steps of the stage that were taken before the run was resumed, and so not since `stage_started`
    attempt: int  # 1, and one more each time that it was resumed
    user: str  # who started it, where there are logins
    out: str  # the command line's --out, where its files are copied at the end
    part: str  # what of the run's folder is copied there; empty: all results
    note: str  # what people write about it
    tags: tuple[str, ...]  # in the order of the alphabet, each once
    pinned: bool  # the baseline that others are compared with; at most one run is
    trashed: float | None  # when it was put into the trash


@dataclass(frozen=True)
class Record:
    """Figures of one step."""

    id: int
    stage: str
    series: str  # the method that made the images; of a training, also the bit width, as in "adam W4A4"
    step: int
    data: dict[str, Any]


def default_folder() -> Path:
    """Where runs lie: RUNS_DIR, or `runs` in the current folder."""
    return Path(os.environ.get(RUNS_VARIABLE) or "runs")


class RunStore:
    """The runs below one folder, which is made when it is missing.

    Raises RunError for a database of a newer version, one that cannot be read, or a folder that cannot be written to.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = (folder or default_folder()).absolute()
        # connections that nobody is using; one is opened for each thread that needs one at the same moment
        self._idle: queue.LifoQueue[sqlite3.Connection] = queue.LifoQueue()
        self._owner: Owner | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._owner = Owner(self.folder)
            with self._owner.alone():
                self._urgently(self._migrate)
            self._refill_reserve()
        except (OSError, NotImplementedError) as error:  # the latter from a file system without locks
            self.close()
            raise RunError(f"{str(self.folder)!r} cannot keep runs ({error}): allowed is a folder that can be written to") from error
        except sqlite3.DatabaseError as error:
            self.close()
            if is_full(error):
                raise RunError(f"the disk that holds {self.folder} is full: allowed is one with a megabyte to spare") from error
            raise RunError(
                f"{self.folder / DATABASE} cannot be read ({error}): allowed is a database made by this program, or none"
            ) from error
        except RunError:
            self.close()
            raise

    def _migrate(self, connection: sqlite3.Connection) -> None:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > len(_VERSIONS):
            raise RunError(f"{self.folder / DATABASE} has version {version}: allowed is at most {len(_VERSIONS)}, update this program")
        if version == len(_VERSIONS):
            return  # writes nothing: what is stored can be read on a full disk
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
    def _read(self) -> Iterator[sqlite3.Connection]:
        """A connection of one's own."""
        try:
            connection = self._idle.get_nowait()
        except queue.Empty:
            connection = self._connect()
        try:
            yield connection
        finally:
            if connection.in_transaction:
                connection.close()  # not even taking back worked: whoever came next would be caught in it
            else:
                self._idle.put(connection)

    @contextmanager
    def _write(self, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """A transaction. durable: on the disk when it ends, and with it everything written before."""
        with self._read() as connection:
            connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            connection.execute("BEGIN IMMEDIATE")  # at once: a read that turns into a write may find itself outdated
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                # a full disk has ended the transaction already
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Gives this process's runs free and closes what is open."""
        with suppress(queue.Empty):
            while True:
                self._idle.get_nowait().close()
        if self._owner is not None:
            self._owner.close()

    @property
    def _me(self) -> Owner:
        assert self._owner is not None
        return self._owner

    # runs

    def create(self, config: RunConfig, name: str, user: str = "", out: str = "", part: str = "") -> str:
        """A new run, QUEUED, last in the line. Returns its id. Paths in the config become absolute: it can be resumed from anywhere."""
        self._refill_reserve()
        now = time.time()
        run_id = time.strftime("%Y%m%d-%H%M%S-", time.localtime(now)) + uuid.uuid4().hex[:6]
        values = (run_id, name, json.dumps(_anchored(config).to_dict()), RunState.QUEUED, self._me.name, now, user, out, part)
        with self._write() as connection:
            connection.execute(
                "INSERT INTO run (id, name, config, state, owner, created, user, out, part, place)"
                f" VALUES ({', '.join('?' * len(values))}, {_NEXT_PLACE})",
                values,
            )
        # after the row: a folder without one would be nobody's. Where it cannot be made, the run says so when it begins: failing here
        # would leave a run in the line that nobody works on
        with suppress(OSError):
            self.run_folder(run_id).mkdir(exist_ok=True)
        return run_id

    def run_folder(self, run_id: str) -> Path:
        """Where images and weights of the run lie."""
        return self.folder / run_id

    def images_folder(self, run: Run) -> Path:
        """Where the images lie that the run made or was given."""
        return Path(run.config.images_from) if run.config.images_from else self.run_folder(run.id) / layout.IMAGES

    def run(self, run_id: str) -> Run:
        """Raises RunError for an id that does not exist, and for a run in the trash."""
        with self._read() as connection:
            row = connection.execute("SELECT * FROM run WHERE id = ? AND NOT deleted", (run_id,)).fetchone()
        return _run(_in_list(row, run_id))

    def config(self, run_id: str) -> RunConfig:
        """The settings to compute with. Raises RunError as `run` does, and ConfigError for settings of another version."""
        with self._read() as connection:
            row = connection.execute("SELECT id, config, trashed FROM run WHERE id = ? AND NOT deleted", (run_id,)).fetchone()
        return _config(_in_list(row, run_id))

    def runs(self) -> list[Run]:
        """All runs but those in the trash, the newest first."""
        with self._read() as connection:
            rows = connection.execute(f"SELECT * FROM run WHERE {_LISTED} ORDER BY created DESC, id DESC").fetchall()
        return [_run(row) for row in rows]

    def set_state(self, run_id: str, state: RunState, error: str = "", traceback: str = "") -> None:
        """Moves the run to `state`. Raises RunError when it is finished already."""
        now = time.time()
        self._with_reserve(
            run_id,
            "UPDATE run SET state = ?, error = ?, traceback = ?,"
            " started = CASE WHEN started IS NULL AND ? = 'running' THEN ? ELSE started END,"
            " ended = CASE WHEN ? THEN ? ELSE ended END"
            f" WHERE id = ? AND state IN ({_UNFINISHED})",
            (state, error, traceback, state, now, state.is_finished(), now, run_id),
            f"run {run_id!r} is {{state}}: allowed are changes of a run that is not finished",
        )

    def requeue(self, run_id: str) -> None:
        """Puts a paused run of this process at the end of the line. Raises RunError when it is not paused."""
        self._with_reserve(
            run_id,
            f"UPDATE run SET state = 'queued', place = {_NEXT_PLACE} WHERE id = ? AND state = 'paused' AND owner = ?",
            (run_id, self._me.name),
            f"run {run_id!r} is {{state}}: allowed is a paused run of this process",
        )

    def resume(self, run_id: str) -> None:
        """Makes a run that did not come to its end one of this process, QUEUED again. Raises RunError when it is not of that kind."""
        self._refill_reserve()
        self._with_reserve(
            run_id,
            f"UPDATE run SET state = 'queued', owner = ?, place = {_NEXT_PLACE}, attempt = attempt + 1, error = '', traceback = '',"
            f" ended = NULL WHERE id = ? AND state IN ({_RESUMABLE}) AND {_LISTED}",
            (self._me.name, run_id),
            f"run {run_id!r} is {{state}}: allowed is to resume one that was stopped, interrupted or has failed",
        )

    def take_over(self, run_id: str, owner: str) -> None:
        """Makes an unfinished run of the process `owner` one of this process. Raises RunError when it is not of that kind."""
        self._with_reserve(
            run_id,
            f"UPDATE run SET owner = ? WHERE id = ? AND owner = ? AND state IN ({_UNFINISHED})",
            (self._me.name, run_id, owner),
            f"run {run_id!r} is {{state}}: allowed is an unfinished run of the process that hands it over",
        )

    @property
    def owner(self) -> str:
        """Name of this process in the store."""
        return self._me.name

    def _with_reserve(self, run_id: str, statement: str, values: tuple, refusal: str) -> None:
        """One change of one run that must come through even on a full disk. Raises RunError with `refusal` when there is none to change."""
        if not self._urgently(lambda connection: connection.execute(statement, values).rowcount):
            raise RunError(refusal.format(state=self.run(run_id).state))

    def _urgently(self, change: Callable[[sqlite3.Connection], _T]) -> _T:
        """A transaction that gives up the reserve where the disk is full. Returns what `change` returns."""
        try:
            with self._write() as connection:
                return change(connection)
        except sqlite3.OperationalError:
            reserve = self.folder / RESERVE
            if not reserve.exists():
                raise
            reserve.unlink(missing_ok=True)
        with self._write() as connection:
            return change(connection)

    def _refill_reserve(self) -> None:
        """Makes the reserve whole again where there is room for it: what is short of it goes on without."""
        reserve = self.folder / RESERVE
        with self._me.alone():
            if reserve.exists() and reserve.stat().st_size >= RESERVE_BYTES:
                return
            try:
                with atomic_write(reserve) as partial:
                    partial.write_bytes(bytes(RESERVE_BYTES))
            except OSError as error:
                if not is_full(error):
                    raise

    def ahead(self, run_id: str) -> list[str]:
        """Ids of the runs that wait or work before this one, whichever process they belong to; paused ones let others go first."""
        with self._read() as connection:
            rows = connection.execute(
                "SELECT id FROM run WHERE state IN ('queued', 'running') AND NOT deleted"
                " AND place < (SELECT place FROM run WHERE id = ?) ORDER BY place",
                (run_id,),
            ).fetchall()
        return [row["id"] for row in rows]

    def mark_interrupted(self) -> list[str]:
        """Marks unfinished runs whose process has died, and finishes what it left half done; returns their ids.

        Also empties the trash of what has been in it for more than DAYS_IN_TRASH.
        """
        with self._read() as connection:
            rows = connection.execute(f"SELECT id, owner, out FROM run WHERE state IN ({_UNFINISHED})").fetchall()
            long_ago = time.time() - DAYS_IN_TRASH * 24 * 3600
            deleted = connection.execute("SELECT id, deleted FROM run WHERE deleted OR trashed < ?", (long_ago,)).fetchall()
        marked = []
        for row in rows:
            if not self._me.lives(row["owner"]) and self._urgently(functools.partial(self._bury, row)):
                marked.append(row["id"])
        for row in deleted:
            # anew: somebody may have brought it back since
            if row["deleted"] or self._urgently(functools.partial(self._give_up, row["id"], long_ago)):
                self._purge(row["id"])
        self._me.sweep()
        return marked

    def _bury(self, row: sqlite3.Row, connection: sqlite3.Connection) -> bool:
        """Marks a run as interrupted, only as it was read: another process may have taken it over since. Whether it was."""
        found = connection.execute(
            f"UPDATE run SET state = 'interrupted', error = ?, ended = ? WHERE id = ? AND owner = ? AND state IN ({_UNFINISHED})",
            ("its process ended while the run was going on", time.time(), row["id"], row["owner"]),
        ).rowcount
        if not found:
            return False
        # inside the transaction: as soon as it ends, another process may resume the run and write new ones
        try:
            remove_partials(self.run_folder(row["id"]))
            if row["out"]:
                remove(temporary_copy_path(Path(row["out"]), row["id"]))
        except OSError as error:  # of another person, or on a disk that is gone; whoever resumes the run tries again
            _log.warning("what run %s left half written could not be removed yet: %s", row["id"], error)
        return True

    @staticmethod
    def _give_up(run_id: str, long_ago: float, connection: sqlite3.Connection) -> bool:
        """Marks a run as deleted that went into the trash before `long_ago`. Whether it did."""
        return bool(connection.execute("UPDATE run SET deleted = 1 WHERE id = ? AND trashed < ?", (run_id, long_ago)).rowcount)

    def rename(self, run_id: str, name: str) -> None:
        """Gives the run another name, of up to NAME_CHARACTERS. Raises RunError for an id that does not exist, or a name that is longer."""
        _check_length("name", name, NAME_CHARACTERS)
        self._describe(run_id, "name", name)

    def set_note(self, run_id: str, note: str) -> None:
        """Writes something about the run, up to NOTE_CHARACTERS; empty takes it away. Raises RunError as `rename` does."""
        _check_length("note", note, NOTE_CHARACTERS)
        self._describe(run_id, "note", note)

    def set_tags(self, run_id: str, tags: Iterable[str]) -> None:
        """Gives the run these tags and no others.

        Spaces around and within a tag become one or none, and a tag counts once. Raises RunError for an id that does not exist, for an
        empty tag, one longer than TAG_CHARACTERS, and more than TAGS of them.
        """
        cleaned = sorted({" ".join(tag.split()) for tag in tags})
        if "" in cleaned:
            raise RunError("a tag is empty: allowed is one with a character that can be seen")
        for tag in cleaned:
            _check_length("tag", tag, TAG_CHARACTERS)
        if len(cleaned) > TAGS:
            raise RunError(f"{len(cleaned)} tags were given: allowed are at most {TAGS}")
        self._describe(run_id, "tags", "\n".join(cleaned))

    def _describe(self, run_id: str, column: str, value: str) -> None:
        with self._write() as connection:
            found = connection.execute(f"UPDATE run SET {column} = ? WHERE id = ? AND {_LISTED}", (value, run_id)).rowcount
        if not found:
            self.run(run_id)  # says what is wrong with it

    def pin(self, run_id: str) -> None:
        """Makes the run the baseline, and no other. Raises RunError for an id that does not exist, or a run in the trash."""
        with self._write() as connection:
            found = connection.execute(f"UPDATE run SET pinned = 1 WHERE id = ? AND {_LISTED}", (run_id,)).rowcount
            if found:
                connection.execute("UPDATE run SET pinned = 0 WHERE id != ? AND pinned", (run_id,))
        if not found:
            self.run(run_id)

    def unpin(self, run_id: str) -> None:
        """The run is not the baseline any more; nothing happens where it was not."""
        with self._write() as connection:
            connection.execute("UPDATE run SET pinned = 0 WHERE id = ?", (run_id,))

    def trash(self, run_id: str) -> None:
        """Takes a finished run out of all lists, and keeps all of it for DAYS_IN_TRASH. Raises RunError when it is not finished."""
        self._with_reserve(
            run_id,
            f"UPDATE run SET trashed = ? WHERE id = ? AND state IN ({_FINISHED}) AND {_LISTED}",
            (time.time(), run_id),
            f"run {run_id!r} is {{state}}: allowed is to delete a finished run, stop it first",
        )

    def restore(self, run_id: str) -> None:
        """Takes a run out of the trash, as it was. Raises RunError when it is not there (any more)."""
        if not self._urgently(
            lambda connection: (
                connection.execute("UPDATE run SET trashed = NULL WHERE id = ? AND trashed IS NOT NULL AND NOT deleted", (run_id,)).rowcount
            )
        ):
            raise RunError(f"run {run_id!r} is not among the deleted ones: allowed are those deleted within {DAYS_IN_TRASH} days")

    def trashed(self) -> list[Run]:
        """The runs in the trash, the one that came last first."""
        with self._read() as connection:
            rows = connection.execute(
                "SELECT * FROM run WHERE trashed IS NOT NULL AND NOT deleted ORDER BY trashed DESC, id DESC"
            ).fetchall()
        return [_run(row) for row in rows]

    def delete(self, run_id: str) -> None:
        """Removes a finished run with its files at once and for good, also from the trash. Raises RunError when it is not finished."""
        if not self._urgently(
            lambda connection: (
                connection.execute(
                    f"UPDATE run SET deleted = 1 WHERE id = ? AND state IN ({_FINISHED}) AND NOT deleted", (run_id,)
                ).rowcount
            )
        ):
            raise RunError(f"run {run_id!r} is {self.run(run_id).state}: allowed is to delete a finished run, stop it first")
        self._purge(run_id)

    def _purge(self, run_id: str) -> None:
        """The files of a run that is marked as deleted, then its row. What cannot be removed now is tried again at the next start."""
        try:
            remove(self.run_folder(run_id))
        except OSError as error:
            _log.warning("the files of deleted run %s could not be removed yet: %s", run_id, error)
            return
        with self._write() as connection:
            connection.execute("DELETE FROM run WHERE id = ? AND deleted", (run_id,))

    # what a run leaves behind

    def sync(self) -> None:
        """Everything written so far is on the disk when this returns."""
        with self._write(durable=True) as connection:
            # a commit that changes nothing writes nothing, and so would not wait for the disk
            connection.execute(f"PRAGMA user_version = {len(_VERSIONS)}")

    def set_stage(self, run_id: str, stage: str, total: int, done: int = 0) -> None:
        """A stage of `total` steps begins, or goes on after `done`; 0 when it has no steps to count. Raises RunError for an unknown id."""
        with self._write(durable=False) as connection:
            found = connection.execute(
                "UPDATE run SET stage = ?, stage_started = ?, step = ?, stage_done = ?, total = ? WHERE id = ?",
                (stage, time.time(), done, done, total, run_id),
            ).rowcount
        if not found:
            raise _unknown(run_id)

    def append(self, run_id: str, stage: str, series: str, step: int, data: Mapping[str, Any], counted: bool = True) -> None:
        """Appends a record and counts a step of the current stage, unless it is not `counted`."""
        with self._write(durable=False) as connection:
            connection.execute(
                "INSERT INTO record (run, stage, series, step, data) VALUES (?, ?, ?, ?, ?)",
                (run_id, stage, series, step, json.dumps(data)),
            )
            if counted:
                connection.execute("UPDATE run SET step = step + 1 WHERE id = ?", (run_id,))

    def rewind(self, run_id: str, stage: str, series: str, step: int) -> None:
        """Forgets the records of a series after `step`, and its pictures."""
        with self._write(durable=False) as connection:
            connection.execute("DELETE FROM record WHERE run = ? AND stage = ? AND series = ? AND step > ?", (run_id, stage, series, step))
        for path in (self.run_folder(run_id) / layout.FRAMES / series).glob("[0-9]*.npz"):
            if int(path.stem) > step:
                path.unlink()

    def records(self, run_id: str, stage: str, after: int = 0) -> list[Record]:
        """Records of one stage with an id above `after`, oldest first."""
        with self._read() as connection:
            rows = connection.execute(
                "SELECT id, stage, series, step, data FROM record WHERE run = ? AND stage = ? AND id > ? ORDER BY id",
                (run_id, stage, after),
            ).fetchall()
        return [Record(row["id"], row["stage"], row["series"], row["step"], json.loads(row["data"])) for row in rows]

    def add_change(self, run_id: str, method: str, step: int, name: str, value: float) -> None:
        """A live value took effect at `step`.

        A resumed run comes by its earlier changes again, which leaves them as they are; a different one ends what was to follow.
        """
        with self._write(durable=False) as connection:
            known = connection.execute(
                "SELECT value FROM change WHERE run = ? AND method = ? AND step = ? AND name = ?", (run_id, method, step, name)
            ).fetchone()
            if known is not None and known["value"] == value:
                return
            connection.execute("DELETE FROM change WHERE run = ? AND method = ? AND name = ? AND step >= ?", (run_id, method, name, step))
            connection.execute(
                "INSERT INTO change (run, method, step, name, value) VALUES (?, ?, ?, ?, ?)", (run_id, method, step, name, value)
            )

    def changes(self, run_id: str) -> list[dict[str, Any]]:
        """Live changes, oldest first: {"method", "step", "name", "value"}."""
        with self._read() as connection:
            rows = connection.execute("SELECT method, step, name, value FROM change WHERE run = ? ORDER BY id", (run_id,)).fetchall()
        return [dict(row) for row in rows]

    def curves(self, run_id: str, stage: str, after: int = 0) -> tuple[int, dict[str, dict[str, np.ndarray]]]:
        """What the records of one stage hold as single numbers, without the objects around them.

        Returns the id of the last record (`after` where there is none), and series -> name -> float64 `(records,)` in the order of writing,
        "step" among the names; NaN where a record does not have that number. Only records with an id above `after`.
        """
        columns: dict[str, list[dict[str, float]]] = {}
        last = after
        with self._read() as connection:
            for row in connection.execute(
                "SELECT id, series, step, data FROM record WHERE run = ? AND stage = ? AND id > ? ORDER BY id", (run_id, stage, after)
            ):
                values = json.loads(row["data"])
                numbers = {name: value for name, value in values.items() if isinstance(value, (int, float))}
                columns.setdefault(row["series"], []).append({**numbers, "step": row["step"]})
                last = row["id"]
        return last, {
            series: {
                name: np.array([one.get(name, np.nan) for one in own], np.float64) for name in dict.fromkeys(n for one in own for n in one)
            }
            for series, own in columns.items()
        }

    def set_result(self, run_id: str, name: str, value: Any) -> None:
        """A named value, fit for JSON; replaces an earlier one of that name."""
        with self._write(durable=False) as connection:
            connection.execute("INSERT OR REPLACE INTO result (run, name, data) VALUES (?, ?, ?)", (run_id, name, json.dumps(value)))

    def result(self, run_id: str, name: str) -> Any:
        """One named value; None when there is none."""
        with self._read() as connection:
            row = connection.execute("SELECT data FROM result WHERE run = ? AND name = ?", (run_id, name)).fetchone()
        return None if row is None else json.loads(row["data"])

    def results(self, run_id: str) -> dict[str, Any]:
        """Name -> value, in the order of the names."""
        with self._read() as connection:
            rows = connection.execute("SELECT name, data FROM result WHERE run = ? ORDER BY name", (run_id,)).fetchall()
        return {row["name"]: json.loads(row["data"]) for row in rows}

    def result_names(self, run_id: str) -> list[str]:
        """Names of all results of a run, in the order of the alphabet: some of them are large."""
        with self._read() as connection:
            return [row["name"] for row in connection.execute("SELECT name FROM result WHERE run = ? ORDER BY name", (run_id,))]

    def results_of_all(self, kinds: Iterable[str], run_id: str | None = None) -> dict[str, dict[str, Any]]:
        """Run -> name -> value of results whose name is one of `kinds` or begins with it and a slash: a table of runs needs few of them.

        run_id: of this run only.
        """
        found: dict[str, dict[str, Any]] = {}
        with self._read() as connection:
            for kind in kinds:
                for row in connection.execute(
                    "SELECT run, name, data FROM result WHERE (name = ? OR name GLOB ?) AND (? IS NULL OR run = ?)",
                    (kind, f"{kind}/*", run_id, run_id),
                ):
                    found.setdefault(row["run"], {})[row["name"]] = json.loads(row["data"])
        return found

    def save_frame(self, run_id: str, method: str, frame: Frame, keep: bool) -> None:
        """One moment: always as the latest of the method, and for good when `keep`."""
        for step in (None, frame.step) if keep else (None,):
            _write_arrays(self._frame_path(run_id, method, step), vars(frame))

    def frame_version(self, run_id: str, method: str, step: int | None = None) -> int:
        """Changes whenever `frame` would return something else; 0 when there is none."""
        try:
            return self._frame_path(run_id, method, step).stat().st_mtime_ns
        except OSError:
            return 0

    def _frame_path(self, run_id: str, method: str, step: int | None) -> Path:
        return self.run_folder(run_id) / layout.FRAMES / method / ("latest.npz" if step is None else f"{step:08d}.npz")

    def frame_steps(self, run_id: str, method: str) -> list[int]:
        """Steps of which the images were kept."""
        return sorted(int(path.stem) for path in (self.run_folder(run_id) / layout.FRAMES / method).glob("[0-9]*.npz"))

    def frame(self, run_id: str, method: str, step: int | None = None) -> Frame | None:
        """The latest moment, or a kept one; None when there is none."""
        arrays = _read_arrays(self._frame_path(run_id, method, step))
        if not arrays.keys() >= {"step", "images", "labels"}:
            return None
        return Frame(
            int(arrays["step"]),
            arrays["images"],
            arrays["labels"],
            **{name: arrays.get(name) for name in ("predicted", "confidence", "means", "variances")},
        )

    def save_running_statistics(self, run_id: str, statistics: RunningStatistics) -> None:
        """Those of the run's network, which are the same for all methods."""
        _write_arrays(self._running_statistics_path(run_id), vars(statistics))

    def running_statistics(self, run_id: str) -> RunningStatistics | None:
        """What the batch statistics of the frames are to come to; None when the run has not come to it, or is of an earlier version."""
        arrays = _read_arrays(self._running_statistics_path(run_id))
        if not arrays.keys() >= {"channels", "means", "variances"}:
            return None
        return RunningStatistics(arrays["channels"].tolist(), arrays["means"], arrays["variances"])

    def _running_statistics_path(self, run_id: str) -> Path:
        return self.run_folder(run_id) / layout.FRAMES / layout.RUNNING_STATISTICS


def _write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """An .npz file of those that are not None, whole for every reader, but not on the disk yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, durable=False) as partial, partial.open("wb") as file:
        np.savez(file, **{name: array for name, array in arrays.items() if array is not None})


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """What `_write_arrays` wrote; empty where there is nothing, or what a power cut left of it cannot be read."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, EOFError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error):
        return {}


def _anchored(config: RunConfig) -> RunConfig:
    """Every path that the config names, from the root on."""

    def anchored(name: str) -> str:
        return str(Path(name).absolute()) if name and os.path.exists(name) else name

    data = config.evaluation.data
    return replace(
        config,
        model=anchored(config.model) if config.model.endswith(".safetensors") else config.model,
        evaluation=replace(config.evaluation, data=data if data in EVALUATION_SETS else anchored(data)),
        images_from=anchored(config.images_from),
    )


def _unknown(run_id: str) -> RunError:
    return RunError(f"run {quoted(run_id)} does not exist: allowed are the ids listed under Runs")


def _in_list(row: sqlite3.Row | None, run_id: str) -> sqlite3.Row:
    """Raises RunError where there is no such run, and for one in the trash."""
    if row is None:
        raise _unknown(run_id)
    if row["trashed"] is not None:
        raise RunError(f"run {run_id!r} was deleted: allowed is to restore it first, under Runs, within {DAYS_IN_TRASH} days")
    return row


def _check_length(what: str, value: str, most: int) -> None:
    if len(value) > most:
        raise RunError(f"{what} {quoted(value)} has {len(value):,} characters: allowed are at most {most:,}")


@functools.lru_cache(maxsize=1000)  # checking every field takes longer than all the rest of reading a run, and pages list all of them
def _read_config(text: str) -> RunConfig:
    return RunConfig.from_dict(json.loads(text))


def _config(row: sqlite3.Row) -> RunConfig:
    """Raises ConfigError for settings that this version does not know, whatever another has made of them."""
    try:
        return _read_config(row["config"])
    except ConfigError:
        raise
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"the settings of run {row['id']!r} are no settings ({first_line(error)}): allowed are those of a run") from error


def _run(row: sqlite3.Row) -> Run:
    error = row["error"]
    try:
        config = _config(row)
    except ConfigError as problem:
        # written by another version: one such run must not hide the others
        config, error = RunConfig(), f"the settings of this run cannot be read by this version ({problem}); those shown are the defaults"
    return Run(
        config=config,
        error=error,
        state=RunState(row["state"]),
        tags=tuple(row["tags"].split("\n")) if row["tags"] else (),
        pinned=bool(row["pinned"]),
        **{
            name: row[name]
            for name in (
                "id", "name", "created", "started", "ended", "traceback", "stage", "stage_started", "step", "total", "stage_done",
                "attempt", "user", "out", "part", "note", "trashed",
            )
        },
    )  # fmt: skip
