"""Records and frames of a generation to plotly figures. Pure: no streamlit in here.

A figure over iterations lists in `layout.meta["cursor"]` the axes of its parts, where the iteration player draws its cursor. One of many
parts has in `layout.meta["narrow"]` what is different in a narrow window.

Figures are plain dictionaries as plotly.js takes them (`go.Figure(figure)` where one is needed): they are made every few seconds while a
job wants the same cores, and go.Figure takes 60 ms to check 40 curves one value at a time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from core.reporting import Frame, RunningStatistics
from core.runs.records import Record
from dashboard.charts.style import FULL_PRECISION, Figure, by_series, colour, numbers, steps_of, thinned, title_of
from dashboard.text import plotly as plotly_text

PARTS = {
    "total": "total loss",
    "bns": "L_BNS (batch-norm statistics)",
    "ce": "L_CE (cross entropy)",
    "tv": "R_TV (total variation)",
    "l2": "R_l2 (l2 norm)",
    "agreement": "teacher agreement (%)",
}
SYMBOLS = {"epsilon": "ε", "mu": "μ", "lr": "lr", "alpha_tv": "α_TV", "alpha_l2": "α_l2", "beta": "β"}
_POINTS = 300  # of a curve of the loss: three parts share the width of the page
_POINTS_SMALL = 100  # of a layer's curve
_COLUMNS = 200  # of a heatmap
_TITLE, _TICKS, _LEGEND = 26, 24, 34  # pixels above and below each part, and below all of them
_SHARED = "#8A8F98"  # a mark that belongs to several methods


def mark_texts(changes: Sequence[Mapping[str, Any]]) -> dict[int, tuple[str, list[str]]]:
    """Step -> what was changed there, such as "ε = 0.05, β = 2", and the methods that it was changed for."""
    marks: dict[int, tuple[list[str], list[str]]] = {}
    for change in changes:
        texts, methods = marks.setdefault(change["step"], ([], []))
        text = f"{SYMBOLS.get(change['name'], change['name'])} = {change['value']:g}"
        if text not in texts:
            texts.append(text)
        if change["method"] not in methods:
            methods.append(change["method"])
    return {step: (", ".join(texts), methods) for step, (texts, methods) in sorted(marks.items())}


def loss_figure(records: Sequence[Record], changes: Sequence[Mapping[str, Any]] = ()) -> Figure:
    """The loss and each of its parts over iterations, a curve for each optimizer; live changes as vertical marks with their value."""
    methods = by_series(records, _POINTS)
    curves = [{method: numbers(r.data[part] for r in own) for method, own in methods.items()} for part in PARTS]
    steps = {method: steps_of(own) for method, own in methods.items()}
    logarithmic = [part != "agreement" for part in PARTS]
    return _small_multiples("loss", steps, curves, list(PARTS.values()), logarithmic, mark_texts(changes), (3, 1), 150)


def layer_figure(records: Sequence[Record], layers: Sequence[str], changes: Sequence[Mapping[str, Any]] = ()) -> Figure:
    """L_BNS of every layer over iterations, a small chart each, on one scale; live changes as in `loss_figure`."""
    methods = by_series(records, _POINTS_SMALL)
    values = {method: np.array([r.data["layers"] for r in own], np.float32).reshape(len(own), -1) for method, own in methods.items()}
    curves = [{method: own[:, index] for method, own in values.items()} for index in range(len(layers))]
    titles = [f"{index + 1}: {plotly_text(_short(name))}" for index, name in enumerate(layers)]
    steps = {method: steps_of(own) for method, own in methods.items()}
    figure = _small_multiples("L_BNS by layer", steps, curves, titles, [True] * len(layers), mark_texts(changes), (6, 2), 92)
    low, high = heatmap_ends(records)
    scale = [math.log10(max(low, 1e-6)) - 0.1, math.log10(max(high, 1e-6)) + 0.1]
    for layout in (figure["layout"], figure["layout"]["meta"]["narrow"]):
        for name, axis in layout.items():
            if name.startswith("yaxis"):
                axis |= {"range": scale, "nticks": 3}
            elif name.startswith("xaxis"):
                axis |= {"nticks": 3}
    return figure


def _short(name: str, length: int = 24) -> str:
    """The end of a layer's name, which tells it from others."""
    return name if len(name) <= length else f"…{name[1 - length :]}"


def _small_multiples(
    name: str,
    steps: Mapping[str, np.ndarray],
    curves: Sequence[Mapping[str, np.ndarray]],
    titles: Sequence[str],
    logarithmic: Sequence[bool],
    marks: Mapping[int, tuple[str, list[str]]],
    columns: tuple[int, int],
    height: int,
) -> Figure:
    """A part for each of `curves` (method -> values at its steps). columns: in a wide and a narrow window; height: of a part, in pixels.

    Made of plain dictionaries: plotly takes a fifth of a second to add 40 curves to 20 parts one by one.
    """
    traces = [
        {
            "type": "scatter", "mode": "lines", "x": steps[method], "y": values, "name": title_of(method), "legendgroup": method,
            "showlegend": index == 0, "xaxis": f"x{_number(index)}", "yaxis": f"y{_number(index)}",
            "line": {"color": colour(method), "width": 2 if height > 100 else 1.5}, "hovertemplate": "%{y:.4g}",
        }
        for index, own in enumerate(curves)
        for method, values in own.items()
    ]  # fmt: skip
    end = max((int(own[-1]) for own in steps.values() if len(own)), default=1)
    shapes, notes = [], []
    for index in range(len(curves)):
        axes = {"xref": f"x{_number(index)}", "yref": f"y{_number(index)} domain"}
        for position, (step, (text, methods)) in enumerate(marks.items()):
            line = colour(methods[0]) if len(methods) == 1 else _SHARED
            shapes.append(
                {"type": "line", "x0": step, "x1": step, "y0": 0, "y1": 1, "line": {"color": line, "width": 1, "dash": "dot"}, **axes}
            )
            # neighbouring labels on different heights, so that they do not cover each other; on the side that has room
            notes.append({
                "x": step, "y": 1 - 0.16 * (position % 4), "text": plotly_text(text), "showarrow": False, "yanchor": "top",
                "xanchor": "left" if step < 0.7 * end else "right", "font": {"size": 11 if height > 100 else 9}, **axes,
            })  # fmt: skip
    layout: dict[str, Any] = {
        "shapes": shapes,
        "hovermode": "x unified",
        "uirevision": name,
        "legend": {"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom"},
        **_grid(titles, columns[0], height, logarithmic, notes),
    }
    narrow = _grid(titles, columns[1], height, logarithmic, notes)
    cursor = [[f"x{_number(index)}", f"y{_number(index)}"] for index in range(len(curves))]
    layout["meta"] = {"name": name, "cursor": cursor, "narrow": narrow}
    return {"data": traces, "layout": layout}


def _number(index: int) -> str:
    return "" if index == 0 else str(index + 1)


def _grid(titles: Sequence[str], columns: int, height: int, logarithmic: Sequence[bool], notes: Sequence[dict]) -> dict[str, Any]:
    """The part of a layout that depends on the number of columns: height, axes in their places, titles above them, and the notes."""
    rows = -(-len(titles) // columns)
    row = _TITLE + height + _TICKS
    total = rows * row
    gap = 0.05 if columns < 4 else 0.03
    width = (1 - (columns - 1) * gap) / columns if columns > 1 else 1.0
    layout: dict[str, Any] = {"height": total + _LEGEND, "margin": {"l": 40, "r": 8, "t": 0, "b": _LEGEND}}
    headings = []
    for index, title in enumerate(titles):
        left = index % columns * (width + gap)
        top = 1 - (index // columns * row + _TITLE) / total
        number = _number(index)
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


def layer_heatmaps(
    records: Sequence[Record], methods: Sequence[str], layers: Sequence[str], changes: Sequence[Mapping[str, Any]] = ()
) -> Figure:
    """L_BNS of every layer over iterations for each optimizer side by side, on one logarithmic scale of colours; changes as marks."""
    low, high = (math.log10(max(end, 1e-6)) for end in heatmap_ends(records))
    ticks = [t for t in range(-6, 7) if low - 0.5 <= t <= high + 0.5]
    traces: list[dict[str, Any]] = []
    for index, method in enumerate(methods):
        own = thinned([r for r in records if r.series == method], _COLUMNS)
        values = np.maximum(np.array([r.data["layers"] for r in own], np.float32), 1e-6).reshape(len(own), -1).T
        traces.append({
            "type": "heatmap", "x": steps_of(own), "y": np.arange(1, len(layers) + 1, dtype=np.int32), "z": np.log10(values),
            "customdata": values, "coloraxis": "coloraxis", "xaxis": f"x{_number(index)}", "yaxis": f"y{_number(index)}",
            "hovertemplate": "layer %{y}<br>iteration %{x}<br>L_BNS %{customdata:.3g}<extra></extra>",
        })  # fmt: skip
    marks = mark_texts(changes)
    shapes, notes = [], []
    for index, method in enumerate(methods):
        axes = {"xref": f"x{_number(index)}", "yref": f"y{_number(index)} domain"}
        own_marks = {step: text for step, (text, of) in marks.items() if method in of}
        for position, (step, text) in enumerate(own_marks.items()):
            line = {"color": "#FFFFFF", "width": 1.5, "dash": "dot"}
            shapes.append({"type": "line", "x0": step, "x1": step, "y0": 0, "y1": 1, "line": line, **axes})
            notes.append({
                "x": step, "y": 1 - 0.08 * (position % 4), "text": plotly_text(text), "showarrow": False, "yanchor": "top",
                "xanchor": "left", "font": {"size": 11, "color": "#FFFFFF"}, "bgcolor": "rgba(0,0,0,0.55)", **axes,
            })  # fmt: skip
    height = max(260, 15 * len(layers))
    titles = [title_of(method) for method in methods]
    wide, narrow = (_grid(titles, columns, height, [False] * len(methods), notes) for columns in (len(methods), 1))
    for layout in (wide, narrow):
        layout["margin"]["r"] = 60
        for index in range(len(methods)):
            layout[f"yaxis{_number(index)}"] |= {"autorange": "reversed", "nticks": 12}
            layout[f"xaxis{_number(index)}"] |= {"title": {"text": "iteration"}}
        layout[f"yaxis{_number(0)}"] |= {"title": {"text": "layer"}}
    scale = {
        "colorscale": "Cividis", "cmin": low, "cmax": high,
        "colorbar": {"title": {"text": "L_BNS"}, "tickvals": ticks, "ticktext": [f"{10.0**t:g}" for t in ticks], "thickness": 10},
    }  # fmt: skip
    cursor = [[f"x{_number(index)}", f"y{_number(index)}"] for index in range(len(methods))]
    meta = {"name": "L_BNS by layer and iteration", "cursor": cursor, "narrow": narrow}
    return {"data": traces, "layout": {**wide, "shapes": shapes, "coloraxis": scale, "uirevision": "heatmap", "meta": meta}}


def heatmap_ends(records: Sequence[Record]) -> tuple[float, float]:
    """Lowest and highest L_BNS of a layer in all methods, of a long run about."""
    values = [value for r in thinned(list(records), 400) for value in r.data["layers"] if value > 0]
    return (min(values), max(values)) if values else (1e-3, 1.0)


def layer_bars(records: Mapping[str, Record], layers: Sequence[str], chosen: int) -> Figure:
    """L_BNS of every layer at one moment (method -> its record), a bar for each optimizer; the chosen layer stands out.

    customdata of each bar is the layer's index.
    """
    traces = [
        {
            "type": "bar",
            "x": np.arange(1, len(layers) + 1, dtype=np.int32),
            "y": numbers(record.data["layers"]),
            "name": title_of(method),
            "customdata": list(range(len(layers))),
            "marker": {"color": colour(method)},
            "text": [plotly_text(name) for name in layers],
            "textposition": "none",
            "hovertemplate": "layer %{x}: %{text}<br>L_BNS %{y:.4g}<br>press to look into it",
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
    """Means and variances of a layer's channels, those of the batch against those of training, which lie on the diagonal if they match.

    frames: method -> the moment. None where the frames have no statistics, as in runs of an earlier version.
    """
    start = sum(running.channels[:layer])
    own = slice(start, start + running.channels[layer])
    channels = np.arange(1, running.channels[layer] + 1, dtype=np.int32)
    traces: list[dict[str, Any]] = []
    layout: dict[str, Any] = {}
    titles = ["means of the channels", "variances of the channels"]
    for part, kind in enumerate(("means", "variances")):
        known = getattr(running, kind)[own]
        batches = {method: getattr(frame, kind)[own] for method, frame in frames.items() if getattr(frame, kind) is not None}
        if not batches:
            return None
        everything = np.concatenate([known, *batches.values()])
        everything = everything[np.isfinite(everything)]
        logarithmic = kind == "variances" and bool(len(everything)) and everything.min() > 0
        low, high = (float(everything.min()), float(everything.max())) if len(everything) else (0.0, 1.0)
        axes = {"xaxis": f"x{_number(part)}", "yaxis": f"y{_number(part)}"}
        traces.append({
            "type": "scatter", "mode": "lines", "x": [low, high], "y": [low, high], "name": "batch = running", "hoverinfo": "skip",
            "showlegend": part == 0, "legendgroup": "match", "line": {"color": FULL_PRECISION, "width": 1, "dash": "dash"}, **axes,
        })  # fmt: skip
        for method, values in batches.items():
            traces.append({
                "type": "scatter", "mode": "markers", "x": known, "y": values, "customdata": channels, "name": title_of(method),
                "showlegend": part == 0, "legendgroup": method, "marker": {"color": colour(method), "size": 7, "opacity": 0.75},
                "hovertemplate": "channel %{customdata}<br>running %{x:.4g}<br>batch %{y:.4g}", **axes,
            })  # fmt: skip
        for axis, of in ((axes["xaxis"], "running"), (axes["yaxis"], "batch")):
            name = f"{axis[0]}axis{axis[1:]}"
            layout[name] = {"title": {"text": of}, "type": "log" if logarithmic else "linear"}
    wide, narrow = (_grid(titles, columns, 260, [False, False], []) for columns in (2, 1))
    for grid in (wide, narrow):
        grid["margin"] |= {"l": 56, "b": 60}
        grid["height"] += 26
        for name, axis in layout.items():
            grid[name] |= axis
    meta = {"name": f"channels of layer {layer + 1}, batch against running statistics", "narrow": narrow}
    legend = {"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom"}
    return {"data": traces, "layout": {**wide, "legend": legend, "uirevision": f"channels {layer}", "meta": meta}}
