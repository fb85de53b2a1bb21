"""Records of a training, and its effect on each layer, to figures. Pure: no streamlit in here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from core.runs.records import Record
from dashboard.charts.style import (
    DASHES,
    FULL_PRECISION,
    NEUTRAL,
    POINTS,
    Figure,
    by_series,
    color,
    figure,
    horizontal,
    log_axis,
    numbers,
    steps_of,
    thinned,
    title_of,
)
from dashboard.text import plotly

PARTS = {"total": "Loss", "agreement": "Agreement with the teacher"}
_TITLES = {"total": "loss (smoothed)", "agreement": "agreement with the teacher in training, % (smoothed)"}
_MOST_LINES = 64  # of a grid of levels: more of them are a gray area


def training_figure(records: Sequence[Record], part: str) -> Figure:
    """Loss or agreement with the teacher over training steps: color is the method of the images, dash the bit width."""
    traces = []
    series = by_series(records)
    for name, own in series.items():
        points = thinned(list(zip(own, smoothed([r.data[part] for r in own]))), POINTS)
        traces.append({
            "type": "scatter", "mode": "lines", "x": steps_of([record for record, _ in points]),
            "y": numbers(value for _, value in points), "name": title_of(name), "line": _line(name, series),
        })  # fmt: skip
    axis = log_axis(float(value) for trace in traces for value in trace["y"]) if part == "total" else {"nticks": 7}
    return figure(traces, _TITLES[part], 340, xaxis={"title": {"text": "training step"}}, yaxis=axis)


def accuracy_during_training(records: Sequence[Record], full_precision: float | None) -> Figure:
    """Test accuracy over training steps with its standard error. full_precision: top-1 in percent on all images; None if unknown."""
    traces = []
    series = by_series(records)
    for name, own in series.items():
        errors = numbers(r.data["standard_error"] for r in own)
        traces.append({
            "type": "scatter", "mode": "lines+markers", "x": steps_of(own), "y": numbers(r.data["top1"] for r in own),
            "customdata": errors, "name": title_of(name), "line": _line(name, series), "marker": {"size": 7},
            "error_y": {"type": "data", "array": errors, "thickness": 1, "width": 0}, "cliponaxis": False,  # step 0 is on the axis
            "hovertemplate": "step %{x}: %{y:.1f} ± %{customdata:.1f} %<extra>%{fullData.name}</extra>",
        })  # fmt: skip
    shapes, notes = [], []
    if full_precision is not None:
        shapes.append(horizontal(full_precision, FULL_PRECISION, "dash"))
        notes.append({
            "x": 1, "xref": "paper", "xanchor": "right", "y": full_precision, "yanchor": "bottom", "showarrow": False,
            "text": f"full precision {full_precision:.1f} %",
        })  # fmt: skip
    axis = {"title": {"text": "training step"}, "rangemode": "tozero"}
    return figure(traces, "test accuracy, %", 340, shapes=shapes, annotations=notes, xaxis=axis)


def _line(series: str, all_series: Mapping[str, Any]) -> dict[str, Any]:
    widths = sorted({name.rpartition(" ")[2] for name in all_series})
    return {"color": color(series), "width": 2, "dash": DASHES[widths.index(series.rpartition(" ")[2]) % len(DASHES)]}


def smoothed(values: Sequence[float], weight: float = 0.9) -> list[float]:
    """Exponential moving average with the bias correction of Adam's moments."""
    smoothed, average = [], 0.0
    for index, value in enumerate(values):
        average = weight * average + (1 - weight) * value
        smoothed.append(average / (1 - weight ** (index + 1)))
    return smoothed


def error_figure(layers: Sequence[Mapping[str, Any]], method: str, chosen: str) -> Figure:
    """A bar for each layer in the order of the network: its signal-to-quantization-noise ratio in dB. The chosen layer is opaque.

    Marks show the ratio with only its weights rounded, and with only its input rounded. layers: from core.quantization.analysis.
    """
    positions = list(range(1, len(layers) + 1))
    names = [plotly(layer["name"]) for layer in layers]
    traces: list[dict[str, Any]] = [{
        "type": "bar", "x": positions, "y": [layer["sqnr"] for layer in layers], "textposition": "none",
        "text": [f"{name}, {layer['bits']} bits" for name, layer in zip(names, layers)], "name": "output against full precision",
        "marker": {"color": color(method), "opacity": [1.0 if layer["name"] == chosen else 0.45 for layer in layers]},
        "hovertemplate": "layer %{x}: %{text}<br>%{y:.1f} dB<extra></extra>",
    }]  # fmt: skip
    for name, symbol, size, values in (
        ("only its weights rounded", "line-ew-open", 10, [layer["weight_sqnr"] for layer in layers]),
        ("only its input rounded", "circle-open", 7, [layer["input"] and layer["input"]["sqnr"] for layer in layers]),
    ):
        traces.append({
            "type": "scatter", "mode": "markers", "x": positions, "y": values, "name": name,
            "marker": {"symbol": symbol, "size": size, "color": FULL_PRECISION, "line": {"width": 2}},
            "hovertemplate": "%{y:.1f} dB<extra>%{fullData.name}</extra>",
        })  # fmt: skip
    axis = {"title": {"text": "layer, in the order of the network"}, "nticks": 12, "tickangle": 0, "range": [0.4, len(layers) + 0.6]}
    return figure(
        traces, "Signal-to-quantization-noise ratio of each layer", 340, dragmode=False, barmode="overlay", xaxis=axis,
        yaxis={"title": {"text": "dB: higher is closer"}},
        legend={"orientation": "h", "x": 0, "y": -0.3},  # below the title of the axis also in a narrow window
    )  # fmt: skip


def sensitivity_figure(layers: Sequence[Mapping[str, Any]], method: str, chosen: str, bits: Mapping[str, int]) -> Figure:
    """A bar for each layer: the error of the scores in percent when only this layer is quantized, 100 * 10^(-dB / 20). A dot where its
    bits were changed: the error expected with them, of which each bit more halves the step. layers: with "score_sqnr". bits: by name.
    """
    positions = list(range(1, len(layers) + 1))
    errors = [0.0 if layer["score_sqnr"] is None else 100 * 10 ** (-layer["score_sqnr"] / 20) for layer in layers]
    changed = [(place, error * 2.0 ** (layer["bits"] - bits[layer["name"]]), bits[layer["name"]])
               for place, error, layer in zip(positions, errors, layers) if bits[layer["name"]] != layer["bits"]]  # fmt: skip
    traces: list[dict[str, Any]] = [{
        "type": "bar", "x": positions, "y": errors, "textposition": "none", "name": "measured",
        "text": [f"{plotly(layer['name'])}, {layer['bits']} bits" for layer in layers],
        "marker": {"color": color(method), "opacity": [1.0 if layer["name"] == chosen else 0.45 for layer in layers]},
        "hovertemplate": "layer %{x}: %{text}<br>%{y:.2g} %<extra></extra>",
    }, {
        "type": "scatter", "mode": "markers", "x": [place for place, *_ in changed], "y": [error for _, error, _ in changed],
        "text": [f"{own} bits" for *_, own in changed], "name": "expected with the chosen bits", "customdata": [p - 1 for p, *_ in changed],
        "marker": {"size": 11, "color": FULL_PRECISION, "line": {"width": 2, "color": "white"}},
        "hovertemplate": "layer %{x} with %{text}: about %{y:.2g} %<extra></extra>",
    }]  # fmt: skip
    axis = {"title": {"text": "layer, in the order of the network"}, "nticks": 12, "tickangle": 0, "range": [0.4, len(layers) + 0.6]}
    return figure(
        traces, "Sensitivity: error of the scores with only this layer quantized", 300, dragmode=False, xaxis=axis,
        yaxis={"title": {"text": "% of the scores"}, "rangemode": "tozero"}, legend={"orientation": "h", "x": 0, "y": -0.35},
    )  # fmt: skip


def size_figure(curve: Sequence[Mapping[str, Any]], method: str, size: int, error: float) -> Figure:
    """The smallest error of the scores within each size, and a mark where the network is. curve: from core.quantization.allocation."""
    sizes, errors = [one["bytes"] / 1000 for one in curve], numbers(one["error"] for one in curve)
    traces: list[dict[str, Any]] = [{
        "type": "scatter", "mode": "lines+markers", "x": sizes, "y": errors,
        "name": "best bits of each layer", "line": {"color": color(method)}, "marker": {"size": 7},
        "text": [f"{sum(one['bits']) / len(one['bits']):.1f} bits on average over layers" for one in curve],
        "hovertemplate": "%{x:,.0f} kB: %{y:.2g}<br>%{text}<extra></extra>",
    }, {
        "type": "scatter", "mode": "markers", "x": [size / 1000], "y": [error], "name": "this network",
        "customdata": [max(0, sum(one["bytes"] <= size for one in curve) - 1)],
        "marker": {"size": 12, "symbol": "diamond", "color": FULL_PRECISION}, "hovertemplate": "%{x:,.1f} kB: %{y:.2g}<extra></extra>",
    }]  # fmt: skip
    return figure(
        traces, "Error of the scores within a size", 300, dragmode=False,
        xaxis={"title": {"text": "packed size of the network, kB"}},
        yaxis={"title": {"text": "squared error"}, **log_axis([error, *map(float, errors)])},
        legend={"orientation": "h", "x": 0, "y": -0.35},
    )  # fmt: skip


def histogram_figure(
    grid: Mapping[str, Any], bits: int, title: str, method: str, logarithmic: bool = False, calibrated: Mapping[str, Any] | None = None
) -> Figure:
    """Values on their quantization grid: a line for each level, dashed where clipping begins.

    grid: "weight" or "input" of a layer. calibrated: the same before the training, as an outline over the bars.
    """
    middle, width, share = _shares(grid)
    bars = {
        "type": "bar", "x": middle.astype(np.float32), "y": share.astype(np.float32), "width": width, "opacity": 0.75,
        "name": "trained", "showlegend": calibrated is not None,
        "marker": {"color": color(method), "line": {"width": 0}}, "hovertemplate": "at %{x:.2f}: %{y:.3g} % of the values<extra></extra>",
    }  # fmt: skip
    traces, heights = [bars], share
    if calibrated is not None:
        middles, wide, before = _shares(calibrated)
        heights = np.append(heights, before)
        traces.append({
            "type": "scatter", "mode": "lines", "line": {"shape": "hv", "color": NEUTRAL, "width": 2}, "name": "calibrated",
            "x": np.append(middles - wide / 2, middles[-1] + wide / 2).astype(np.float32),
            "y": np.append(before, before[-1]).astype(np.float32),
            "hovertemplate": "calibrated, from %{x:.2f}: %{y:.3g} % of the values<extra></extra>",
        })  # fmt: skip
    levels = grid["highest"] - grid["lowest"] + 1
    shapes: list[dict[str, Any]] = []
    if levels <= _MOST_LINES:
        shapes += [_grid_line(level, 1, opacity=0.35, layer="above") for level in range(grid["lowest"], grid["highest"] + 1)]
    shapes += [_grid_line(end, 1.5, "dash") for end in (grid["lowest"] - 0.5, grid["highest"] + 0.5)]
    zeros = sorted(set(grid["zero_point"]))
    note = {
        "x": sum(zeros) / len(zeros), "y": 1, "yref": "paper", "yanchor": "bottom", "showarrow": False, "font": {"size": 11},
        "text": "zero" if len(zeros) == 1 else f"zeros of the channels: {zeros[0]} to {zeros[-1]}",
    }  # fmt: skip
    xaxis = {
        "title": {"text": f"level, {bits} bits"}, "dtick": max(1, levels // 16), "showgrid": False, "zeroline": False,
        "range": [float(middle[0] - width / 2), float(middle[-1] + width / 2)],
    }  # fmt: skip
    yaxis = {"title": {"text": "values, %"}, **(log_axis(heights.tolist()) if logarithmic else {"type": "linear"})}
    margin = {"l": 10, "r": 10, "t": 48, "b": 10}  # a line for the note between title and bars
    return figure(traces, plotly(title), 310, bargap=0, shapes=shapes, annotations=[note], xaxis=xaxis, yaxis=yaxis, margin=margin)


def _shares(grid: Mapping[str, Any]) -> tuple[np.ndarray, float, np.ndarray]:
    """Middle of each bin of a histogram and its width, in levels, and the share of the values in it, in percent."""
    histogram = grid["histogram"]
    counts, width = np.array(histogram["counts"], np.float64), float(histogram["width"])
    return histogram["start"] + width * (np.arange(len(counts)) + 0.5), width, 100 * counts / max(1.0, counts.sum())


def _grid_line(x: float, width: float, dash: str = "solid", **more: Any) -> dict[str, Any]:
    line = {"color": FULL_PRECISION, "width": width, "dash": dash}
    return {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "y domain", "line": line, **more}
