"""Runs on disk: a SQLite database for what is small, a folder a run for images and weights.

Contract. A run is created once and keeps its id and config for ever. Its state moves as RunState says, and a finished state does
not change. Records are appended, never changed; they come back in the order in which they were written. Results are named
values, the last one written holds. What a method returns is a copy: changing it changes nothing here. Every method may be called
from any thread; several processes may use one folder. A run belongs to the process that created it, which holds a file lock as
long as it lives: a run that is not finished and whose owner's lock is free is INTERRUPTED.
"""

import json
import os
import shutil
import sqlite3
import threading
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from core import layout
from core.config import RunConfig
from core.errors import RunError
from core.runs.state import RunState

DATABASE = "runs.sqlite3"
RUNS_VARIABLE = "RUNS_DIR"
_SCHEMA_VERSION = 1
_SECONDS_TO_LOCK = 60.0  # far more than a process needs from making its lock file to holding it
_SCHEMA = """
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
);
"""


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


@dataclass(frozen=True)
class Record:
    """Figures of one step."""

    id: int
    stage: str
    lane: str
    step: int
    data: dict[str, Any]


def default_folder() -> Path:
    """Where runs lie: RUNS_DIR, or `runs` in the current folder."""
    return Path(os.environ.get(RUNS_VARIABLE) or "runs")


class RunStore:
    """The runs below one folder, which is made when it is missing. Raises RunError for a database of a newer version."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = (folder or default_folder()).resolve()
        (self.folder / "owners").mkdir(parents=True, exist_ok=True)
        self._local = threading.local()
        self._owner = uuid.uuid4().hex
        # one lock for the process: whichever thread closes the store gives it free
        self._lock = FileLock(self.folder / "owners" / self._owner, thread_local=False)
        self._lock.acquire()
        with self._connection() as connection:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version > _SCHEMA_VERSION:
                raise RunError(f"{self.folder / DATABASE} has version {version}: allowed is at most {_SCHEMA_VERSION}, update this program")
            if version == 0:
                # two processes may get here together: the second finds the tables there
                connection.executescript(
                    "BEGIN IMMEDIATE;"
                    + _SCHEMA.replace("CREATE TABLE", "CREATE TABLE IF NOT EXISTS").replace("CREATE INDEX", "CREATE INDEX IF NOT EXISTS")
                    + f"PRAGMA user_version = {_SCHEMA_VERSION}; COMMIT;"
                )

    def _connection(self) -> sqlite3.Connection:
        """This thread's connection."""
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = sqlite3.connect(self.folder / DATABASE, timeout=30)
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA foreign_keys = ON")
            self._local.connection = connection
        return connection

    def close(self) -> None:
        """Gives this process's runs free and closes this thread's connection."""
        connection = getattr(self._local, "connection", None)
        if connection is not None:
            connection.close()
            self._local.connection = None
        (self.folder / "owners" / self._owner).unlink(missing_ok=True)
        self._lock.release()

    # runs

    def create(self, config: RunConfig, name: str) -> str:
        """A new run, QUEUED, with a folder of its own. Returns its id."""
        now = time.time()
        run_id = time.strftime("%Y%m%d-%H%M%S-", time.localtime(now)) + uuid.uuid4().hex[:6]
        self.run_folder(run_id).mkdir(parents=True)
        with self._connection() as connection:
            connection.execute(
                "INSERT INTO run (id, name, config, state, owner, created) VALUES (?, ?, ?, ?, ?, ?)",
                (run_id, name, json.dumps(config.to_dict()), RunState.QUEUED, self._owner, now),
            )
        return run_id

    def run_folder(self, run_id: str) -> Path:
        """Where images and weights of the run lie."""
        return self.folder / run_id

    def images_folder(self, run: Run) -> Path:
        """Where the images lie that the run made or was given."""
        return Path(run.config.images_from) if run.config.images_from else self.run_folder(run.id) / layout.IMAGES

    def run(self, run_id: str) -> Run:
        """Raises RunError for an id that does not exist."""
        row = self._connection().execute("SELECT * FROM run WHERE id = ?", (run_id,)).fetchone()
        if row is None:
            raise _unknown(run_id)
        return _run(row)

    def runs(self) -> list[Run]:
        """All runs, the newest first."""
        rows = self._connection().execute("SELECT * FROM run ORDER BY created DESC, id DESC").fetchall()
        return [_run(row) for row in rows]

    def set_state(self, run_id: str, state: RunState, error: str = "", traceback: str = "") -> None:
        """Moves the run to `state`. Raises RunError when it is finished already."""
        now = time.time()
        unfinished = [s for s in RunState if not s.is_finished()]
        with self._connection() as connection:
            moved = connection.execute(
                "UPDATE run SET state = ?, error = ?, traceback = ?,"
                " started = CASE WHEN started IS NULL AND ? = 'running' THEN ? ELSE started END,"
                " ended = CASE WHEN ? THEN ? ELSE ended END"
                f" WHERE id = ? AND state IN ({','.join('?' * len(unfinished))})",
                (state, error, traceback, state, now, state.is_finished(), now, run_id, *unfinished),
            ).rowcount
        if not moved:
            raise RunError(f"run {run_id!r} is {self.run(run_id).state}: allowed are changes of a run that is not finished")

    def mark_interrupted(self) -> list[str]:
        """Marks unfinished runs whose process has died; returns their ids. Called when a manager starts."""
        marked = []
        for row in self._connection().execute("SELECT id, state, owner FROM run").fetchall():
            if not RunState(row["state"]).is_finished() and row["owner"] != self._owner and not self._lives(row["owner"]):
                # a run that finished since it was read, or that another process marked, is none of ours
                with suppress(RunError):
                    self.set_state(row["id"], RunState.INTERRUPTED, error="its process ended while the run was going on")
                    marked.append(row["id"])
        self._remove_dead_owners()
        return marked

    def _remove_dead_owners(self) -> None:
        """Removes the lock files that dead processes left; young ones stay, as a process may be about to take its lock."""
        for path in (self.folder / "owners").iterdir():
            with suppress(FileNotFoundError):
                old = time.time() - path.stat().st_mtime > _SECONDS_TO_LOCK
                if old and path.name != self._owner and not self._lives(path.name):
                    path.unlink()

    def _lives(self, owner: str) -> bool:
        """Whether a process still holds the lock; the operating system gives it free when the process dies, however it dies."""
        path = self.folder / "owners" / owner
        if not path.exists():
            return False
        try:
            with FileLock(path, timeout=0):
                return False
        except Timeout:
            return True

    def rename(self, run_id: str, name: str) -> None:
        """Gives the run another name. Raises RunError for an id that does not exist."""
        with self._connection() as connection:
            found = connection.execute("UPDATE run SET name = ? WHERE id = ?", (name, run_id)).rowcount
        if not found:
            raise _unknown(run_id)

    def delete(self, run_id: str) -> None:
        """Removes a finished run with its files. Raises RunError when it is not finished."""
        if not self.run(run_id).state.is_finished():
            raise RunError(f"run {run_id!r} is {self.run(run_id).state}: allowed is to delete a finished run, stop it first")
        with self._connection() as connection:
            connection.execute("DELETE FROM run WHERE id = ?", (run_id,))
        shutil.rmtree(self.run_folder(run_id), ignore_errors=True)

    # what a run leaves behind

    def set_stage(self, run_id: str, stage: str, total: int) -> None:
        """A stage of `total` steps begins; 0 when it has no steps to count. Raises RunError for an id that does not exist."""
        with self._connection() as connection:
            found = connection.execute(
                "UPDATE run SET stage = ?, stage_started = ?, step = 0, total = ? WHERE id = ?", (stage, time.time(), total, run_id)
            ).rowcount
        if not found:
            raise _unknown(run_id)

    def append(self, run_id: str, stage: str, lane: str, step: int, data: Mapping[str, Any]) -> None:
        """Appends a record and counts a step of the current stage."""
        with self._connection() as connection:
            connection.execute(
                "INSERT INTO record (run, stage, lane, step, data) VALUES (?, ?, ?, ?, ?)", (run_id, stage, lane, step, json.dumps(data))
            )
            connection.execute("UPDATE run SET step = step + 1 WHERE id = ?", (run_id,))

    def records(self, run_id: str, stage: str, after: int = 0) -> list[Record]:
        """Records of one stage with an id above `after`, oldest first."""
        rows = self._connection().execute(
            "SELECT id, stage, lane, step, data FROM record WHERE run = ? AND stage = ? AND id > ? ORDER BY id", (run_id, stage, after)
        )
        return [Record(row["id"], row["stage"], row["lane"], row["step"], json.loads(row["data"])) for row in rows]

    def add_change(self, run_id: str, lane: str, step: int, name: str, value: float) -> None:
        """A live value took effect at `step`."""
        with self._connection() as connection:
            connection.execute(
                "INSERT INTO change (run, lane, step, name, value) VALUES (?, ?, ?, ?, ?)", (run_id, lane, step, name, value)
            )

    def changes(self, run_id: str) -> list[dict[str, Any]]:
        """Live changes, oldest first: {"lane", "step", "name", "value"}."""
        rows = self._connection().execute("SELECT lane, step, name, value FROM change WHERE run = ? ORDER BY id", (run_id,))
        return [dict(row) for row in rows]

    def set_result(self, run_id: str, name: str, value: Any) -> None:
        """A named value, fit for JSON; replaces an earlier one of that name."""
        with self._connection() as connection:
            connection.execute("INSERT OR REPLACE INTO result (run, name, data) VALUES (?, ?, ?)", (run_id, name, json.dumps(value)))

    def results(self, run_id: str) -> dict[str, Any]:
        """Name -> value, in the order of the names."""
        rows = self._connection().execute("SELECT name, data FROM result WHERE run = ? ORDER BY name", (run_id,))
        return {row["name"]: json.loads(row["data"]) for row in rows}

    def save_frame(self, run_id: str, lane: str, step: int, images: np.ndarray, labels: np.ndarray, keep: bool) -> None:
        """Images of one moment, uint8 `(N, 3, H, W)`: always as the latest of the lane, and for good when `keep`."""
        folder = self.run_folder(run_id) / layout.FRAMES / lane
        folder.mkdir(parents=True, exist_ok=True)
        for name in ["latest"] + ([f"{step:08d}"] if keep else []):
            temporary = folder / f".{name}.partial"
            with temporary.open("wb") as file:
                np.savez(file, images=images, labels=labels, step=step)
            temporary.replace(folder / f"{name}.npz")

    def frame_steps(self, run_id: str, lane: str) -> list[int]:
        """Steps of which images were kept."""
        return sorted(int(path.stem) for path in (self.run_folder(run_id) / layout.FRAMES / lane).glob("[0-9]*.npz"))

    def frame(self, run_id: str, lane: str, step: int | None = None) -> tuple[int, np.ndarray, np.ndarray] | None:
        """(step, images, labels) of the latest moment, or of a kept one; None when there is none yet."""
        name = "latest" if step is None else f"{step:08d}"
        path = self.run_folder(run_id) / layout.FRAMES / lane / f"{name}.npz"
        if not path.is_file():
            return None
        with np.load(path, allow_pickle=False) as file:
            return int(file["step"]), file["images"], file["labels"]


def _unknown(run_id: str) -> RunError:
    return RunError(f"run {run_id!r} does not exist: allowed are the ids listed under Runs")


def _run(row: sqlite3.Row) -> Run:
    return Run(
        id=row["id"],
        name=row["name"],
        config=RunConfig.from_dict(json.loads(row["config"])),
        state=RunState(row["state"]),
        created=row["created"],
        started=row["started"],
        ended=row["ended"],
        error=row["error"],
        traceback=row["traceback"],
        stage=row["stage"],
        stage_started=row["stage_started"],
        step=row["step"],
        total=row["total"],
    )
