"""What runs record in the database: numbers by step, live changes and named results."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from core.runs.database import Database


@dataclass(frozen=True)
class Record:
    """The numbers of one step."""

    id: int
    stage: str
    series: str  # the method that made the images; of a training, also the bit width, as in "adam W4A4"
    step: int
    data: dict[str, Any]


class Records:
    """Records, changes and results of all runs.

    **Order.** Records and changes are returned in the order in which they were written.

    **Copies.** Returned values are copies: modifying them changes nothing in the database.

    **Durability.** Nothing waits for the disk; `Database.sync` does.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    # records

    def append(self, run_id: str, stage: str, series: str, step: int, data: Mapping[str, Any], counted: bool = True) -> None:
        """Appends a record. counted: it also counts as a step of the current stage. Raises sqlite3.IntegrityError for an unknown run."""
        with self._database.write(durable=False) as connection:
            connection.execute(
                "INSERT INTO record (run, stage, series, step, data) VALUES (?, ?, ?, ?, ?)",
                (run_id, stage, series, step, json.dumps(data)),
            )
            if counted:
                connection.execute("UPDATE run SET step = step + 1 WHERE id = ?", (run_id,))

    def rewind(self, run_id: str, stage: str, series: str, step: int) -> None:
        """Deletes the records of a series after `step`."""
        with self._database.write(durable=False) as connection:
            connection.execute("DELETE FROM record WHERE run = ? AND stage = ? AND series = ? AND step > ?", (run_id, stage, series, step))

    def records(self, run_id: str, stage: str, after: int = 0) -> list[Record]:
        """Records of one stage with an id above `after`, oldest first."""
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT id, stage, series, step, data FROM record WHERE run = ? AND stage = ? AND id > ? ORDER BY id",
                (run_id, stage, after),
            ).fetchall()
        return [Record(row["id"], row["stage"], row["series"], row["step"], json.loads(row["data"])) for row in rows]

    def last_steps(self, run_id: str, stage: str) -> dict[str, int]:
        """Series of a stage -> step of its last record."""
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT series, MAX(step) AS last FROM record WHERE run = ? AND stage = ? GROUP BY series", (run_id, stage)
            ).fetchall()
        return {row["series"]: row["last"] for row in rows}

    def curves(self, run_id: str, stage: str, after: int = 0) -> tuple[int, dict[str, dict[str, np.ndarray]]]:
        """The single numbers of the records of one stage as arrays, without building a Record for each step.

        after: only records with an id above it. Returns the id of the last record (`after` when there is none), and series -> name ->
        float64 `(records,)` in the order of writing. The names include "step". NaN where a record does not have that number.
        """
        columns: dict[str, list[dict[str, float]]] = {}
        last = after
        with self._database.read() as connection:
            for row in connection.execute(
                "SELECT id, series, step, data FROM record WHERE run = ? AND stage = ? AND id > ? ORDER BY id", (run_id, stage, after)
            ):
                values = json.loads(row["data"])
                numbers = {name: value for name, value in values.items() if isinstance(value, (int, float))}
                columns.setdefault(row["series"], []).append({**numbers, "step": row["step"]})
                last = row["id"]
        return last, {
            series: {
                name: np.array([row.get(name, np.nan) for row in rows], np.float64)
                for name in dict.fromkeys(name for row in rows for name in row)
            }
            for series, rows in columns.items()
        }

    # live changes

    def add_change(self, run_id: str, method: str, step: int, name: str, value: float) -> None:
        """A live value took effect at `step`.

        A resumed run reports its earlier changes again. One that is already stored stays as it is; a different value replaces it and all
        later changes of that method and knob.
        """
        with self._database.write(durable=False) as connection:
            stored = connection.execute(
                "SELECT value FROM change WHERE run = ? AND method = ? AND step = ? AND name = ?", (run_id, method, step, name)
            ).fetchone()
            if stored is not None and stored["value"] == value:
                return
            connection.execute("DELETE FROM change WHERE run = ? AND method = ? AND name = ? AND step >= ?", (run_id, method, name, step))
            connection.execute(
                "INSERT INTO change (run, method, step, name, value) VALUES (?, ?, ?, ?, ?)", (run_id, method, step, name, value)
            )

    def changes(self, run_id: str) -> list[dict[str, Any]]:
        """Live changes, oldest first: {"method", "step", "name", "value"}."""
        with self._database.read() as connection:
            rows = connection.execute("SELECT method, step, name, value FROM change WHERE run = ? ORDER BY id", (run_id,)).fetchall()
        return [dict(row) for row in rows]

    def past(self, run_id: str) -> list[dict[str, Any]]:
        """The live changes that an attempt must make: those of earlier attempts, and those that the run was started with.

        The latter end where somebody has set the knob, because that is what happened in the attempt in which it was set.
        """
        with self._database.read() as connection:
            row = connection.execute("SELECT planned FROM run WHERE id = ?", (run_id,)).fetchone()
        planned, made = json.loads(row["planned"]) if row else [], self.changes(run_id)
        own = {(change["method"], change["name"]) for change in made if change not in planned}
        return [change for change in planned if (change["method"], change["name"]) not in own and change not in made] + made

    # results

    def set_result(self, run_id: str, name: str, value: Any) -> None:
        """Stores a named value that JSON can represent, in place of an earlier one with that name."""
        with self._database.write(durable=False) as connection:
            connection.execute("INSERT OR REPLACE INTO result (run, name, data) VALUES (?, ?, ?)", (run_id, name, json.dumps(value)))

    def result(self, run_id: str, name: str) -> Any:
        """One named value; None when there is none."""
        with self._database.read() as connection:
            row = connection.execute("SELECT data FROM result WHERE run = ? AND name = ?", (run_id, name)).fetchone()
        return None if row is None else json.loads(row["data"])

    def results(self, run_id: str) -> dict[str, Any]:
        """All results of a run, name -> value, sorted by name."""
        with self._database.read() as connection:
            rows = connection.execute("SELECT name, data FROM result WHERE run = ? ORDER BY name", (run_id,)).fetchall()
        return {row["name"]: json.loads(row["data"]) for row in rows}

    def result_names(self, run_id: str) -> list[str]:
        """Sorted names of all results of a run, without reading the values, some of which are large."""
        with self._database.read() as connection:
            return [row["name"] for row in connection.execute("SELECT name FROM result WHERE run = ? ORDER BY name", (run_id,))]

    def results_of(self, run_ids: Iterable[str], kinds: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The few results that a table of runs needs: run -> name -> value, of the names that equal one of `kinds` or start with
        "KIND/". Runs without any are left out.
        """
        wanted = json.dumps(list(run_ids))
        found: dict[str, dict[str, Any]] = {}
        with self._database.read() as connection:
            for kind in kinds:
                # a range, which the primary key finds, in place of a pattern; "0" follows "/"
                for condition, values in (("name = ?", (kind,)), ("name > ? AND name < ?", (f"{kind}/", f"{kind}0"))):
                    for row in connection.execute(
                        f"SELECT run, name, data FROM result WHERE run IN (SELECT value FROM json_each(?)) AND {condition}",
                        (wanted, *values),
                    ):
                        found.setdefault(row["run"], {})[row["name"]] = json.loads(row["data"])
        return found
