"""Points of a sweep to figures. Pure: no streamlit in here."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from core.comparison.search_space import is_logarithmic, is_number
from core.comparison.sweep import Row
from dashboard.charts.style import NEUTRAL, Figure, color, dash, figure, title_of
from dashboard.names import knob_symbol, method_name
from dashboard.text import plotly

OBJECTIVE = "agreement, %"
_METHOD = "method"
_MOST_VALUES = 8  # of a knob that are shown one by one; more numbers are put into so many bins
_TICKS = 5  # of an axis with more values than that
_APART = 0.06  # of the height of an axis: labels that are closer would overlap
_OTHERS = 0.6  # opacity of the lines that are neither the best nor chosen


def parallel_figure(rows: Sequence[Row], chosen: Collection[str], ids: Sequence[str]) -> Figure:
    """Parallel coordinates: a line for each row over the methods if there are several, the knobs, and the mean agreement.

    The best row and the chosen ones are thick. A line passes over the knobs that its method does not have. ids: of the rows; chosen: some
    of them. A click reports the id of a line.
    """
    several = len({row.method for row in rows}) > 1
    columns: dict[str, list[Any]] = {_METHOD: [method_name(row.method) for row in rows]} if several else {}
    columns |= {knob_symbol(name): [row.values[name] for row in rows] for name in rows[0].values}
    columns = {name: values for name, values in columns.items() if set(values) != {None}}
    columns[OBJECTIVE] = [row.mean for row in rows]
    axes = [_Axis(values, digits=2 if name == OBJECTIVE else 0) for name, values in columns.items()]
    best = max(rows, key=lambda row: row.mean)
    traces, named = [], set()
    # the thick lines last, above the others
    for thick, row, own in sorted(((row is best or own in chosen, row, own) for row, own in zip(rows, ids)), key=lambda one: one[0]):
        number = ids.index(own)
        values = [f"{name} {_text(values[number])}" for name, values in columns.items() if values[number] is not None]
        traces.append({
            "type": "scatter", "mode": "lines", "x": list(range(len(axes))), "y": [axis.position(number) for axis in axes],
            "connectgaps": True,
            "name": title_of(row.method), "legendgroup": row.method, "showlegend": several and row.method not in named,
            "line": {"color": color(row.method), "dash": dash(row.method), "width": 4 if thick else 1.5},
            "opacity": 1 if thick else _OTHERS, "customdata": [own] * len(axes),
            "hovertemplate": "<br>".join(map(plotly, values)) + "<extra></extra>",
        })  # fmt: skip
        named.add(row.method)
    last = len(axes) - 1
    ticks = [
        {
            "x": place, "y": height, "text": plotly(label), "showarrow": False, "font": {"size": 11}, "borderpad": 1,
            # beside the last axis there are no lines
            **({"xanchor": "left", "xshift": 4} if place == last else {"xanchor": "right", "xshift": -4}),
        }
        for place, axis in enumerate(axes)
        for height, label in axis.ticks()
    ]  # fmt: skip
    lines = [{"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "line": {"color": NEUTRAL, "width": 1}} for x in range(len(axes))]
    horizontal = {
        "tickvals": list(range(len(axes))), "ticktext": [plotly(name) for name in columns], "showgrid": False, "showline": False,
        "range": [-0.35, last + 0.3], "fixedrange": True, "tickangle": 0,
    }  # fmt: skip
    # in a narrow window, the labels of the outer axes take more of the width
    first, agreement = (0.2 + 0.035 * len(axes) * max(len(label) for _, label in axis.ticks()) for axis in (axes[0], axes[-1]))
    narrow = {**horizontal, "range": [-first, last + agreement]}
    return figure(
        traces, "Parallel coordinates: the best point is thick", 340, hovermode="closest", dragmode=False, annotations=ticks, shapes=lines,
        xaxis=horizontal, yaxis={"visible": False, "range": [-0.05, 1.05], "fixedrange": True},
        meta={"narrow": {"xaxis": narrow}, "backed": True},
    )  # fmt: skip


class _Axis:
    """One axis of parallel coordinates. values: those of all lines; None: the line passes over it. digits: after the point in the labels;
    0: those that a value needs.
    """

    def __init__(self, values: Sequence[Any], digits: int = 0) -> None:
        self._values, self._digits = values, digits
        self._distinct = sorted_values(values)
        self._scale = _scale(self._distinct)
        ends = [self._scale(value) for value in self._distinct]
        self._low, self._high = min(ends), max(ends)

    def position(self, number: int) -> float | None:
        """Height of the value of a line, 0 to 1; in the middle where all have one value."""
        value = self._values[number]
        return None if value is None else self._height(value)

    def _height(self, value: Any) -> float:
        return 0.5 if self._high == self._low else round((self._scale(value) - self._low) / (self._high - self._low), 4)

    def ticks(self) -> list[tuple[float, str]]:
        """Heights and labels."""
        if len(self._distinct) > _MOST_VALUES:
            step = (len(self._distinct) - 1) / (_TICKS - 1)
            candidates = [self._distinct[round(number * step)] for number in range(_TICKS)]
        else:
            candidates = self._distinct
        shown = [candidates[-1]]  # the highest agreement has a label
        for value in reversed(candidates[:-1]):
            if self._height(shown[-1]) - self._height(value) > _APART:
                shown.append(value)
        return [(self._height(value), self._label(value)) for value in shown[::-1]]

    def _label(self, value: Any) -> str:
        return f"{value:.{self._digits}f}" if self._digits else _text(value)


def _scale(distinct: Sequence[Any]) -> Any:
    """From a value to a number: its logarithm where numbers differ by a factor of 10 or more, the place of what is no number."""
    if not all(is_number(value) for value in distinct):
        return lambda value: float(distinct.index(value))
    return math.log if is_logarithmic(distinct[0], distinct[-1]) else float


def sorted_values(values: Sequence[Any]) -> list[Any]:
    """The different values: numbers by size, others in their order; without None."""
    distinct = [value for value in dict.fromkeys(values) if value is not None]
    return sorted(distinct) if all(is_number(value) for value in distinct) else distinct


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "on" if value is True else "off" if value is False else str(value)


def heat_figure(rows: Sequence[Row], across: str, up: str) -> Figure:
    """The best mean agreement for each pair of values of two knobs, over the other knobs. rows: of one method, which has both."""
    columns, lines = _bins([row.values[across] for row in rows]), _bins([row.values[up] for row in rows])
    cells: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        cells.setdefault((columns[row.values[across]], lines[row.values[up]]), []).append(row.mean)
    x, y = list(dict.fromkeys(columns.values())), list(dict.fromkeys(lines.values()))
    best = [[max(cells[column, line]) if (column, line) in cells else None for column in x] for line in y]
    counts = [[len(cells.get((column, line), ())) for column in x] for line in y]
    trace = {
        "type": "heatmap", "x": x, "y": y, "z": best, "customdata": counts, "colorscale": "Cividis", "colorbar": {"thickness": 10},
        "texttemplate": "%{z:.1f}", "xgap": 2, "ygap": 2, "hoverongaps": False,
        "hovertemplate": f"{plotly(knob_symbol(across))} %{{x}}, {plotly(knob_symbol(up))} %{{y}}: %{{z:.2f}} %, the best of "
        "%{customdata}<extra></extra>",
    }  # fmt: skip
    axis = {"type": "category", "showgrid": False}
    empty = " (empty: not measured)" if any(None in line for line in best) else ""
    return figure(
        [trace], f"{title_of(rows[0].method)}: best agreement, %{empty}", 340, dragmode=False,
        xaxis={**axis, "title": {"text": plotly(knob_symbol(across))}},
        yaxis={**axis, "title": {"text": plotly(knob_symbol(up)), "standoff": 12}},
    )  # fmt: skip


def _bins(values: Sequence[Any]) -> Mapping[Any, str]:
    """Value -> its label on an axis, in the order of the axis: itself, or its bin where there are many numbers."""
    distinct = sorted_values(values)
    if len(distinct) <= _MOST_VALUES or not all(is_number(value) for value in distinct):
        return {value: _text(value) for value in distinct}
    scale = _scale(distinct)
    low, high = scale(distinct[0]), scale(distinct[-1])
    of_bin: dict[int, list[Any]] = {}
    for value in distinct:
        of_bin.setdefault(min(int((scale(value) - low) / (high - low) * _MOST_VALUES), _MOST_VALUES - 1), []).append(value)
    label = {number: "–".join(dict.fromkeys(f"{value:.2g}" for value in (own[0], own[-1]))) for number, own in of_bin.items()}
    return {value: label[number] for number, own in of_bin.items() for value in own}


def one_knob_figure(rows: Sequence[Row], name: str) -> Figure:
    """The agreement over the values of the only knob; a method that does not have it has the same agreement at all of them. Error bars: one
    standard deviation between seeds, of a single seed one standard error from the number of images.
    """
    traces = []
    values = sorted_values([row.values[name] for row in rows]) or ["any"]
    for method in dict.fromkeys(row.method for row in rows):
        of_method = [row for row in rows if row.method == method]
        known = {value: row for row in of_method for value in (values if row.values[name] is None else [row.values[name]])}
        own = [(_text(value), known[value]) for value in values if value in known]
        traces.append({
            "type": "scatter", "mode": "lines+markers", "name": title_of(method), "x": [value for value, _ in own],
            "y": [row.mean for _, row in own],
            "error_y": {"type": "data", "array": [error_of(row) for _, row in own], "thickness": 1},
            "line": {"color": color(method), "dash": dash(method)}, "marker": {"size": 8}, "hovertemplate": "%{y:.2f} % at %{x}",
        })  # fmt: skip
    order = [_text(value) for value in values]
    return figure(
        traces, "Agreement for each value", 340, dragmode=False, yaxis={"title": {"text": OBJECTIVE}},
        xaxis={"type": "category", "categoryorder": "array", "categoryarray": order, "title": {"text": plotly(knob_symbol(name))}},
    )  # fmt: skip


def error_of(row: Row) -> float:
    """The spread of a row; its standard error where it has one seed."""
    return row.standard_error if row.spread is None else row.spread
