"""Records and frames of a generation to figures. Pure: no streamlit in here.

A figure over iterations lists in `layout.meta["cursor"]` the axes of its panels, where the iteration player draws its cursor. One of
several panels has in `layout.meta["narrow"]` what differs in a narrow window.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from core.reporting import Frame, RunningStatistics
from core.runs.records import Record
from dashboard.charts.style import (
    FULL_PRECISION,
    Figure,
    by_series,
    color,
    dash,
    legend_rows,
    log_axis,
    numbers,
    steps_of,
    thinned,
    title_of,
)
from dashboard.names import knob_symbol
from dashboard.tables.terms import DEFAULT_TERMS, Term, recorded_parts
from dashboard.text import plotly as plotly_text

_POINTS = 300  # of a curve of the loss: three panels share the width of the page
_POINTS_SMALL = 100  # of a layer's curve
_HEATMAP_COLUMNS = 200
_TITLE, _TICKS, _LEGEND = 26, 24, 34  # pixels above and below each panel, and below all of them for one row of the legend
_WIDE, _NARROW = 900, 340  # pixels of the two windows that legends are laid out for
_SHARED = "#8A8F98"  # a mark that belongs to several methods


@dataclass(frozen=True)
class ChangeMark:
    """The live changes at one step: such as "ε = 0.05, β = 2", and the methods that they were made for."""

    step: int
    text: str
    methods: tuple[str, ...]


def change_marks(changes: Sequence[Mapping[str, Any]]) -> list[ChangeMark]:
    """One mark for each step that has live changes, in order. changes: with "step", "method", "name" and "value"."""
    marks: dict[int, tuple[dict[str, None], dict[str, None]]] = {}
    for change in changes:
        texts, methods = marks.setdefault(change["step"], ({}, {}))
        texts[f"{knob_symbol(change['name'])} = {change['value']:g}"] = None
        methods[change["method"]] = None
    return [ChangeMark(step, ", ".join(texts), tuple(methods)) for step, (texts, methods) in sorted(marks.items())]


def loss_figure(records: Sequence[Record], changes: Sequence[Mapping[str, Any]] = (), terms: Sequence[Term] = DEFAULT_TERMS) -> Figure:
    """The total loss, its terms and the teacher agreement over iterations, a curve for each method; live changes as vertical marks.

    terms: those that the run recorded, see `terms.loss_terms`.
    """
    series = by_series(records, _POINTS)
    parts = recorded_parts([own[-1] for own in series.values()], terms)
    curves = [{name: numbers(r.data.get(part.name, math.nan) for r in own) for name, own in series.items()} for part in parts]
    steps = {name: steps_of(own) for name, own in series.items()}
    headings = [plotly_text(part.heading) for part in parts]
    scales = [
        log_axis(value for values in own.values() for value in values.tolist()) if part.log else {} for part, own in zip(parts, curves)
    ]
    return _small_multiples("loss", steps, curves, headings, scales, change_marks(changes), (3, 1), 150)


def layer_figure(records: Sequence[Record], layers: Sequence[str], changes: Sequence[Mapping[str, Any]] = ()) -> Figure:
    """L_BNS of every layer over iterations, a small panel each, on one scale; live changes as in `loss_figure`."""
    methods = by_series(records, _POINTS_SMALL)
    values = {method: np.array([r.data["layers"] for r in own], np.float32).reshape(len(own), -1) for method, own in methods.items()}
    curves = [{method: own[:, index] for method, own in values.items()} for index in range(len(layers))]
    titles = [f"{index + 1}: {plotly_text(_short(name))}" for index, name in enumerate(layers)]
    steps = {method: steps_of(own) for method, own in methods.items()}
    scales = [log_axis(max(end, 1e-6) for end in heatmap_ends(records))] * len(layers)
    figure = _small_multiples("L_BNS by layer", steps, curves, titles, scales, change_marks(changes), (6, 2), 92)
    for layout in (figure["layout"], figure["layout"]["meta"]["narrow"]):
        for name, axis in layout.items():
            if name.startswith("xaxis"):
                axis |= {"nticks": 3}
    return figure


def _short(name: str, length: int = 24) -> str:
    """The end of a layer's name, which distinguishes it from others."""
    return name if len(name) <= length else f"…{name[1 - length :]}"


def _small_multiples(
    name: str,
    steps: Mapping[str, np.ndarray],
    curves: Sequence[Mapping[str, np.ndarray]],
    titles: Sequence[str],
    scales: Sequence[Mapping[str, Any]],
    marks: Sequence[ChangeMark],
    columns: tuple[int, int],
    height: int,
) -> Figure:
    """A panel for each of `curves` (method -> values at its steps).

    scales: the y axis of each panel, from `log_axis`; empty for a linear one. columns: in a wide and in a narrow window. height: of a
    panel, in pixels.
    """
    traces = [
        {
            "type": "scatter", "mode": "lines", "x": steps[method], "y": values, "name": title_of(method), "legendgroup": method,
            "showlegend": index == 0, "xaxis": f"x{axis_number(index)}", "yaxis": f"y{axis_number(index)}",
            "line": {"color": color(method), "dash": dash(method), "width": 2 if height > 100 else 1.5}, "hovertemplate": "%{y:.4g}",
        }
        for index, own in enumerate(curves)
        for method, values in own.items()
    ]  # fmt: skip
    end = max((int(own[-1]) for own in steps.values() if len(own)), default=1)
    shapes, notes = [], []
    for index in range(len(curves)):
        axes = {"xref": f"x{axis_number(index)}", "yref": f"y{axis_number(index)} domain"}
        for position, mark in enumerate(marks):
            shade = color(mark.methods[0]) if len(mark.methods) == 1 else _SHARED
            line = {"color": shade, "width": 1, "dash": "dot"}
            shapes.append({"type": "line", "x0": mark.step, "x1": mark.step, "y0": 0, "y1": 1, "line": line, **axes})
            # labels of neighbors at different heights, so that they do not cover each other; on the side that has room
            notes.append({
                "x": mark.step, "y": 1 - 0.16 * (position % 4), "text": plotly_text(mark.text), "showarrow": False, "yanchor": "top",
                "xanchor": "left" if mark.step < 0.7 * end else "right", "font": {"size": 11 if height > 100 else 9}, **axes,
            })  # fmt: skip
    logarithmic = [bool(scale) for scale in scales]
    layout: dict[str, Any] = {
        "shapes": shapes,
        "hovermode": "x unified",
        "uirevision": name,
        "legend": {"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom"},
        **panel_grid(titles, columns[0], height, logarithmic, notes, legend_rows(map(title_of, steps), _WIDE)),
    }
    narrow = panel_grid(titles, columns[1], height, logarithmic, notes, legend_rows(map(title_of, steps), _NARROW))
    for index, scale in enumerate(scales):
        layout[f"yaxis{axis_number(index)}"] |= scale
        narrow[f"yaxis{axis_number(index)}"] |= scale
    cursor = [[f"x{axis_number(index)}", f"y{axis_number(index)}"] for index in range(len(curves))]
    layout["meta"] = {"name": name, "cursor": cursor, "narrow": narrow}
    return {"data": traces, "layout": layout}


def axis_number(index: int) -> str:
    return "" if index == 0 else str(index + 1)


def panel_grid(
    titles: Sequence[str], columns: int, height: int, logarithmic: Sequence[bool], notes: Sequence[dict], legend: int = 0
) -> dict[str, Any]:
    """The part of a layout that depends on the number of columns: height, axes of the panels, titles above them, and the notes.

    legend: rows of it, if there is one. It is below the panels, and above them where they would push it out of sight.
    """
    room = _LEGEND + 20 * max(legend - 1, 0)
    is_above = bool(legend) and columns == 1 and len(titles) > 1
    rows = -(-len(titles) // columns)
    row = _TITLE + height + _TICKS
    total = rows * row
    gap = 0.05 if columns < 4 else 0.03
    width = (1 - (columns - 1) * gap) / columns if columns > 1 else 1.0
    layout: dict[str, Any] = {
        "height": total + room,
        "margin": {"l": 40, "r": 8, "t": room if is_above else 0, "b": 0 if is_above else room},
    }
    if is_above:
        layout["legend"] = {"orientation": "h", "x": 0, "y": 1, "yref": "container", "yanchor": "top"}
    headings = []
    for index, title in enumerate(titles):
        left = index % columns * (width + gap)
        top = 1 - (index // columns * row + _TITLE) / total
        number = axis_number(index)
        layout[f"xaxis{number}"] = {"domain": [left, min(left + width, 1.0)], "anchor": f"y{number}", "nticks": 5}
        layout[f"yaxis{number}"] = {
            "domain": [max(top - height / total, 0.0), top], "anchor": f"x{number}", "type": "log" if logarithmic[index] else "linear",
            "nticks": 5, "exponentformat": "power",
        }  # fmt: skip
        headings.append({
            "text": f"<b>{title}</b>", "x": left, "y": top, "xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "bottom",
            "showarrow": False, "font": {"size": 13 if height > 100 else 11},
        })  # fmt: skip
    layout["annotations"] = [*headings, *notes]
    return layout


def heatmap_columns(count: int) -> int:
    """Heatmaps beside each other in a wide window: all of up to 3, else two rows or more of at most 4."""
    return count if count <= 3 else min(4, -(-count // 2))


def layer_heatmaps(
    records: Sequence[Record], methods: Sequence[str], layers: Sequence[str], changes: Sequence[Mapping[str, Any]] = ()
) -> Figure:
    """L_BNS of every layer over iterations, a heatmap for each method on one logarithmic color scale; live changes as marks."""
    low, high = (math.log10(max(end, 1e-6)) for end in heatmap_ends(records))
    ticks = [t for t in range(-6, 7) if low - 0.5 <= t <= high + 0.5]
    traces: list[dict[str, Any]] = []
    for index, method in enumerate(methods):
        own = thinned([r for r in records if r.series == method], _HEATMAP_COLUMNS)
        values = np.maximum(np.array([r.data["layers"] for r in own], np.float32), 1e-6).reshape(len(own), -1).T
        traces.append({
            "type": "heatmap", "x": steps_of(own), "y": np.arange(1, len(layers) + 1, dtype=np.int32), "z": np.log10(values),
            "customdata": values, "coloraxis": "coloraxis", "xaxis": f"x{axis_number(index)}", "yaxis": f"y{axis_number(index)}",
            "hovertemplate": "layer %{y}<br>iteration %{x}<br>L_BNS %{customdata:.3g}<extra></extra>",
        })  # fmt: skip
    shapes, notes = _heatmap_marks(methods, change_marks(changes))
    height = max(260, 15 * len(layers))
    titles = [title_of(method) for method in methods]
    wide, narrow = (_heatmap_grid(titles, columns, height, notes) for columns in (heatmap_columns(len(methods)), 1))
    scale = {
        "colorscale": "Cividis", "cmin": low, "cmax": high,
        "colorbar": {"title": {"text": "L_BNS"}, "tickvals": ticks, "ticktext": [f"{10.0**t:g}" for t in ticks], "thickness": 10},
    }  # fmt: skip
    cursor = [[f"x{axis_number(index)}", f"y{axis_number(index)}"] for index in range(len(methods))]
    meta = {"name": "L_BNS by layer and iteration", "cursor": cursor, "narrow": narrow}
    return {"data": traces, "layout": {**wide, "shapes": shapes, "coloraxis": scale, "uirevision": "heatmap", "meta": meta}}


def _heatmap_marks(methods: Sequence[str], marks: Sequence[ChangeMark]) -> tuple[list[dict], list[dict]]:
    """Lines at the changes of each method, and their labels."""
    shapes, notes = [], []
    line = {"color": "#FFFFFF", "width": 1.5, "dash": "dot"}
    for index, method in enumerate(methods):
        axes = {"xref": f"x{axis_number(index)}", "yref": f"y{axis_number(index)} domain"}
        for position, mark in enumerate(mark for mark in marks if method in mark.methods):
            shapes.append({"type": "line", "x0": mark.step, "x1": mark.step, "y0": 0, "y1": 1, "line": line, **axes})
            notes.append({
                "x": mark.step, "y": 1 - 0.08 * (position % 4), "text": plotly_text(mark.text), "showarrow": False, "yanchor": "top",
                "xanchor": "left", "font": {"size": 11, "color": "#FFFFFF"}, "bgcolor": "rgba(0,0,0,0.55)", **axes,
            })  # fmt: skip
    return shapes, notes


def _heatmap_grid(titles: Sequence[str], columns: int, height: int, notes: Sequence[dict]) -> dict[str, Any]:
    layout = panel_grid(titles, columns, height, [False] * len(titles), notes)
    layout["margin"]["r"] = 60
    for index in range(len(titles)):
        layout[f"yaxis{axis_number(index)}"] |= {"autorange": "reversed", "nticks": 12}
        if index + columns >= len(titles):  # no panel below it
            layout[f"xaxis{axis_number(index)}"] |= {"title": {"text": "iteration"}}
    layout[f"yaxis{axis_number(0)}"] |= {"title": {"text": "layer"}}
    return layout


def heatmap_ends(records: Sequence[Record]) -> tuple[float, float]:
    """Lowest and highest L_BNS of a layer in all methods; approximate for a long run."""
    values = [value for r in thinned(list(records), 400) for value in r.data["layers"] if value > 0]
    return (min(values), max(values)) if values else (1e-3, 1.0)


def layer_bars(records: Mapping[str, Record], layers: Sequence[str], chosen: int) -> Figure:
    """L_BNS of every layer at one iteration (method -> its record), a bar for each method; the chosen layer is highlighted.

    customdata of each bar is the layer's index.
    """
    traces = [
        {
            "type": "bar",
            "x": np.arange(1, len(layers) + 1, dtype=np.int32),
            "y": numbers(record.data["layers"]),
            "name": title_of(method),
            "customdata": list(range(len(layers))),
            "marker": {"color": color(method)},
            "text": [plotly_text(name) for name in layers],
            "textposition": "none",
            "hovertemplate": "layer %{x}: %{text}<br>L_BNS %{y:.4g}<br>click for its channels",
        }
        for method, record in records.items()
    ]  # fmt: skip
    layout = {
        "height": 250, "margin": {"l": 40, "r": 8, "t": 8, "b": 62}, "bargap": 0.25, "uirevision": "bars",
        "xaxis": {"title": {"text": "layer"}, "nticks": 25}, "yaxis": {"title": {"text": "L_BNS"}, "rangemode": "tozero"},
        "legend": {"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom"},
        "shapes": [{
            "type": "rect", "xref": "x", "yref": "paper", "x0": chosen + 0.5, "x1": chosen + 1.5, "y0": 0, "y1": 1, "layer": "below",
            "line": {"width": 0}, "fillcolor": "rgba(128,128,128,0.25)",
        }],
        "meta": {"name": "L_BNS of every layer at the shown iteration"},
    }  # fmt: skip
    return {"data": traces, "layout": layout}


def channel_figure(frames: Mapping[str, Frame], running: RunningStatistics, layer: int) -> Figure | None:
    """Means and variances of a layer's channels: batch statistics over running statistics, on the diagonal where they match.

    frames: method -> its frame. None if the frames have no statistics, as in runs of earlier versions.
    """
    start = sum(running.channels[:layer])
    own = slice(start, start + running.channels[layer])
    traces: list[dict[str, Any]] = []
    axes: dict[str, Any] = {}
    titles = ["means of the channels", "variances of the channels"]
    for index, kind in enumerate(("means", "variances")):
        batches = {method: getattr(frame, kind)[own] for method, frame in frames.items() if getattr(frame, kind) is not None}
        if not batches:
            return None
        panel, logarithmic = _channel_panel(getattr(running, kind)[own], batches, index)
        traces += panel
        shown = log_axis(float(value) for trace in panel for value in trace["y"]) if logarithmic and kind == "variances" else {}
        for axis, title in (("x", "running"), ("y", "batch")):
            axes[f"{axis}axis{axis_number(index)}"] = {"title": {"text": title}, **shown}
    names = ["batch = running", *map(title_of, frames)]
    grids = []
    for columns, window in ((2, _WIDE), (1, _NARROW)):
        grid = panel_grid(titles, columns, 260, [False, False], [], legend_rows(names, window))
        grid["margin"] |= {"l": 56, "b": grid["margin"]["b"] + 26}
        grid["height"] += 26
        for name, axis in axes.items():
            grid[name] |= axis
        grids.append(grid)
    meta = {"name": f"channels of layer {layer + 1}, batch against running statistics", "narrow": grids[1]}
    legend = {"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom"}
    return {"data": traces, "layout": {**grids[0], "legend": legend, "uirevision": f"channels {layer}", "meta": meta}}


def _channel_panel(known: np.ndarray, batches: Mapping[str, np.ndarray], index: int) -> tuple[list[dict[str, Any]], bool]:
    """The diagonal and the points of each method, and whether all values are positive. known, and each of batches: `(channels,)`."""
    everything = np.concatenate([known, *batches.values()])
    everything = everything[np.isfinite(everything)]
    low, high = (float(everything.min()), float(everything.max())) if len(everything) else (0.0, 1.0)
    axes = {"xaxis": f"x{axis_number(index)}", "yaxis": f"y{axis_number(index)}"}
    traces: list[dict[str, Any]] = [{
        "type": "scatter", "mode": "lines", "x": [low, high], "y": [low, high], "name": "batch = running", "hoverinfo": "skip",
        "showlegend": index == 0, "legendgroup": "match", "line": {"color": FULL_PRECISION, "width": 1, "dash": "dash"}, **axes,
    }]  # fmt: skip
    channels = np.arange(1, len(known) + 1, dtype=np.int32)
    for method, values in batches.items():
        traces.append({
            "type": "scatter", "mode": "markers", "x": known, "y": values, "customdata": channels, "name": title_of(method),
            "showlegend": index == 0, "legendgroup": method, "marker": {"color": color(method), "size": 7, "opacity": 0.75},
            "hovertemplate": "channel %{customdata}<br>running %{x:.4g}<br>batch %{y:.4g}", **axes,
        })  # fmt: skip
    return traces, bool(len(everything)) and low > 0
