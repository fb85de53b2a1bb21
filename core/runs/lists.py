"""Lists of runs: which ones, in which order, and how many. SQL finds them, so that a page reads only the runs that it shows."""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from core import layout
from core.errors import UnknownNameError
from core.generation.methods import METHODS
from core.runs.database import Database
from core.runs.places import portable
from core.runs.run import LISTED, UNFINISHED, Run, run_of_row
from core.runs.state import RunState

NEWEST = "newest first"
_SEARCHED = "casefold(name || ' ' || note || ' ' || replace(tags, char(10), ' ') || ' ' || network)"
_ACTIVE = f"state IN ({UNFINISHED})"
_MADE_IMAGES = "EXISTS (SELECT 1 FROM result WHERE run = run.id AND result.name > 'generation/' AND result.name < 'generation0')"
# name -> SQL
_ORDERS: Mapping[str, str] = MappingProxyType(
    {
        NEWEST: "created DESC, id DESC",
        "oldest first": "created, id",
        "name": "casefold(name)",
        "network": "casefold(network)",
        "state": "state",
        "minutes": "COALESCE(ended, strftime('%s', 'now')) - started DESC",
        "full precision": "(SELECT json_extract(data, '$.top1') FROM result WHERE run = run.id AND result.name = 'full_precision') DESC",
    }
)
_WIDTH = re.compile(r"W\dA\d")


@dataclass(frozen=True)
class RunFilter:
    """Which runs a list has. Every field that differs from its default leaves some out; those in the trash are in no list.

    words: all are in its name, note, tags or network, in upper or lower case. states: its state is one of them. tags: it has all of them.
    ids: its id is one of them. without: its id is another. active: it is not finished. generates: it generates its images. has_images: it
    has images, generated or given, or is active. model: its network. data: its evaluation images are one of them. methods, widths: exactly
    these. width: one of its bit widths, such as W4A4. quantizes: it has bit widths. one_width: no layer has other bits. images: the folder
    of its images. branches_of: the run whose branches it has; a list without it has no branches.
    """

    words: str = ""
    states: Collection[str] = ()
    tags: Collection[str] = ()
    ids: Collection[str] | None = None
    without: str = ""
    active: bool = False
    generates: bool = False
    has_images: bool = False
    model: str | None = None
    data: Collection[str] | None = None
    methods: Sequence[str] | None = None
    widths: Sequence[str] | None = None
    width: str = ""
    quantizes: bool = False
    one_width: bool = False
    images: Path | None = None
    branches_of: str = ""

    def condition(self, store: Path) -> tuple[str, list[Any]]:
        """A condition in SQL, and its values. store: the folder of the runs."""
        parts: list[tuple[str, tuple]] = [(LISTED, ())]
        # the second comparison lets SQLite use the index, which has branches only
        parts.append(("parent = ? AND parent != ''", (self.branches_of,)) if self.branches_of else ("parent = ''", ()))
        # lists are JSON, because a statement has a limited number of values
        # "+" keeps the index of the states out, because lists are sorted by time and end early
        data = None if self.data is None else [portable(one, store) for one in self.data]
        for column, wanted in (("+state", self.states or None), ("id", self.ids), ("data", data)):
            if wanted is not None:
                parts.append((f"{column} IN (SELECT value FROM json_each(?))", (json.dumps(list(wanted)),)))
        for column, exactly in (("model", self.model), ("methods", self.methods), ("widths", self.widths)):
            if exactly is not None:
                parts.append((f"{column} = ?", (portable(exactly, store) if isinstance(exactly, str) else "\n".join(exactly),)))
        for condition, applies in (
            (_ACTIVE, self.active),
            ("images_from = ''", self.generates),
            (f"(images_from != '' OR {_ACTIVE} OR {_MADE_IMAGES})", self.has_images),
            ("widths != ''", self.quantizes),
            ("NOT mixed", self.one_width),
        ):
            if applies:
                parts.append((condition, ()))
        if self.without:
            parts.append(("id != ?", (self.without,)))
        if self.images is not None:
            # runs that were given this folder, and the run that it belongs to
            owner = self.images.parent.name
            parts.append(
                (
                    "(images_from = ? OR id = ?)",
                    (portable(str(self.images), store), owner if self.images == store / owner / layout.IMAGES else ""),
                )
            )
        parts += [(_has_line("tags"), (tag,)) for tag in self.tags]
        parts += [(_has_line("widths"), (self.width,))] if self.width else []
        parts += [(f"instr({_SEARCHED}, ?)", (word,)) for word in self.words.casefold().split()]
        return " AND ".join(condition for condition, _ in parts), [value for _, values in parts for value in values]


def _has_line(column: str) -> str:
    return f"instr(char(10) || {column} || char(10), char(10) || ? || char(10))"


ALL = RunFilter()


class RunLists:
    """The runs of a database that are not in the trash."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def runs(self, which: RunFilter = ALL, most: int | None = None, skip: int = 0, order: str = NEWEST) -> list[Run]:
        """At most `most` runs of a filter, without the first `skip`. order: one of `orders()`; of equal runs, the newest comes first.

        Raises UnknownNameError for another order.
        """
        condition, values = which.condition(self._database.folder)
        statement = f"SELECT run.* FROM run WHERE {condition} ORDER BY {_order(order)}, {_ORDERS[NEWEST]} LIMIT ? OFFSET ?"
        with self._database.read() as connection:
            rows = connection.execute(statement, [*values, -1 if most is None else most, skip]).fetchall()
        return [run_of_row(row, self._database.folder) for row in rows]

    def count(self, which: RunFilter = ALL) -> int:
        """The number of runs of a filter."""
        condition, values = which.condition(self._database.folder)
        with self._database.read() as connection:
            return connection.execute(f"SELECT COUNT(*) FROM run WHERE {condition}", values).fetchone()[0]

    def orders(self) -> list[str]:
        """The orders of `runs`; W4A4 is the top-1 at this width after training, highest first, as the list of runs shows it."""
        widths = self._column("SELECT DISTINCT substr(name, -4) FROM result WHERE name > 'accuracy/' AND name < 'accuracy0'")
        return [*_ORDERS, *sorted(width for width in widths if _WIDTH.fullmatch(width))]

    def states(self) -> list[RunState]:
        """The states of all runs, in the order of RunState."""
        present = set(self._column(f"SELECT DISTINCT state FROM run WHERE {LISTED} AND parent = ''"))
        return [state for state in RunState if state in present]

    def tags(self) -> list[str]:
        """The tags of all runs, in alphabetical order."""
        together = self._column(f"SELECT DISTINCT tags FROM run WHERE {LISTED} AND tags != ''")
        return sorted({tag for tags in together for tag in tags.split("\n")})

    def _column(self, statement: str) -> list[Any]:
        with self._database.read() as connection:
            return [row[0] for row in connection.execute(statement)]


def _order(name: str) -> str:
    if name in _ORDERS:
        return _ORDERS[name]
    if not _WIDTH.fullmatch(name):
        raise UnknownNameError("order", name, [*_ORDERS, "a bit width such as W4A4"])
    # on the images of the first method that has one, as in dashboard/tables/run_list.py
    rank = " ".join(f"WHEN 'accuracy/{method}/{name}' THEN {place}" for place, method in enumerate(METHODS))
    return (
        "(SELECT json_extract(data, '$.quantized') FROM result WHERE run = run.id"
        f" AND result.name > 'accuracy/' AND result.name < 'accuracy0' AND result.name GLOB '*/{name}'"
        f" AND json_extract(data, '$.quantized') IS NOT NULL ORDER BY CASE result.name {rank} ELSE {len(METHODS)} END, result.name LIMIT 1)"
        " DESC"
    )
