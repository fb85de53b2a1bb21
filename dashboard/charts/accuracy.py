"""Accuracies to plotly figures. Pure: no streamlit in here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import plotly.graph_objects as go

from dashboard.charts.style import FULL_PRECISION, PAPER, colour, laid_out, title_of
from dashboard.text import plotly

# of the settings of one optimizer, which share its colour
_SYMBOLS = ("circle", "square", "triangle-up", "cross", "star", "hexagon", "pentagon", "triangle-down")
_PATTERNS = ("", "/", "x", ".", "-", "+", "|", "\\")
_PAPER_SYMBOLS = ("diamond", "diamond-open", "x", "cross-thin-open", "star-open", "square-open", "triangle-up-open", "hexagon-open")


def accuracy_figure(
    accuracies: Sequence[Mapping[str, Any]],
    full_precision: float | None,
    paper: Mapping[str, Mapping[int, float]],
    paper_full_precision: float | None,
    bars: bool = False,
) -> go.Figure:
    """Top-1 over bit width, calibrated and trained, a pair of lines or bars for each optimizer and setting.

    accuracies: rows of `results.accuracies` or `series.accuracy_series`. full_precision: of these runs. paper: method -> bits -> top-1,
    as single marks, and the full precision that those started from.
    """
    figure = go.Figure()
    drawn = _bars if bars else _lines
    places: dict[str, int] = {}  # method -> settings of it so far
    for method, label in dict.fromkeys((row["method"], row.get("label", "")) for row in accuracies):
        own = sorted((row for row in accuracies if (row["method"], row.get("label", "")) == (method, label)), key=lambda row: row["bits"])
        place = places[method] = places.get(method, -1) + 1
        name = title_of(method) + (f", {plotly(label)}" if label else "")
        drawn(figure, own, method, f"{name}, calibrated only", "calibrated", "calibrated_error", place)
        trained = [row for row in own if row.get("quantized") is not None]
        if trained:
            drawn(figure, trained, method, f"{name}, trained", "quantized", "standard_error", place)
    for symbol, (method, by_bits) in zip(cycle(_PAPER_SYMBOLS), paper.items()):
        figure.add_scatter(
            x=list(by_bits), y=list(by_bits.values()), name=f"{plotly(method)}, paper", mode="markers",
            marker={"color": PAPER, "symbol": symbol, "size": 11, "line": {"width": 1.5, "color": PAPER}},
            hovertemplate="%{y:.2f} % at %{x} bits",
        )  # fmt: skip
    levels = {
        "full precision": (full_precision, FULL_PRECISION, "dash"),
        "paper's full precision": (paper_full_precision if paper else None, PAPER, "dot"),
    }
    known = sorted((value, name, line, dash) for name, (value, line, dash) in levels.items() if value is not None)
    for place, (value, name, line, dash) in enumerate(known):
        figure.add_hline(y=value, line={"color": line, "dash": dash})
        # the higher one has its name above it and the other below, so that these never meet; at the left, where few bits lie lower
        figure.add_annotation(
            x=0, xref="paper", xanchor="left", y=value, yanchor="bottom" if place == len(known) - 1 else "top", showarrow=False,
            text=f"{name} {value:.1f} %",
        )  # fmt: skip
    figure.update_xaxes(title="bit width of weights and activations", dtick=1)
    figure.update_yaxes(title="top-1 accuracy, %", rangemode="tozero" if bars else "normal")
    # on a phone each curve has a line of its own in the legend, which must leave room for the curves
    laid_out(figure, "Accuracy at each bit width", 400 + 12 * len(figure.data), barmode="group")
    return figure.update_layout(legend={"yref": "container", "y": 0, "yanchor": "bottom"})


def _lines(figure: go.Figure, rows: Sequence[Mapping[str, Any]], method: str, name: str, value: str, error: str, place: int) -> None:
    symbol = _SYMBOLS[place % len(_SYMBOLS)]
    trained = value == "quantized"
    figure.add_scatter(
        x=[row["bits"] for row in rows], y=[row[value] for row in rows], name=name, mode="lines+markers",
        line={"color": colour(method), "dash": None if trained else "dot"},
        marker={"symbol": symbol if trained else f"{symbol}-open", "size": 9},
        error_y=_error(rows, error), customdata=_runs(rows), hovertemplate="%{y:.2f} % at %{x} bits%{customdata}",
    )  # fmt: skip


def _bars(figure: go.Figure, rows: Sequence[Mapping[str, Any]], method: str, name: str, value: str, error: str, place: int) -> None:
    pattern = _PATTERNS[place % len(_PATTERNS)]
    figure.add_bar(
        x=[row["bits"] for row in rows], y=[row[value] for row in rows], name=name,
        marker={"color": colour(method), "opacity": 1.0 if value == "quantized" else 0.45, "pattern": {"shape": pattern}},
        error_y=_error(rows, error), customdata=_runs(rows), hovertemplate="%{y:.2f} % at %{x} bits%{customdata}",
    )  # fmt: skip


def _error(rows: Sequence[Mapping[str, Any]], error: str) -> dict[str, Any] | None:
    heights = [row.get(error) for row in rows]
    return {"type": "data", "array": heights, "thickness": 1} if any(height is not None for height in heights) else None


def _runs(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a mark says of how many runs it is the mean."""
    return [f", mean of {row['runs']} seeds" if row.get("runs", 1) > 1 else "" for row in rows]
