"""Runs on disk: a SQLite database for what is small, a folder for each run with its images and weights.

**A run.** It is created once and keeps its id forever; its config changes only where a budget of time is planned, or a file has a new
place. Its state changes as RunState describes. Records are appended and returned in the order of writing. They change only when a run is
resumed: then those after its last resume state are deleted, because they are computed again, and `attempt` increases by one. Results are
named values; the last one written counts. Returned values are copies: modifying them changes nothing in the store.

**Threads and processes.** Every method may be called from any thread, and several processes may use one folder. A run belongs to the
process that created or resumed it (see owner.py); an unfinished run whose owner has died is INTERRUPTED. There is one queue of runs for
all processes.

**Durability.** What was written survives the end of the process at once. A power failure may lose the last records, but none written
before a call of `sync`, and it never leaves the database inconsistent. Files are written atomically (see files.py). Frames are an
exception, see frames.py; for deleted runs see trash.py.
"""

import functools
import json
import logging
import os
import sqlite3
import time
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from core import layout
from core.config import RunConfig
from core.errors import RunError, StoreError
from core.files import remove, remove_partials, temporary_copy_path
from core.runs.database import Database
from core.runs.frames import Frames
from core.runs.lists import ALL, NEWEST, RunFilter, RunLists
from core.runs.places import located, portable, relocated
from core.runs.records import Record, Records
from core.runs.run import (
    CLUSTER,
    LISTED,
    NAME_CHARACTERS,
    NOTE_CHARACTERS,
    OF_THIS_MACHINE,
    RESUMABLE,
    TAG_CHARACTERS,
    TAGS,
    UNFINISHED,
    Run,
    check_length,
    searched_columns,
    stored_config,
    unknown_run,
    with_absolute_paths,
)
from core.runs.state import RunState
from core.runs.trash import Trash

_log = logging.getLogger(__name__)

RUNS_VARIABLE = "RUNS_DIR"
# as a value in an INSERT or UPDATE: the position at the end of the queue, which column `place` holds
_LAST_QUEUE_POSITION = "(SELECT MAX(0, COALESCE(MAX(place), 0)) + 1 FROM run)"
# branches are before all runs, among each other in the order in which they were queued
_LAST_OF_BRANCHES = "(SELECT COALESCE(MAX(place), -1000000000) + 1 FROM run WHERE parent != '')"
_QUEUE_POSITION = f"CASE WHEN parent = '' THEN {_LAST_QUEUE_POSITION} ELSE {_LAST_OF_BRANCHES} END"


def default_folder() -> Path:
    """The folder of stored runs: RUNS_DIR, or `runs` in the current folder."""
    return Path(os.environ.get(RUNS_VARIABLE) or "runs")


class RunStore:
    """The runs below one folder, which is created when it is missing.

    `frames` has the image snapshots, `lists` the lists of runs, `trash` the deleted runs, `database` the connections and transactions.
    Raises RunError for a database of a newer version, one that cannot be read, and a folder that cannot be written to. Every method raises
    StoreError while the folder cannot be read or written, see Database.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = (folder or default_folder()).absolute()
        self.database = Database(self.folder)
        self.frames = Frames(self.folder)
        self.trash = Trash(self.database)
        self.lists = RunLists(self.database)
        self._records = Records(self.database)

    def close(self) -> None:
        """Releases the runs of this process and closes the database. May be called more than once."""
        self.database.close()

    @property
    def owner(self) -> str:
        """Name of this process in the store."""
        return self.database.process.name

    # runs

    def create(
        self,
        config: RunConfig,
        name: str,
        user: str = "",
        out: str = "",
        output_subset: str = "",
        parent: str = "",
        branch_at: int = 0,
        changes: Iterable[Mapping[str, Any]] = (),
    ) -> str:
        """Adds a QUEUED run at the end of the queue, or a branch after the other branches, and returns its id.

        changes: live changes that it is to make, as `changes` returns them. The other arguments are fields of Run.
        Paths in the config become absolute, so that the run can be resumed from any folder; those below the runs folder are stored
        relative to it (places.py).
        """
        self.database.refill_reserve()
        now = time.time()
        run_id = time.strftime("%Y%m%d-%H%M%S-", time.localtime(now)) + uuid.uuid4().hex[:6]
        config = with_absolute_paths(config)
        columns = {
            "id": run_id,
            "name": name,
            "config": stored_config(config, self.folder),
            "state": RunState.QUEUED,
            "owner": self.owner,
            "created": now,
            "user": user,
            "out": portable(out, self.folder),
            "part": output_subset,
            "parent": parent,
            "branch_at": branch_at,
            "planned": json.dumps(list(changes)),
            **searched_columns(config, self.folder),
        }
        place = _LAST_OF_BRANCHES if parent else _LAST_QUEUE_POSITION
        with self.database.write() as connection:
            connection.execute(
                f"INSERT INTO run ({', '.join(columns)}, place) VALUES ({', '.join('?' * len(columns))}, {place})",
                tuple(columns.values()),
            )
        # after the row, because a folder without a row would belong to no run. If it cannot be created, the run fails when it starts;
        # raising here would leave a run in the queue that is never computed
        with suppress(OSError):
            self.run_folder(run_id).mkdir(exist_ok=True)
        return run_id

    def run_folder(self, run_id: str) -> Path:
        """The folder of the images and weights of a run."""
        return self.folder / run_id

    def images_folder(self, run: Run) -> Path:
        """The folder of the images that the run generated or was given."""
        return Path(run.config.images_from) if run.config.images_from else self.run_folder(run.id) / layout.IMAGES

    def run(self, run_id: str) -> Run:
        """One run. Raises RunError for an unknown id and for a run in the trash."""
        return self.database.run(run_id)

    def config(self, run_id: str) -> RunConfig:
        """The config to compute with. Raises RunError as `run` does, and ConfigError when this version cannot read the config."""
        return self.database.config(run_id)

    def runs(self, which: RunFilter = ALL, most: int | None = None, skip: int = 0, order: str = NEWEST) -> list[Run]:
        """All runs except those in the trash, newest first; or only some of them, see RunLists.runs."""
        return self.lists.runs(which, most, skip, order)

    def delete(self, run_id: str) -> None:
        """Deletes a finished run permanently, see Trash.delete."""
        self.trash.delete(run_id)

    # state and queue

    def set_state(self, run_id: str, state: RunState, error: str = "", traceback: str = "") -> None:
        """Changes the state of an unfinished run. Raises RunError when it is finished."""
        now = time.time()
        self.database.change_run(
            run_id,
            "UPDATE run SET state = ?, error = ?, traceback = ?,"
            " started = CASE WHEN started IS NULL AND ? = 'running' THEN ? ELSE started END,"
            " ended = CASE WHEN ? THEN ? ELSE ended END,"
            # after a pause, the speed of the stage is measured anew
            " stage_started = CASE WHEN ? = 'running' THEN ? ELSE stage_started END,"
            " stage_done = CASE WHEN ? = 'running' THEN step ELSE stage_done END"
            f" WHERE id = ? AND state IN ({UNFINISHED})",
            (state, error, traceback, state, now, state.is_finished(), now, state, now, state, run_id),
            f"run {run_id!r} must be unfinished to change its state, but is {{state}}",
        )

    def requeue(self, run_id: str) -> None:
        """Puts a paused run of this process at the end of the queue. Raises RunError when it is not paused."""
        self.database.change_run(
            run_id,
            f"UPDATE run SET state = 'queued', place = {_QUEUE_POSITION} WHERE id = ? AND state = 'paused' AND owner = ?",
            (run_id, self.owner),
            f"run {run_id!r} must be a paused run of this process to continue, but is {{state}}",
        )

    def resume(self, run_id: str) -> None:
        """Queues a stopped, failed or interrupted run again, owned by this process. Raises RunError for any other run."""
        self.database.refill_reserve()
        self.database.change_run(
            run_id,
            f"UPDATE run SET state = 'queued', owner = ?, place = {_QUEUE_POSITION}, attempt = attempt + 1, error = '',"
            f" traceback = '', ended = NULL WHERE id = ? AND state IN ({RESUMABLE}) AND {LISTED}",
            (self.owner, run_id),
            f"run {run_id!r} must be stopped, failed or interrupted to be resumed, but is {{state}}",
        )
        with self.database.write(durable=False) as connection:  # it may be resumed elsewhere
            connection.execute("DELETE FROM result WHERE run = ? AND name = ?", (run_id, CLUSTER))

    def relocate(self, run_id: str, places: Mapping[str, str]) -> None:
        """Changes where a run to be resumed finds what is gone from its place, see `places.relocated`.

        Raises RunError for a run that cannot be resumed, and as `relocated` does; ConfigError for a value that is not allowed.
        """
        run = self.run(run_id)
        if not run.state.can_resume():
            raise RunError(f"run {run_id!r} must be stopped, failed or interrupted to get new places, but is {run.state}")
        self.set_config(run_id, with_absolute_paths(relocated(self.config(run_id), places)))

    def set_config(self, run_id: str, config: RunConfig) -> None:
        """Replaces the config, whose paths are absolute: by that with new places, or with the settings that a budget of time led to."""
        columns = {"config": stored_config(config, self.folder), **searched_columns(config, self.folder)}
        with self.database.write() as connection:
            connection.execute(f"UPDATE run SET {', '.join(f'{name} = ?' for name in columns)} WHERE id = ?", (*columns.values(), run_id))

    def adopt(self, run_id: str, owner: str) -> None:
        """Makes this process the owner of an unfinished run of the process `owner`. Raises RunError for any other run."""
        self.database.change_run(
            run_id,
            f"UPDATE run SET owner = ? WHERE id = ? AND owner = ? AND state IN ({UNFINISHED})",
            (self.owner, run_id, owner),
            f"run {run_id!r} must be unfinished and owned by the process that hands it over, but is {{state}}",
        )

    def ahead(self, run_id: str, queued: bool = True) -> list[str]:
        """Ids of the queued (unless not `queued`) and running runs before this one, of all processes. Paused ones let others go first.

        Runs on a cluster, which has a queue of its own, are before none and none is before them.
        """
        with self.database.read() as connection:
            rows = connection.execute(
                f"SELECT id FROM run WHERE (state = 'running' OR (? AND state = 'queued')) AND NOT deleted AND {OF_THIS_MACHINE}"
                f" AND place < (SELECT place FROM run WHERE id = ? AND {OF_THIS_MACHINE}) ORDER BY place",
                (queued, run_id),
            ).fetchall()
        return [row["id"] for row in rows]

    def remove_resume_state(self, run_id: str) -> None:
        """Removes the resume state of a complete run. If that fails now, `mark_interrupted` does it later."""
        try:
            remove(self.run_folder(run_id) / layout.CHECKPOINT)
            with self.database.write(durable=False) as connection:
                connection.execute("UPDATE run SET owner = '' WHERE id = ? AND state = 'complete'", (run_id,))
        except (OSError, StoreError) as error:
            _log.warning("could not remove the resume state of run %s yet: %s", run_id, error)

    def mark_interrupted(self) -> list[str]:
        """Marks unfinished runs whose process has died, and removes their partial files. Returns their ids.

        Also removes the resume states of complete runs, deletes expired runs from the trash, and completes deletions that were
        interrupted. Does nothing in a folder that was read-only from the start, where runs can only be looked at.
        """
        if self.database.is_for_reading:
            return []
        with self.database.read() as connection:
            rows = connection.execute(
                f"SELECT id, owner, out, state FROM run WHERE state IN ({UNFINISHED}) OR (state = 'complete' AND owner != '')"
            ).fetchall()
        process = self.database.process
        marked = []
        with self.database.errors():
            for row in rows:
                mark = functools.partial(self._mark_interrupted_run, row)
                if row["state"] == RunState.COMPLETE:
                    self.remove_resume_state(row["id"])
                elif not process.is_alive(row["owner"]) and self.database.write_or_use_reserve(mark):
                    marked.append(row["id"])
            self.trash.remove_expired()
            process.remove_stale()
        return marked

    def _mark_interrupted_run(self, row: sqlite3.Row, connection: sqlite3.Connection) -> bool:
        """Marks a run as interrupted unless another process took it over since it was read. Returns whether it was marked."""
        found = connection.execute(
            f"UPDATE run SET state = 'interrupted', error = ?, ended = ? WHERE id = ? AND owner = ? AND state IN ({UNFINISHED})",
            ("its process ended before the run did", time.time(), row["id"], row["owner"]),
        ).rowcount
        if not found:
            return False
        # inside the transaction, because after it another process may resume the run and write new partial files
        try:
            remove_partials(self.run_folder(row["id"]))
            if row["out"]:
                remove(temporary_copy_path(Path(located(row["out"], self.folder)), row["id"]))
        except OSError as error:  # another user's folder, or a disk that is not mounted; removed when the run is resumed
            _log.warning("could not remove the partial files of run %s yet: %s", row["id"], error)
        return True

    def set_stage(self, run_id: str, stage: str, total: int, done: int = 0) -> None:
        """A stage of `total` steps begins, or resumes after `done`; total 0: no steps to count. Raises RunError for an unknown id."""
        with self.database.write(durable=False) as connection:
            found = connection.execute(
                "UPDATE run SET stage = ?, stage_started = ?, step = ?, stage_done = ?, total = ? WHERE id = ?",
                (stage, time.time(), done, done, total, run_id),
            ).rowcount
        if not found:
            raise unknown_run(run_id)

    # what people write about a run

    def rename(self, run_id: str, name: str) -> None:
        """Changes the name. Raises RunError for a name above NAME_CHARACTERS, an unknown id, and a run in the trash."""
        check_length("name", name, NAME_CHARACTERS)
        self._set_column(run_id, "name", name)

    def set_note(self, run_id: str, note: str) -> None:
        """Changes the note; empty removes it. Raises RunError for a note above NOTE_CHARACTERS, and as `rename` does."""
        check_length("note", note, NOTE_CHARACTERS)
        self._set_column(run_id, "note", note)

    def set_tags(self, run_id: str, tags: Iterable[str]) -> None:
        """Replaces the tags of the run.

        Whitespace around a tag is removed, whitespace within becomes one space, and duplicates are dropped. Raises RunError for an empty
        tag, one above TAG_CHARACTERS, more than TAGS tags, and as `rename` does.
        """
        cleaned = sorted({" ".join(tag.split()) for tag in tags})
        if "" in cleaned:
            raise RunError("a tag must have a visible character, got an empty tag")
        for tag in cleaned:
            check_length("tag", tag, TAG_CHARACTERS)
        if len(cleaned) > TAGS:
            raise RunError(f"a run must have at most {TAGS} tags, got {len(cleaned)}")
        self._set_column(run_id, "tags", "\n".join(cleaned))

    def _set_column(self, run_id: str, column: str, value: str) -> None:
        with self.database.write() as connection:
            found = connection.execute(f"UPDATE run SET {column} = ? WHERE id = ? AND {LISTED}", (value, run_id)).rowcount
        if not found:
            self.run(run_id)  # raises the reason

    def pin(self, run_id: str) -> None:
        """Makes this run the only baseline. Raises RunError for an unknown id, and for a run in the trash."""
        with self.database.write() as connection:
            found = connection.execute(f"UPDATE run SET pinned = 1 WHERE id = ? AND {LISTED}", (run_id,)).rowcount
            if found:
                connection.execute("UPDATE run SET pinned = 0 WHERE id != ? AND pinned", (run_id,))
        if not found:
            self.run(run_id)  # raises the reason

    def unpin(self, run_id: str) -> None:
        """The run is no longer the baseline. Does nothing when it was not."""
        with self.database.write() as connection:
            connection.execute("UPDATE run SET pinned = 0 WHERE id = ?", (run_id,))

    # what a run records, see Records

    def sync(self) -> None:
        """Everything written so far is on the disk when this returns."""
        self.database.sync()

    def append(self, run_id: str, stage: str, series: str, step: int, data: Mapping[str, Any], counted: bool = True) -> None:
        """Appends a record, see Records.append."""
        self._records.append(run_id, stage, series, step, data, counted)

    def rewind(self, run_id: str, stage: str, series: str, step: int) -> None:
        """Deletes the records and kept frames of a series after `step`."""
        self._records.rewind(run_id, stage, series, step)
        self.frames.rewind(run_id, series, step)

    def records(self, run_id: str, stage: str, after: int = 0) -> list[Record]:
        """Records of one stage with an id above `after`, oldest first."""
        return self._records.records(run_id, stage, after)

    def curves(self, run_id: str, stage: str, after: int = 0) -> tuple[int, dict[str, dict[str, np.ndarray]]]:
        """The numbers of the records of one stage as arrays, see Records.curves."""
        return self._records.curves(run_id, stage, after)

    def add_change(self, run_id: str, method: str, step: int, name: str, value: float) -> None:
        """A live value took effect at `step`, see Records.add_change."""
        self._records.add_change(run_id, method, step, name, value)

    def changes(self, run_id: str) -> list[dict[str, Any]]:
        """Live changes, oldest first: {"method", "step", "name", "value"}."""
        return self._records.changes(run_id)

    def set_result(self, run_id: str, name: str, value: Any) -> None:
        """Stores a named value that JSON can represent, in place of an earlier one with that name."""
        self._records.set_result(run_id, name, value)

    def result(self, run_id: str, name: str) -> Any:
        """One named value; None when there is none."""
        return self._records.result(run_id, name)

    def results(self, run_id: str) -> dict[str, Any]:
        """All results of a run, name -> value, sorted by name."""
        return self._records.results(run_id)

    def result_names(self, run_id: str) -> list[str]:
        """Sorted names of all results of a run, without reading the values."""
        return self._records.result_names(run_id)

    def results_of(self, run_ids: Iterable[str], kinds: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The results of some kinds of several runs, see Records.results_of."""
        return self._records.results_of(run_ids, kinds)
