"""Runs as a table: a line for each, and which of them match a search. No streamlit in here."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from core.runs.events import SECONDS
from core.runs.run import Run
from dashboard.names import knob_title, method_name
from dashboard.tables import results
from dashboard.tables.columns import Column

BASELINE = "★"
COLUMNS = {
    "name": Column(kind="link", help=f"Opens the run. {BASELINE}: the baseline that others are compared with."),
    "tags": Column(kind="tags"),
    "started": Column(kind="time"),
    "minutes": Column(digits=1, help="Computing time, without pauses."),
    "deleted": Column(kind="time"),
    "permanently deleted": Column(kind="time"),
}
FIGURES = ("full_precision", "accuracy", SECONDS)  # kinds of results that `lines` shows


def all_tags(runs: Sequence[Run]) -> list[str]:
    """Every tag of these runs once, in alphabetical order."""
    return sorted({tag for run in runs for tag in run.tags})


def lines(runs: Sequence[Run], figures: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A line for each run. figures: run -> its results of FIGURES.

    Top-1 at a bit width is that after training on the images of the run's first method, in the order of the method table, that has one;
    without labels, it is the agreement with full precision, in columns of its own: on real images, else on held-out synthetic ones.
    """
    trained = {run.id: _figures(figures.get(run.id, {})) for run in runs}
    columns = sorted({column for own in trained.values() for column in own})
    return [
        {
            "name": f"{run.name} {BASELINE}" if run.pinned else run.name,
            "tags": list(run.tags),
            "state": str(run.state),
            "network": run.network,
            "images by": " + ".join(map(method_name, run.config.methods)),
            **({"by": run.user} if any(one.user for one in runs) else {}),
            "started": run.started,
            "minutes": minutes(run, figures.get(run.id, {})),
            "full precision %": figures.get(run.id, {}).get("full_precision", {}).get("top1"),
            **{column: trained[run.id].get(column) for column in columns},
            "note": run.note,
        }
        for run in runs
    ]


def minutes(run: Run, known: Mapping[str, Any]) -> float | None:
    """How long the run was computed; None if it has not begun. Earlier versions stored only when it started and ended.

    known: its results.
    """
    if run.started is None:
        return None
    return round(known.get(SECONDS, max(0.0, (run.ended or time.time()) - run.started)) / 60, 1)


def _figures(known: Mapping[str, Any]) -> dict[str, float]:
    """Column, such as "W4A4 %" -> top-1 after training, or "W4A4 real agreement %" -> agreement."""
    figures: dict[str, float] = {}
    for row in results.accuracies(known):
        if row.get("quantized") is not None:
            figures.setdefault(f"{width_of(row)} %", row["quantized"])
        elif row.get("kept"):
            words, agreement, _ = results.agreement_of(row)
            if agreement is not None:
                figures.setdefault(f"{width_of(row)} {words} agreement %", agreement)
    return figures


def width_of(row: Mapping[str, Any]) -> str:
    """W4A4 for a row of accuracies."""
    return f"W{row.get('weight_bits', row['bits'])}A{row.get('activation_bits', row['bits'])}"


def deleted_lines(runs: Sequence[Run], days: int) -> list[dict[str, Any]]:
    """A line for each run in the trash."""
    return [
        {
            "name": run.name,
            "network": run.network,
            "deleted": run.trashed,
            "permanently deleted": (run.trashed or 0) + days * 24 * 3600,
        }
        for run in runs
    ]


def change_lines(changes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A line for each live change of a run."""
    return [
        {
            "setting": knob_title(change["name"]),
            "value": f"{change['value']:g}",
            "method": method_name(change["method"]),
            "iteration": change["step"],
        }
        for change in changes
    ]
