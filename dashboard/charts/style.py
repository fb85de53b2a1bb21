"""What all figures share: one colour for one thing on every page, names, layout, thinned curves. Pure.

A figure is drawn once for all who look at it, whichever theme they have. So every colour of data here stands out from the white and from
the dark background alike, by 3 to 1 or more (WCAG 2.2, 1.4.11), and any two differ for people with each kind of colour blindness: Okabe
and Ito's colours where they are neither too light nor too dark, others where they are. Nothing can be read as small text on both
backgrounds, which takes 4.5 to 1: text gets no colour here, and then has the one of the viewer's theme.

pandas is imported because plotly uses it where it finds it in sys.modules, also half imported by another thread.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
import pandas  # noqa: F401
import plotly.graph_objects as go

from core.runs.records import Record
from dashboard.names import method_name
from dashboard.text import plotly

COLOURS = {"mi-fgsm": "#0072B2", "adam": "#D55E00", "given": "#009E73", "real": "#86672B", "noise": "#9A5BE0"}
FULL_PRECISION = "#6E6E6E"
PAPER = "#CC79A7"
NEUTRAL = "#808080"  # lines and areas that belong to no method: cursors, marks of changes in all methods, spreads
SCALE = "Cividis"  # of heatmaps: the same order for everybody, also printed grey
POINTS = 600  # of a curve
Figure = dict[str, Any]  # plain, as plotly.js takes it
_T = TypeVar("_T")


def colour(method: str) -> str:
    """The colour of an optimizer; `method` may go on with a bit width, as in "adam W4A4"."""
    return COLOURS.get(method.split(" ")[0], NEUTRAL)


def title_of(method: str) -> str:
    """`method_name` in a figure."""
    return plotly(method_name(method))


def laid_out(figure: go.Figure, title: str, height: int, **layout: Any) -> go.Figure:
    figure.update_layout(
        title={"text": title, "font": {"size": 14}, "x": 0, "xref": "container", "y": 0.98, "yanchor": "top"},
        height=height,
        margin={"l": 10, "r": 10, "t": 36, "b": 10},
        # below the title of the axis, however many lines it takes in a narrow window
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0},
        # keeps zoom and hidden curves over refreshes
        uirevision=title,
        **layout,
    )
    return figure


def by_series(records: Iterable[Record], most: int = 0) -> dict[str, list[Record]]:
    """MethodImages -> its records; thinned to about `most` where that is given."""
    methods: dict[str, list[Record]] = {}
    for record in records:
        methods.setdefault(record.series, []).append(record)
    return {method: thinned(own, most) if most else own for method, own in methods.items()}


def thinned(records: list[_T], most: int) -> list[_T]:
    """Every n-th of them and the last, about `most`: a chart needs no more points than pixels, and all of them are sent each time."""
    if len(records) <= most:
        return records
    every = -(-len(records) // most)
    return [*records[:-1:every], records[-1]]


def steps_of(records: Sequence[Record]) -> np.ndarray:
    """Their steps. Arrays, here and below, as plotly sends them packed, and as a server keeps many figures of many numbers."""
    return np.array([record.step for record in records], np.int32)


def numbers(values: Iterable[float]) -> np.ndarray:
    return np.fromiter(values, np.float32)


def json_of(figure: go.Figure | Figure) -> str:
    """A figure as JSON. Arrays of a plain one have four digits, as a curve of a thousand pixels does not show more; others come packed."""
    plain = figure.to_plotly_json() if isinstance(figure, go.Figure) else figure
    # the browser's theme is the template, which components/figure.js knows
    layout = {name: value for name, value in plain["layout"].items() if name != "template"}
    return json.dumps({"data": plain["data"], "layout": layout}, default=_listed)


def _listed(array: np.ndarray) -> list:
    if array.dtype.kind != "f":
        return array.tolist()
    values = array.astype(np.float64)
    known = np.isfinite(values) & (values != 0)
    scale = 10.0 ** (3 - np.floor(np.log10(np.abs(values, where=known, out=np.ones_like(values)))))
    rounded = np.round(values * scale) / scale
    if np.isfinite(values).all():
        return rounded.tolist()
    # what is no number, as of a layer that did not run, is nothing in JSON
    listed = rounded.astype(object)
    listed[~np.isfinite(values)] = None
    return listed.tolist()
