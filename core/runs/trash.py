"""Deleting runs: into the trash, out of it, and permanently."""

import functools
import json
import logging
import sqlite3
import time
from collections.abc import Collection

from core.errors import RunError
from core.files import remove
from core.runs.database import Database
from core.runs.run import DAYS_IN_TRASH, FINISHED, LISTED, UNFINISHED, Run, run_of_row

_IN_TRASH = "trashed IS NOT NULL AND NOT deleted"
_log = logging.getLogger(__name__)


class Trash:
    """The deleted runs of a database.

    **In the trash.** A run in the trash is in no list and cannot be read, but keeps everything and returns with `restore`.
    `remove_expired` deletes it after DAYS_IN_TRASH.

    **Permanent deletion.** First the row is marked, then the files are deleted, then the row: what an interruption leaves behind,
    `remove_expired` completes.

    **Branches.** They are with their run: unlisted in the trash, and deleted with it. A branch itself is deleted without the trash.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def put(self, run_id: str) -> None:
        """Moves a finished run to the trash. Raises RunError when it or one of its branches is not finished."""
        self._require_finished_branches(run_id)
        self._database.change_run(
            run_id,
            f"UPDATE run SET trashed = ? WHERE id = ? AND state IN ({FINISHED}) AND {LISTED}",
            (time.time(), run_id),
            f"run {run_id!r} must be finished to be deleted, but is {{state}}: stop it first",
        )

    def restore(self, run_id: str) -> None:
        """Takes a run out of the trash, unchanged. Raises RunError when it is not there, or not any more."""
        statement = "UPDATE run SET trashed = NULL WHERE id = ? AND trashed IS NOT NULL AND NOT deleted"
        if not self._database.write_or_use_reserve(lambda connection: connection.execute(statement, (run_id,)).rowcount):
            raise RunError(f"run to restore must have been deleted within the last {DAYS_IN_TRASH} days, got {run_id!r}")

    def runs(self, most: int | None = None, ids: Collection[str] | None = None) -> list[Run]:
        """The runs in the trash, the last deleted one first. most: at most so many. ids: only these."""
        with self._database.read() as connection:
            rows = connection.execute(
                f"SELECT * FROM run WHERE {_IN_TRASH} AND (? OR id IN (SELECT value FROM json_each(?)))"
                " ORDER BY trashed DESC, id DESC LIMIT ?",
                (ids is None, json.dumps(list(ids or ())), -1 if most is None else most),
            ).fetchall()
        return [run_of_row(row, self._database.folder) for row in rows]

    def count(self) -> int:
        """The number of runs in the trash."""
        with self._database.read() as connection:
            return connection.execute(f"SELECT COUNT(*) FROM run WHERE {_IN_TRASH}").fetchone()[0]

    def delete(self, run_id: str) -> None:
        """Deletes a finished run and its files permanently, whether or not it is in the trash.

        Raises RunError when it or one of its branches is not finished.
        """
        self._require_finished_branches(run_id)
        self._database.change_run(
            run_id,
            f"UPDATE run SET deleted = 1 WHERE id = ? AND state IN ({FINISHED}) AND NOT deleted",
            (run_id,),
            f"run {run_id!r} must be finished to be deleted, but is {{state}}: stop it first",
        )
        self._purge(run_id)

    def _require_finished_branches(self, run_id: str) -> None:
        with self._database.read() as connection:
            row = connection.execute(f"SELECT id, state FROM run WHERE parent = ? AND state IN ({UNFINISHED})", (run_id,)).fetchone()
        if row is not None:
            raise RunError(f"branch {row['id']!r} of run {run_id!r} must be finished to be deleted, but is {row['state']}: stop it first")

    def remove_expired(self) -> None:
        """Deletes runs that were in the trash for more than DAYS_IN_TRASH, and completes interrupted deletions."""
        limit = time.time() - DAYS_IN_TRASH * 24 * 3600
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT id, deleted FROM run WHERE deleted UNION SELECT id, deleted FROM run WHERE trashed < ?", (limit,)
            ).fetchall()
        for row in rows:
            # checked again inside a transaction, because the run may have been restored since
            if row["deleted"] or self._database.write_or_use_reserve(functools.partial(self._expire, row["id"], limit)):
                self._purge(row["id"])

    @staticmethod
    def _expire(run_id: str, limit: float, connection: sqlite3.Connection) -> bool:
        """Marks a run as deleted if it was moved to the trash before `limit`. Returns whether it was."""
        return bool(connection.execute("UPDATE run SET deleted = 1 WHERE id = ? AND trashed < ?", (run_id, limit)).rowcount)

    def _purge(self, run_id: str) -> None:
        """Deletes the files of a run that is marked as deleted, and of its branches, then their rows.

        Files that cannot be deleted now are left for later.
        """
        with self._database.read() as connection:
            branches = [row["id"] for row in connection.execute("SELECT id FROM run WHERE parent = ?", (run_id,))]
        try:
            for one in (*branches, run_id):
                remove(self._database.folder / one)
        except OSError as error:
            _log.warning("could not delete the files of run %s yet: %s", run_id, error)
            return
        with self._database.write() as connection:
            if connection.execute("DELETE FROM run WHERE id = ? AND deleted", (run_id,)).rowcount:
                connection.execute("DELETE FROM run WHERE parent = ?", (run_id,))
