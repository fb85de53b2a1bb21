"""What all figures share: one color per method on every page, layout, thinned curves. Pure: no streamlit in here.

Figures are plain dictionaries as plotly.js takes them: building a go.Figure checks one value at a time, 60 ms for 40 curves.

A figure is drawn once for all viewers, whatever their theme. So every color of data has a contrast of at least 3 to 1 against the white
and the dark background (WCAG 2.2, 1.4.11), and any two are at least 13 apart in CIELAB (2.3 is just visible), also as people with
protanopia, deuteranopia and tritanopia see them. No color is readable as small text on both backgrounds, which takes 4.5 to 1: text gets
no color here and takes that of the viewer's theme.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from core.generation.methods import METHODS, method_order
from core.runs.records import Record
from dashboard.names import method_name
from dashboard.text import plotly

# of methods, in the order of their rows in the method table
METHOD_COLORS = ("#0072B2", "#D55E00", "#C818B0", "#70A030", "#7038F8", "#407048", "#985088", "#909858")
COLORS = {"given": "#009E73", "real": "#86672B", "noise": "#9A5BE0"}
FULL_PRECISION = "#6E6E6E"
PAPER = "#CC79A7"
NEUTRAL = "#808080"  # lines and areas that belong to no method: cursors, changes of several methods, spreads
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")  # of plotly
POINTS = 600  # of a curve
_LEGEND_ROW = 20  # pixels
_LEGEND_WIDTH = 700  # pixels of a window that legends are laid out for
Figure = dict[str, Any]  # plain, as plotly.js takes it
_T = TypeVar("_T")


def color(method: str) -> str:
    """The color of a method, of given or real images, or of noise; `method` may include a bit width, as in "adam W4A4".

    Rows of the method table take METHOD_COLORS in order. Any other name, such as that of a given set, has one of them by its hash, so
    that it is the same on every page and in every process.
    """
    name = method.split(" ")[0]
    return COLORS.get(name) or METHOD_COLORS[_number(name) % len(METHOD_COLORS)]


def dash(method: str) -> str:
    """The dash of a method's curve where nothing else is told by it: solid unless an earlier method has the same color."""
    name = method.split(" ")[0]
    return "solid" if name in COLORS or name not in METHODS else DASHES[_number(name) // len(METHOD_COLORS) % len(DASHES)]


def _number(name: str) -> int:
    """Position of a method in the table; of any other name a number that skips the default methods."""
    if name in METHODS:
        return method_order(name)
    return 2 + zlib.crc32(name.encode()) % (len(METHOD_COLORS) - 2)


def title_of(method: str) -> str:
    """`method_name` in a figure."""
    return plotly(method_name(method))


def figure(traces: Sequence[Mapping[str, Any]], title: str, height: int, **layout: Any) -> Figure:
    """A figure with its title above and its legend below. layout: of plotly.js, on top of what all figures share.

    The height grows with the rows of the legend, so that these do not take the space of the curves.
    """
    names = [str(trace.get("name", "")) for trace in traces if trace.get("showlegend", True)]
    shared = {
        "title": {"text": title, "font": {"size": 14}, "x": 0, "xref": "container", "y": 0.98, "yanchor": "top"},
        "height": height + _LEGEND_ROW * (legend_rows(names) - 1),
        "margin": {"l": 10, "r": 10, "t": 36, "b": 10},
        # below the title of the axis, however many lines it takes in a narrow window
        "legend": {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0},
        # keeps zoom and hidden curves over refreshes
        "uirevision": title,
    }
    return {"data": [dict(trace) for trace in traces], "layout": {**shared, **layout}}


def legend_rows(names: Iterable[str], width: int = _LEGEND_WIDTH) -> int:
    """Rows that a horizontal legend of these names takes in a window of `width` pixels, at least 1. plotly.js gives entries one width."""
    entries = list(names)
    longest = max((40 + 7 * len(name) for name in entries), default=0)
    return max(1, math.ceil(len(entries) / max(1, width // longest))) if entries else 1


def vertical(x: float, color: str, dash: str, **line: Any) -> dict[str, Any]:
    """A line over the whole height of a figure with one pair of axes."""
    return {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "y domain", "line": {"color": color, "dash": dash, **line}}


def horizontal(y: float, color: str, dash: str) -> dict[str, Any]:
    """A line over the whole width of a figure with one pair of axes."""
    return {"type": "line", "x0": 0, "x1": 1, "xref": "x domain", "y0": y, "y1": y, "line": {"color": color, "dash": dash}}


def log_axis(values: Iterable[float]) -> dict[str, Any]:
    """A logarithmic axis: its range, and 1, 2 and 5 times powers of ten as ticks, or fewer. plotly.js writes digits between powers tiny,
    and powers in another way than on other axes. Values that are close get plotly's own ticks, which then are those of a linear axis.
    """
    positive = [value for value in values if 0 < value < math.inf]
    low, high = (math.log10(min(positive)), math.log10(max(positive))) if positive else (0.0, 1.0)
    room = max(0.05 * (high - low), 0.02)
    axis: dict[str, Any] = {"type": "log", "range": [low - room, high + room]}
    mantissas = (1, 2, 5) if high - low <= 1.5 else (1, 3) if high - low <= 2.5 else (1,)
    ticks = [mantissa * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for mantissa in mantissas]
    if sum(low - room <= math.log10(tick) <= high + room for tick in ticks) > 1:
        axis |= {"tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}
    return axis


def by_series(records: Iterable[Record], most: int = 0) -> dict[str, list[Record]]:
    """Series -> its records; with `most`, thinned to about that many."""
    series: dict[str, list[Record]] = {}
    for record in records:
        series.setdefault(record.series, []).append(record)
    return {name: thinned(own, most) if most else own for name, own in series.items()}


def thinned(records: list[_T], most: int) -> list[_T]:
    """Every n-th of them and the last, about `most`: a chart needs no more points than pixels, and all of them are sent each time."""
    if len(records) <= most:
        return records
    every = -(-len(records) // most)
    return [*records[:-1:every], records[-1]]


def steps_of(records: Sequence[Record]) -> np.ndarray:
    """Their steps, int32. Arrays, here and below, because a server keeps many figures of many numbers."""
    return np.array([record.step for record in records], np.int32)


def numbers(values: Iterable[float]) -> np.ndarray:
    return np.fromiter(values, np.float32)


def json_of(figure: Figure, **more: Any) -> str:
    """A figure as JSON. Floats in arrays have four digits: a curve of a thousand pixels shows no more. more: keys beside data and layout.

    The layout has no template: the browser adds that of the viewer's theme (components/figure.js).
    """
    return json.dumps({"layout": figure["layout"], "data": figure["data"], **more}, default=_listed)


def height_of(text: str) -> int:
    """The height in pixels of a figure from `json_of`. Reads the layout alone, which comes first, because the data may be large."""
    layout, _ = json.JSONDecoder().raw_decode(text, len('{"layout": '))
    return int(layout["height"])


def _listed(array: np.ndarray) -> list:
    if array.dtype.kind != "f":
        return array.tolist()
    values = array.astype(np.float64)
    known = np.isfinite(values) & (values != 0)
    scale = 10.0 ** (3 - np.floor(np.log10(np.abs(values, where=known, out=np.ones_like(values)))))
    rounded = np.round(values * scale) / scale
    if np.isfinite(values).all():
        return rounded.tolist()
    # JSON has no NaN and no infinity, which a layer that did not run has
    listed = rounded.astype(object)
    listed[~np.isfinite(values)] = None
    return listed.tolist()
