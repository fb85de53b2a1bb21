"""Curves of a run and its branches over the iterations of one batch. Pure: no streamlit in here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from core.runs.records import Record
from dashboard.charts.generation import layer_figure, loss_figure
from dashboard.charts.style import DASHES, Figure
from dashboard.tables.terms import Term

_BRANCH = " branch "


class Curves(NamedTuple):
    """Records and live changes of a branch. letter: its name in the legend; at: the last step that it shares with its run."""

    letter: str
    at: int
    records: Sequence[Record]
    changes: Sequence[Mapping[str, Any]]


def branch_figure(
    chart: str,
    records: Sequence[Record],
    changes: Sequence[Mapping[str, Any]],
    branches: Sequence[Curves],
    span: range,
    layers: Sequence[str],
    terms: Sequence[Term],
) -> Figure:
    """The curves of a run and, dashed, those of its branches from where they leave it. Live changes are marks: those of branches where they
    leave the run.

    chart: "loss" for loss, terms and agreement, or "layers" for L_BNS of each layer. span: steps of the batch; others are left out.
    """
    shown = [record for record in records if record.step in span]
    marks = [change for change in changes if change["step"] + 1 in span]
    for branch in branches:
        shown += [replace(one, series=one.series + _BRANCH + branch.letter) for one in branch.records if one.step >= branch.at]
        marks += [change for change in branch.changes if change["step"] == branch.at]
    figure = loss_figure(shown, marks, terms) if chart == "loss" else layer_figure(shown, layers, marks)
    dashes = {branch.letter: DASHES[1 + index % (len(DASHES) - 1)] for index, branch in enumerate(branches)}
    for trace in figure["data"]:
        _, branch_of, letter = trace["legendgroup"].partition(_BRANCH)
        if branch_of:
            trace["line"] = {**trace["line"], "dash": dashes[letter]}
    layout = figure["layout"]
    for own in (layout, layout["meta"]["narrow"]):
        for name, axis in own.items():
            if name.startswith("xaxis"):
                axis["range"] = [span.start, max(span[-1], span.start + 1)]  # the player's cursor may be in another batch
    layout["uirevision"] = layout["meta"]["name"] = f"branches {chart} {span.start}"
    return figure
