"""The curves of the Studio's one screen: L_BNS in total and by layer, and teacher agreement. Pure: no streamlit in here.

Batches start from new noise, so they are overlaid instead of one behind the other: the shown one bold, others faint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from core.runs.records import Record
from dashboard.charts.generation import ChangeMark, axis_number, panel_grid
from dashboard.charts.style import NEUTRAL, Figure, by_series, color, dash, legend_rows, log_axis, numbers, thinned, title_of
from dashboard.text import plotly as plotly_text

_CURVES = {"bns": "L_BNS", "agreement": "teacher agreement (%)"}
_LOGARITHMIC = [True, False, True]
_POINTS = 200  # of a curve: three panels share the width
_FAINT = 6  # other batches, the nearest to the shown one
_FAINT_POINTS = 60  # of each of them
_HEIGHT = 150  # pixels of a panel
_CLOSER = 8  # pixels by which the legend is closer to the panels than elsewhere
_WIDE, _NARROW = 900, 340  # pixels of the two windows that legends are laid out for


class Shown(NamedTuple):
    """What the figure shows. step: counted over all batches. period: iterations of a batch; 0: a single curve, as of generators."""

    step: int
    period: int
    records: Mapping[str, Record]  # method -> its record of the step

    @property
    def batch(self) -> int:
        """Counted from 0."""
        return (self.step - 1) // self.period if self.period else 0

    @property
    def iteration(self) -> int:
        """Within the batch, counted from 1."""
        return self.step - self.batch * self.period


def overview_figure(records: Sequence[Record], shown: Shown, layers: Sequence[str], marks: Sequence[ChangeMark] = ()) -> Figure:
    """L_BNS and agreement over the iterations of a batch, and L_BNS of each layer at the shown iteration; a curve for each method.

    layers: their names. marks: live changes; those of the shown batch are drawn.
    """
    traces: list[dict[str, Any]] = []
    for method, own in by_series(records).items():
        for index, name in enumerate(_CURVES):
            traces += _curves(method, own, name, index, shown)
    traces += [_profile(method, record, layers) for method, record in shown.records.items()]
    titles = [*_CURVES.values(), f"L_BNS by layer, iteration {shown.iteration}"]
    shapes, notes = _marks(marks, shown)
    names = [title_of(method) for method in shown.records]
    wide, narrow = (
        _layout(titles, columns, traces, notes, shown, legend_rows(names, width)) for columns, width in ((3, _WIDE), (1, _NARROW))
    )
    legend = {"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom"}
    meta = {"name": "overview", "cursor": [["x", "y"], ["x2", "y2"]], "period": shown.period, "fill": True, "narrow": narrow}
    shared = {"shapes": shapes, "legend": legend, "hovermode": "x unified", "uirevision": "overview", "meta": meta}
    return {"data": traces, "layout": {**wide, **shared}}


def _curves(method: str, records: Sequence[Record], name: str, index: int, shown: Shown) -> list[dict[str, Any]]:
    """The curve of the shown batch, and one of all faint ones, with gaps between them."""
    batches: dict[int, list[Record]] = {}
    for record in records:
        batches.setdefault((record.step - 1) // shown.period if shown.period else 0, []).append(record)
    axes = {"type": "scatter", "mode": "lines", "xaxis": f"x{axis_number(index)}", "yaxis": f"y{axis_number(index)}", "legendgroup": method}
    traces = []
    others = sorted(sorted(set(batches) - {shown.batch}, key=lambda batch: abs(batch - shown.batch))[:_FAINT])
    if others:
        x: list[float] = []
        y: list[float] = []
        for batch in others:
            own = thinned(batches[batch], _FAINT_POINTS)
            x += [*(record.step - batch * shown.period for record in own), math.nan]
            y += [*(record.data.get(name, math.nan) for record in own), math.nan]
        faint = {"color": color(method), "dash": dash(method), "width": 1}
        traces.append({"x": numbers(x), "y": numbers(y), "opacity": 0.3, "showlegend": False, "hoverinfo": "skip", "line": faint, **axes})
    own = thinned(batches.get(shown.batch, []), _POINTS)
    traces.append({
        "x": np.array([record.step - shown.batch * shown.period for record in own], np.int32),
        "y": numbers(record.data.get(name, math.nan) for record in own), "name": title_of(method), "showlegend": index == 0,
        "line": {"color": color(method), "dash": dash(method), "width": 2}, "hovertemplate": "%{y:.4g}", **axes,
    })  # fmt: skip
    return traces


def _profile(method: str, record: Record, layers: Sequence[str]) -> dict[str, Any]:
    """L_BNS of every layer of a method."""
    return {
        "type": "scatter", "mode": "lines+markers", "x": np.arange(1, len(layers) + 1, dtype=np.int32), "y": numbers(record.data["layers"]),
        "text": [plotly_text(name) for name in layers], "name": title_of(method), "showlegend": False, "legendgroup": method,
        "line": {"color": color(method), "dash": dash(method), "width": 1.5}, "marker": {"size": 4},
        "hovertemplate": "%{y:.4g} (%{text})", "xaxis": "x3", "yaxis": "y3",
    }  # fmt: skip


def _marks(marks: Sequence[ChangeMark], shown: Shown) -> tuple[list[dict], list[dict]]:
    """Lines at the live changes of the shown batch, and their labels."""
    shapes, notes = [], []
    own = [mark for mark in marks if not shown.period or mark.step // shown.period == shown.batch]
    for index in range(len(_CURVES)):
        axes = {"xref": f"x{axis_number(index)}", "yref": f"y{axis_number(index)} domain"}
        for position, mark in enumerate(own):
            x = mark.step - shown.batch * shown.period
            shade = color(mark.methods[0]) if len(mark.methods) == 1 else NEUTRAL
            shapes.append({"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "line": {"color": shade, "width": 1, "dash": "dot"}, **axes})
            notes.append({
                "x": x, "y": 1 - 0.16 * (position % 4), "text": plotly_text(mark.text), "showarrow": False, "yanchor": "top",
                "xanchor": "left" if not shown.period or x < 0.7 * shown.period else "right", "font": {"size": 11}, **axes,
            })  # fmt: skip
    return shapes, notes


def _layout(
    titles: Sequence[str], columns: int, traces: Sequence[dict], notes: Sequence[dict], shown: Shown, legend: int
) -> dict[str, Any]:
    layout = panel_grid(titles, columns, _HEIGHT, _LOGARITHMIC, notes, legend)
    layout["height"] -= _CLOSER
    layout["margin"]["t" if "legend" in layout else "b"] -= _CLOSER
    if shown.period:  # so that the axes stay where they are while the curves grow
        for index in range(len(_CURVES)):
            layout[f"xaxis{axis_number(index)}"]["range"] = [0, shown.period]
    layout["yaxis2"] |= {"range": [0, 102]}
    for axis, own in (("yaxis", "y"), ("yaxis3", "y3")):
        layout[axis] |= log_axis(float(value) for trace in traces if trace["yaxis"] == own for value in trace["y"])
    return layout
