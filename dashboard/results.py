"""From what the store holds to what the pages show: accuracies as rows, the paper's table beside them. No streamlit in here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from core.config import OPTIMIZERS
from core.runs.table import KEPT, METHODS, NOT_MEASURED, Measurement, PaperRow, checkpoint_of, paper_rows


def accuracies(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row for each optimizer and bit width of a run's results, in that order."""
    rows = []
    for name, value in results.items():
        kind, _, rest = name.partition("/")
        if kind == "accuracy":
            rows.append({**value, "lane": rest.partition("/")[0]})
    return sorted(rows, key=lambda row: (place(row["lane"]), row["bits"]))


def diversities(results: Mapping[str, Any]) -> dict[str, Any]:
    """Lane -> diversity of a run's results."""
    known = {name.partition("/")[2]: value for name, value in results.items() if name.startswith("diversity/")}
    return dict(sorted(known.items(), key=lambda item: place(item[0])))


def place(lane: str) -> int:
    """The paper's optimizer first, then the other, then anything else."""
    return OPTIMIZERS.index(lane) if lane in OPTIMIZERS else len(OPTIMIZERS)


def paper_table(model: str) -> list[dict[str, Any]]:
    """The paper's rows for this network, for a person to read; empty where the paper does not have it."""
    return [{"bits": row.bits, **_paper_columns(row)} for row in paper_rows(model)]


def paper_accuracies(model: str) -> tuple[dict[int, float], float | None]:
    """Bits -> top-1 of the paper's method, and the full precision that it started from."""
    rows = paper_rows(model)
    return {row.bits: dffg for row in rows if (dffg := row.methods["dffg"]) is not None}, rows[0].full_precision if rows else None


def _paper_columns(row: PaperRow) -> dict[str, float | None]:
    return {"full precision": row.full_precision, **{title: row.methods[column] for column, title in METHODS.items()}}


def whole_table(table: Sequence[tuple[PaperRow, Sequence[Measurement]]]) -> list[dict[str, Any]]:
    """A line for each row of the paper, with the newest measurement beside it, for a person to read."""
    lines = []
    for row, measured in table:
        newest = measured[0] if measured else None
        lines.append(
            {
                "row": row.name,
                "measured here": newest.when if newest else NOT_MEASURED,
                **{f"drop {lane}": newest.drop.get(lane) if newest else None for lane in OPTIMIZERS},
                "drop DFFG": row.drop,
                "DFFG": row.methods["dffg"],  # before the others, as one scrolls to those
                **_paper_columns(row),
            }
        )
    return lines


def measured_table(measured: Sequence[Measurement]) -> list[dict[str, Any]]:
    """A line for each measurement, for a person to read."""
    return [
        {
            "row": one.row,
            "when": one.when,
            **{
                f"{what} {lane}": figures.get(lane)
                for lane in OPTIMIZERS
                for what, figures in (("top-1", one.top1), ("drop", one.drop), ("±", one.standard_error))
            },
            "full precision": one.full_precision,
            "setting": one.setting,
            "images": one.evaluated_on,
            "started from": f"{one.model}, {checkpoint_of(one.model)}",
            "run": one.run or KEPT,
        }
        for one in measured
    ]


def accuracy_table(rows: list[dict[str, Any]], full_precision: float | None) -> list[dict[str, Any]]:
    """Rows for a person: calibrated, trained, drop, error."""
    table = []
    for row in rows:
        trained = row.get("quantized")
        table.append(
            {
                "images by": row["lane"],
                "bits": row["bits"],
                "range": row.get("range"),
                "calibrated %": row["calibrated"],
                "trained %": trained,
                "drop": None if trained is None or full_precision is None else round(full_precision - trained, 2),
                "± standard error": row.get("standard_error"),
                "steps": row.get("steps"),
                "seconds": row.get("seconds"),
            }
        )
    return table
