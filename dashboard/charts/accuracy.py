"""Accuracies to figures. Pure: no streamlit in here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

from dashboard.charts.style import FULL_PRECISION, PAPER, Figure, color, figure, horizontal, title_of
from dashboard.text import plotly

# of the settings of one method, which share its color
_SYMBOLS = ("circle", "square", "triangle-up", "cross", "star", "hexagon", "pentagon", "triangle-down")
_PATTERNS = ("", "/", "x", ".", "-", "+", "|", "\\")
_PAPER_SYMBOLS = ("diamond", "diamond-open", "x", "cross-thin-open", "star-open", "square-open", "triangle-up-open", "hexagon-open")


def accuracy_figure(
    accuracies: Sequence[Mapping[str, Any]],
    full_precision: float | None,
    paper: Mapping[str, Mapping[int, float]],
    paper_full_precision: float | None,
    bars: bool = False,
) -> Figure:
    """Top-1 over bit width, calibrated and trained: a pair of lines or bars for each method and setting. Where no row has an accuracy, the
    agreement with full precision instead, on real images if there are any, else on held-out synthetic ones.

    accuracies: rows of `results.accuracies` or `series.accuracy_series`. full_precision: of these runs. paper: method -> bits -> top-1,
    drawn as single marks; paper_full_precision: what the paper's methods started from.
    """
    traces: list[dict[str, Any]] = []
    draw = _bar if bars else _line
    measured = any(row["calibrated"] is not None for row in accuracies)
    words = "real" if any(row.get("calibrated_real_agreement") is not None for row in accuracies) else "synthetic"
    ending = "" if measured else "_real_agreement" if words == "real" else "_agreement"
    settings: dict[str, int] = {}  # method -> how many of its settings are drawn
    for method, label in dict.fromkeys((row["method"], row.get("label", "")) for row in accuracies):
        own = sorted((row for row in accuracies if (row["method"], row.get("label", "")) == (method, label)), key=lambda row: row["bits"])
        index = settings[method] = settings.get(method, -1) + 1
        name = title_of(method) + (f", {plotly(label)}" if label else "")
        error = "calibrated_error" if measured else f"calibrated{ending}_error"
        calibrated = [row for row in own if row.get(f"calibrated{ending}") is not None]
        if calibrated:
            traces.append(draw(calibrated, method, f"{name}, calibrated only", f"calibrated{ending}", error, index))
        error = "standard_error" if measured else f"trained{ending}_error"
        trained = [row for row in own if row.get(f"trained{ending}") is not None]
        if trained:
            traces.append(draw(trained, method, f"{name}, trained", f"trained{ending}", error, index))
    for symbol, (method, by_bits) in zip(cycle(_PAPER_SYMBOLS), paper.items() if measured else ()):
        traces.append({
            "type": "scatter", "x": list(by_bits), "y": list(by_bits.values()), "name": f"{plotly(method)}, paper", "mode": "markers",
            "marker": {"color": PAPER, "symbol": symbol, "size": 11, "line": {"width": 1.5, "color": PAPER}},
            "hovertemplate": "%{y:.2f} % at %{x} bits",
        })  # fmt: skip
    shapes, notes = _levels(full_precision, paper_full_precision if paper and measured else None)
    title = "Accuracy at each bit width" if measured else "Agreement with full precision at each bit width"
    axis = "top-1 accuracy, %" if measured else f"{words} images of the same class, %"
    return figure(
        traces, title, 430, shapes=shapes, annotations=notes, barmode="group",
        xaxis={"title": {"text": "bit width of weights and activations"}, "dtick": 1},
        yaxis={"title": {"text": axis}, "rangemode": "tozero" if bars else "normal"},
    )  # fmt: skip


def _levels(full_precision: float | None, paper_full_precision: float | None) -> tuple[list[dict], list[dict]]:
    """Lines at full precision and their names."""
    levels = [
        (full_precision, "full precision", FULL_PRECISION, "dash"),
        (paper_full_precision, "paper's full precision", PAPER, "dot"),
    ]
    known = sorted((value, name, line, dash) for value, name, line, dash in levels if value is not None)
    shapes, notes = [], []
    for index, (value, name, line, dash) in enumerate(known):
        shapes.append(horizontal(value, line, dash))
        # the name of the upper line above it and that of the other below, so that they never meet; at the left, where accuracies are lower
        notes.append({
            "x": 0, "xref": "paper", "xanchor": "left", "xshift": 6, "y": value, "yanchor": "bottom" if index == len(known) - 1 else "top",
            "showarrow": False, "text": f"{name} {value:.1f} %",
        })  # fmt: skip
    return shapes, notes


def _line(rows: Sequence[Mapping[str, Any]], method: str, name: str, value: str, error: str, index: int) -> dict[str, Any]:
    symbol = _SYMBOLS[index % len(_SYMBOLS)]
    trained = value.startswith("trained")
    return _marks(rows, name, value, error) | {
        "type": "scatter", "mode": "lines+markers", "line": {"color": color(method), "dash": "solid" if trained else "dot"},
        "marker": {"symbol": symbol if trained else f"{symbol}-open", "size": 9},
    }  # fmt: skip


def _bar(rows: Sequence[Mapping[str, Any]], method: str, name: str, value: str, error: str, index: int) -> dict[str, Any]:
    opacity = 1.0 if value.startswith("trained") else 0.45
    pattern = _PATTERNS[index % len(_PATTERNS)]
    return _marks(rows, name, value, error) | {
        "type": "bar", "marker": {"color": color(method), "opacity": opacity, "pattern": {"shape": pattern}}
    }  # fmt: skip


def _marks(rows: Sequence[Mapping[str, Any]], name: str, value: str, error: str) -> dict[str, Any]:
    errors = [row.get(error) for row in rows]
    bars = {"type": "data", "array": errors, "thickness": 1} if any(one is not None for one in errors) else {"visible": False}
    seeds = [f", mean of {row['runs']} seeds" if row.get("runs", 1) > 1 else "" for row in rows]
    return {
        "x": [row["bits"] for row in rows], "y": [row[value] for row in rows], "name": name, "error_y": bars, "customdata": seeds,
        "hovertemplate": "%{y:.2f} % at %{x} bits%{customdata}",
    }  # fmt: skip
