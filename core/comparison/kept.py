"""Comparisons that are kept with the program, in the file of `core.runs.paper_table`. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from core.comparison.cells import Cell, found
from core.comparison.differences import Difference
from core.comparison.table import Row, rows
from core.config import RunConfig
from core.errors import RunError
from core.export.commands import bare_name, commands, portable
from core.generation.methods import in_order
from core.runs import paper_table
from core.runs.store import RunStore


@dataclass(frozen=True)
class Comparison:
    """A measured table of methods. command: measures it again; date: such as 2026-11-30."""

    title: str
    date: str
    command: str
    processor: str
    rows: Sequence[Row]


def kept() -> list[Comparison]:
    """The comparisons that are kept with the program, in the order of their file."""
    return [
        Comparison(entry["title"], entry["date"], entry["commands"][0], entry["processor"], [_row(row) for row in entry["rows"]])
        for entry in paper_table.read_kept(paper_table.MEASURED)["comparisons"]
    ]


def _row(values: Mapping[str, Any]) -> Row:
    behind = values["behind"]
    return Row(
        **{
            **values,
            "seeds": tuple(values["seeds"]),
            "runs": (),
            "top1": tuple(values["top1"]),
            "behind": None if behind is None else Difference(**behind),
        }
    )


def entry(store: RunStore, run_id: str, title: str) -> dict[str, Any]:
    """The comparison whose protocol are the settings of this run, as JSON without paths of this machine and without the machine itself.

    All of its methods and seeds are those of complete runs of the store. Raises RunError if none of them was measured.
    """
    start = store.config(run_id).with_knobs({"budget": 0.0})
    measured = found(store, start)
    table = rows(store, measured)
    if not table:
        raise RunError(f"run {run_id!r} must be of a comparison with labeled evaluation images, got one without a complete run")
    config = _whole(start, measured)
    seeds = " ".join(map(str, sorted({cell.seed for cell, _ in measured})))
    again = [line.replace("core run", f"core compare --seeds {seeds}", 1) for line in commands(config)]
    return {
        "title": title,
        "model": config.model,
        "commands": again,
        "config": portable(config).to_dict(),
        "rows": [_kept_row(row, config.evaluation.data) for row in table],
    }


def _kept_row(row: Row, data: str) -> dict[str, Any]:
    """The fields of a row without its runs, and without the parent folders of the evaluation images."""
    row = replace(row, evaluated_on=row.evaluated_on.replace(data, bare_name(data)))
    return {field.name: row.to_dict()[field.name] for field in fields(row) if field.name != "runs"}


def _whole(start: RunConfig, measured: Sequence[tuple[Cell, str]]) -> RunConfig:
    """The config that measures all methods, with the first seed."""
    methods = tuple(in_order({cell.method for cell, _ in measured}))
    folder = next((cell.config.generation.real_images for cell, _ in measured if cell.method == "real"), "")
    seed = min(cell.seed for cell, _ in measured)
    return replace(start, methods=methods).with_knobs({"real_images": folder, "seed": seed})
