"""Drops of several methods to a figure. Pure: no streamlit in here."""

from __future__ import annotations

from collections.abc import Sequence

from core.comparison.table import Row
from core.generation.methods import METHODS, in_order
from dashboard.charts.style import Figure, color, dash, figure, title_of


def drops_figure(table: Sequence[Row]) -> Figure:
    """The drop at each bit width, a curve for each method. Error bars: one standard deviation between seeds, of a single seed one standard
    error of the evaluation.
    """
    traces = []
    for method in in_order({row.method for row in table}):
        own = sorted((row for row in table if row.method == method), key=lambda row: row.width)
        errors = [_error(row) for row in own]
        traces.append({
            "type": "scatter", "mode": "lines+markers", "name": _name(method), "x": [row.width for row in own],
            "y": [row.drop for row in own], "error_y": {"type": "data", "array": errors, "thickness": 1},
            "line": {"color": color(method), "dash": dash(method)}, "marker": {"size": 8},
            "hovertemplate": "%{y:.2f} points at %{x}",
        })  # fmt: skip
    # a reference, such as noise, may be far worse than all methods
    ends = [row.drop + _error(row) for row in table if not METHODS[row.method].is_reference]
    shown = {"range": [min(0.0, *(row.drop - _error(row) for row in table)) * 1.1, 1.1 * max(ends)]} if ends else {"rangemode": "tozero"}
    return figure(
        traces, "Drop in top-1 at each bit width", 360,
        xaxis={"title": {"text": "bit width of weights and activations"}, "type": "category", "categoryorder": "category ascending"},
        yaxis={"title": {"text": "drop, points"}, **shown},
    )  # fmt: skip


def _name(method: str) -> str:
    """Without the word that marks a reference, for which the legend has no room in a narrow window."""
    return title_of(method).removesuffix(" (reference)")


def _error(row: Row) -> float:
    return row.standard_error if row.spread is None else row.spread
