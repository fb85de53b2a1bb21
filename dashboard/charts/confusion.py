"""Changes of classes under quantization to figures. Pure: no streamlit in here."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from core.comparison.confusion import ClassChange
from dashboard.charts.style import FULL_PRECISION, Figure, color, figure
from dashboard.text import plotly

MOST_BARS = 20
_FEWER = [[0, "#B2182B"], [0.5, "#F7F7F7"], [1, "#2166AC"]]  # fewer, as many, more images


def changes_figure(changes: Sequence[ClassChange], names: Sequence[str], method: str) -> Figure:
    """For each class, bars of the images that are lost, downward, and gained, upward; at most MOST_BARS, the first ones."""
    shown = changes[:MOST_BARS]
    labels = [plotly(names[one.label]) for one in shown]
    hover = [f"{one.lost} of {one.images} lost, {one.gained} gained, p = {one.p:.2g}" for one in shown]
    traces = [
        {
            "type": "bar", "x": labels, "y": values, "name": name, "marker": {"color": shade}, "text": hover, "textposition": "none",
            "hovertemplate": "%{x}: %{text}<extra></extra>",
        }
        for name, values, shade in (
            ("lost: only full precision is right", [-one.lost for one in shown], color(method)),
            ("gained: only the quantized network is right", [one.gained for one in shown], FULL_PRECISION),
        )
    ]  # fmt: skip
    title = "Images lost and gained by class"
    axis = {"title": {"text": "images"}}
    return figure(traces, title, 340, barmode="relative", dragmode=False, xaxis={"type": "category"}, yaxis=axis)


def matrix_figure(change: np.ndarray, classes: Sequence[int], names: Sequence[str]) -> Figure:
    """How often each class is taken for each other, compared with full precision. change: of `Confusion.matrix_change` for `classes`."""
    labels = [plotly(names[label]) for label in classes]
    most = max(1, int(np.abs(change).max()))
    trace = {
        "type": "heatmap", "x": labels, "y": labels, "z": change, "zmin": -most, "zmax": most, "colorscale": _FEWER,
        "hovertemplate": "%{y} taken for %{x}: %{z:+d} images<extra></extra>", "colorbar": {"thickness": 10},
    }  # fmt: skip
    axis = {"type": "category", "showgrid": False}
    return figure(
        [trace], "Confusion, compared with full precision", 340, dragmode=False, xaxis={**axis, "title": {"text": "taken for"}},
        yaxis={**axis, "title": {"text": "class"}, "autorange": "reversed"},
    )  # fmt: skip
