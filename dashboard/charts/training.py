"""Records of a training, and what it made of each layer, to plotly figures. Pure: no streamlit in here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from core.runs.records import Record
from dashboard.charts.style import FULL_PRECISION, POINTS, by_series, colour, laid_out, numbers, steps_of, thinned, title_of
from dashboard.text import plotly

PARTS = {"total": "Loss", "agreement": "Agreement with the teacher"}
_TITLES = {"total": "loss (smoothed)", "agreement": "agreement with the teacher in training, % (smoothed)"}
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "solid")
_LINES = 64  # of a grid, at most: more of them are a grey area


def training_figure(records: Sequence[Record], part: str) -> go.Figure:
    """Loss or agreement with the teacher over training steps: colour is the optimizer of the images, dash the bit width."""
    figure = go.Figure()
    methods = by_series(records)
    for method, own in methods.items():
        points = thinned(list(zip(own, smoothed([r.data[part] for r in own]))), POINTS)
        figure.add_scatter(
            x=steps_of([record for record, _ in points]),
            y=numbers(value for _, value in points),
            name=title_of(method),
            mode="lines",
            line=_line(method, methods),
        )
    figure.update_xaxes(title="training step")
    if part == "total":
        figure.update_yaxes(type="log")
    return laid_out(figure, _TITLES[part], 340)


def accuracy_on_the_way(records: Sequence[Record], full_precision: float | None) -> go.Figure:
    """Test accuracy over training steps with its standard error; records of TEST. full_precision: top-1 in percent on all images."""
    figure = go.Figure()
    methods = by_series(records)
    for method, own in methods.items():
        figure.add_scatter(
            x=steps_of(own),
            y=numbers(r.data["top1"] for r in own),
            customdata=numbers(r.data["standard_error"] for r in own),
            name=title_of(method),
            mode="lines+markers",
            line=_line(method, methods),
            marker={"size": 7},
            error_y={"type": "data", "array": numbers(r.data["standard_error"] for r in own), "thickness": 1, "width": 0},
            hovertemplate="step %{x}: %{y:.1f} ± %{customdata:.1f} %<extra>%{fullData.name}</extra>",
        )
    if full_precision is not None:
        figure.add_hline(y=full_precision, line={"color": FULL_PRECISION, "dash": "dash"})
        figure.add_annotation(
            x=1, xref="paper", xanchor="right", y=full_precision, yanchor="bottom", showarrow=False,
            text=f"full precision {full_precision:.1f} %",
        )  # fmt: skip
    figure.update_xaxes(title="training step", rangemode="tozero")
    return laid_out(figure, "test accuracy, %", 340)


def _line(method: str, methods: Mapping[str, Any]) -> dict[str, Any]:
    widths = sorted({name.rpartition(" ")[2] for name in methods})
    return {"color": colour(method), "width": 2, "dash": _DASHES[widths.index(method.rpartition(" ")[2]) % len(_DASHES)]}


def smoothed(values: Sequence[float], weight: float = 0.9) -> list[float]:
    """Exponential moving average, corrected for its start as Adam's moments are."""
    smoothed, average = [], 0.0
    for index, value in enumerate(values):
        average = weight * average + (1 - weight) * value
        smoothed.append(average / (1 - weight ** (index + 1)))
    return smoothed


def error_figure(layers: Sequence[Mapping[str, Any]], method: str, chosen: str) -> go.Figure:
    """A bar for each layer in the order of the network, as long as its signal-to-quantization-noise ratio in dB; the chosen one is solid.

    Beside it how much of that its own rounding does, of the weights and of what it reads. layers: as core.quantization.analysis says.
    """
    places = list(range(1, len(layers) + 1))
    names = [plotly(layer["name"]) for layer in layers]
    figure = go.Figure()
    figure.add_bar(
        x=places,
        y=[layer["sqnr"] for layer in layers],
        text=[f"{name}, {layer['bits']} bits" for name, layer in zip(names, layers)],
        textposition="none",
        name="output against full precision",
        marker={"color": colour(method), "opacity": [1.0 if layer["name"] == chosen else 0.45 for layer in layers]},
        hovertemplate="layer %{x}: %{text}<br>%{y:.1f} dB<extra></extra>",
    )
    for name, symbol, values in (
        ("rounding its weights alone", "line-ew-open", [layer["weight_sqnr"] for layer in layers]),
        ("rounding its input alone", "circle-open", [layer["input"] and layer["input"]["sqnr"] for layer in layers]),
    ):
        figure.add_scatter(
            x=places,
            y=values,
            name=name,
            mode="markers",
            marker={"symbol": symbol, "size": 10 if symbol == "line-ew-open" else 7, "color": FULL_PRECISION, "line": {"width": 2}},
            hovertemplate="%{y:.1f} dB<extra>%{fullData.name}</extra>",
        )
    figure.update_xaxes(title="layer, in the order of the network", nticks=12, tickangle=0, range=[0.4, len(layers) + 0.6])
    figure.update_yaxes(title="dB: higher is closer")
    laid_out(figure, "What each layer keeps of its signal", 340, dragmode=False, barmode="overlay")
    return figure.update_layout(legend_y=-0.3)  # below the title of the axis also where the window is narrow


def histogram_figure(grid: Mapping[str, Any], bits: int, title: str, method: str, logarithmic: bool = False) -> go.Figure:
    """Values on their grid: a line for each level, dashed where values begin to be clipped. grid: "weight" or "input" of a layer."""
    histogram = grid["histogram"]
    counts = np.array(histogram["counts"], np.float64)
    width = histogram["width"]
    middle = histogram["start"] + width * (np.arange(len(counts)) + 0.5)
    share = 100 * counts / max(1.0, counts.sum())
    figure = go.Figure()
    figure.add_bar(
        x=middle.astype(np.float32),
        y=share.astype(np.float32),
        width=width,
        marker={"color": colour(method), "line": {"width": 0}},
        opacity=0.75,
        hovertemplate="at %{x:.2f}: %{y:.3g} % of the values<extra></extra>",
        showlegend=False,
    )
    levels = grid["highest"] - grid["lowest"] + 1
    if levels <= _LINES:
        for level in range(grid["lowest"], grid["highest"] + 1):
            figure.add_vline(x=level, line={"color": FULL_PRECISION, "width": 1}, opacity=0.35, layer="above")
    for end in (grid["lowest"] - 0.5, grid["highest"] + 0.5):
        figure.add_vline(x=end, line={"color": FULL_PRECISION, "width": 1.5, "dash": "dash"})
    zeros = sorted(set(grid["zero_point"]))
    figure.add_annotation(
        x=sum(zeros) / len(zeros), y=1, yref="paper", yanchor="bottom", showarrow=False, font={"size": 11},
        text="zero" if len(zeros) == 1 else f"zeros of the channels: {zeros[0]} to {zeros[-1]}",
    )  # fmt: skip
    figure.update_xaxes(
        title=f"level, {bits} bits", dtick=max(1, levels // 16), showgrid=False, zeroline=False,
        range=[float(middle[0] - width / 2), float(middle[-1] + width / 2)],
    )  # fmt: skip
    figure.update_yaxes(title="values, %", type="log" if logarithmic else "linear")
    return laid_out(figure, plotly(title), 300, bargap=0)
