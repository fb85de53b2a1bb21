"""Records to plotly figures. Pure: no streamlit in here. One colour means one thing on every page (Okabe and Ito's palette).

pandas is imported because plotly uses it where it finds it in sys.modules, also half imported by another thread.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import pandas  # noqa: F401
import plotly.graph_objects as go

from core.runs.store import Record
from dashboard.text import plotly, shown

COLOURS = {"mi-fgsm": "#0072B2", "adam": "#D55E00", "given": "#009E73"}
FULL_PRECISION = "#7F7F7F"
POINTS = 600  # of a curve
PAPER = "#CC79A7"
NAMES = {"mi-fgsm": "MI-FGSM", "adam": "Adam", "given": "given images"}
PARTS = {
    "total": "total loss",
    "bns": "L_BNS (batch-norm statistics)",
    "ce": "L_CE (cross entropy)",
    "tv": "R_TV (total variation)",
    "l2": "R_l2 (l2 norm)",
    "agreement": "teacher agreement (%)",
}
SYMBOLS = {"epsilon": "ε", "mu": "μ", "lr": "lr", "alpha_tv": "α_TV", "alpha_l2": "α_l2", "beta": "β"}
_T = TypeVar("_T")
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "solid")


def colour(lane: str) -> str:
    """The colour of an optimizer; `lane` may go on with a bit width, as in "adam W4A4"."""
    return COLOURS.get(lane.split(" ")[0], "#56B4E9")


def lane_name(lane: str) -> str:
    """How a lane is called on the page, as it is: text from outside, where a run was given its images."""
    first, _, rest = lane.partition(" ")
    return f"{NAMES.get(first, first)} {rest}".strip()


def _title(lane: str) -> str:
    """`lane_name` in a figure."""
    return plotly(lane_name(lane))


def _layout(figure: go.Figure, title: str, height: int, **layout: Any) -> go.Figure:
    figure.update_layout(
        title={"text": title, "font": {"size": 14}, "x": 0, "xref": "paper", "y": 0.98, "yanchor": "top"},
        height=height,
        margin={"l": 10, "r": 10, "t": 36, "b": 10},
        legend={"orientation": "h", "y": -0.2, "yanchor": "top", "x": 0},
        # keeps zoom and hidden curves over refreshes
        uirevision=title,
        **layout,
    )
    return figure


def _lanes(records: Iterable[Record], most: int = 0) -> dict[str, list[Record]]:
    """Lane -> its records; thinned to about `most` where that is given."""
    lanes: dict[str, list[Record]] = {}
    for record in records:
        lanes.setdefault(record.lane, []).append(record)
    return {lane: _thinned(own, most) if most else own for lane, own in lanes.items()}


def _thinned(records: list[_T], most: int) -> list[_T]:
    """Every n-th of them and the last, about `most`: a chart needs no more points than pixels, and all of them are sent each time."""
    if len(records) <= most:
        return records
    every = -(-len(records) // most)
    return [*records[:-1:every], records[-1]]


def _steps(records: Sequence[Record]) -> np.ndarray:
    """Their steps. Arrays, here and below, as plotly sends them packed, and as a server keeps many figures of many numbers."""
    return np.array([record.step for record in records], np.int32)


def _numbers(values: Iterable[float]) -> np.ndarray:
    return np.fromiter(values, np.float32)


def loss_figure(records: Sequence[Record], part: str, changes: Sequence[Mapping[str, Any]] = ()) -> go.Figure:
    """One part of the loss over iterations, a curve for each optimizer; live changes as vertical marks with their value."""
    figure = go.Figure()
    for lane, own in _lanes(records, POINTS).items():
        figure.add_scatter(
            x=_steps(own),
            y=_numbers(r.data[part] for r in own),
            name=_title(lane),
            mode="lines",
            line={"color": colour(lane), "width": 2},
        )
    marks: dict[tuple[int, str, float], list[str]] = {}
    for change in changes:
        marks.setdefault((change["step"], change["name"], change["value"]), []).append(change["lane"])
    for position, ((step, name, value), lanes) in enumerate(marks.items()):
        # neighbouring labels on different heights, so that they do not cover each other
        line = "#888888" if len(lanes) > 1 else colour(lanes[0])
        figure.add_vline(x=step, line={"color": line, "width": 1, "dash": "dot"})
        figure.add_annotation(
            x=step, y=1 - 0.09 * (position % 4), yref="paper", text=f"{plotly(SYMBOLS.get(name, name))} = {value:g}", showarrow=False,
            xanchor="left", font={"size": 11, "color": line},
        )  # fmt: skip
    log = part not in ("agreement",)
    figure.update_yaxes(type="log" if log else "linear", title=None)
    figure.update_xaxes(title="iteration")
    return _layout(figure, PARTS[part], 300)


def layer_heatmap(records: Sequence[Record], lane: str, layers: Sequence[str], ends: tuple[float, float] | None = None) -> go.Figure:
    """L_BNS of every layer over iterations, logarithmic colour; `ends`: lowest and highest value, so that two lanes share a scale."""
    own = _thinned([r for r in records if r.lane == lane], 200)
    values = np.maximum(np.array([r.data["layers"] for r in own], np.float32), 1e-6).reshape(len(own), -1).T
    low, high = (math.log10(max(end, 1e-6)) for end in ends) if ends else (None, None)
    ticks = [t for t in range(-3, 4) if low is None or low - 0.5 <= t <= (high or 0) + 0.5]
    figure = go.Figure(
        go.Heatmap(
            x=_steps(own),
            y=[f"{index + 1}" for index in range(len(layers))],
            z=np.log10(values),
            zmin=low,
            zmax=high,
            customdata=values,
            hovertemplate="layer %{y}<br>iteration %{x}<br>L_BNS %{customdata:.3g}<extra></extra>",
            colorscale="Cividis",
            colorbar={"title": None, "tickvals": ticks, "ticktext": [f"{10.0**t:g}" for t in ticks], "thickness": 10},
        )
    )
    figure.update_yaxes(title="layer", autorange="reversed", type="category", nticks=8)
    figure.update_xaxes(title="iteration")
    return _layout(figure, f"L_BNS by layer, {_title(lane)}", 320)


def heatmap_ends(records: Sequence[Record]) -> tuple[float, float]:
    """Lowest and highest L_BNS of a layer in all lanes, of a long run about."""
    values = [value for r in _thinned(list(records), 400) for value in r.data["layers"] if value > 0]
    return (min(values), max(values)) if values else (1e-3, 1.0)


def layer_figure(records: Sequence[Record], layers: Sequence[str], layer: str) -> go.Figure:
    """L_BNS of one layer over iterations, a curve for each optimizer."""
    index = list(layers).index(layer)
    figure = go.Figure()
    for lane, own in _lanes(records, POINTS).items():
        figure.add_scatter(
            x=_steps(own), y=_numbers(r.data["layers"][index] for r in own), name=_title(lane), mode="lines",
            line={"color": colour(lane), "width": 2},
        )  # fmt: skip
    figure.update_yaxes(type="log")
    figure.update_xaxes(title="iteration")
    return _layout(figure, f"L_BNS of layer {index + 1}: {plotly(layer)}", 300)


def training_figure(records: Sequence[Record], part: str) -> go.Figure:
    """Loss or agreement with the teacher over training steps: colour is the optimizer of the images, dash the bit width."""
    figure = go.Figure()
    lanes = _lanes(records)
    widths = sorted({lane.partition(" ")[2] for lane in lanes})
    for lane, own in lanes.items():
        points = _thinned(list(zip(own, _smoothed([r.data[part] for r in own]))), POINTS)
        figure.add_scatter(
            x=_steps([record for record, _ in points]),
            y=_numbers(value for _, value in points),
            name=_title(lane),
            mode="lines",
            line={"color": colour(lane), "width": 2, "dash": _DASHES[widths.index(lane.partition(" ")[2]) % len(_DASHES)]},
        )
    figure.update_xaxes(title="training step")
    title = "loss (smoothed)" if part == "total" else "agreement with the teacher in training, % (smoothed)"
    if part == "total":
        figure.update_yaxes(type="log")
    return _layout(figure, title, 340)


def _smoothed(values: Sequence[float], weight: float = 0.9) -> list[float]:
    """Exponential moving average, corrected for its start as Adam's moments are."""
    smoothed, average = [], 0.0
    for index, value in enumerate(values):
        average = weight * average + (1 - weight) * value
        smoothed.append(average / (1 - weight ** (index + 1)))
    return smoothed


def accuracy_figure(
    accuracies: Sequence[Mapping[str, Any]], full_precision: float | None, paper: Mapping[int, float], paper_full_precision: float | None
) -> go.Figure:
    """Top-1 over bit width. accuracies: {"lane", "bits", "calibrated", "quantized", "standard_error"}; paper: bits -> DFFG's top-1."""
    figure = go.Figure()
    for lane in dict.fromkeys(a["lane"] for a in accuracies):
        own = sorted((a for a in accuracies if a["lane"] == lane), key=lambda a: a["bits"])
        figure.add_scatter(
            x=[a["bits"] for a in own], y=[a["calibrated"] for a in own], name=f"{_title(lane)}, calibrated only",
            mode="lines+markers", line={"color": colour(lane), "dash": "dot"}, marker={"symbol": "circle-open", "size": 9},
        )  # fmt: skip
        trained = [a for a in own if a.get("quantized") is not None]
        figure.add_scatter(
            x=[a["bits"] for a in trained], y=[a["quantized"] for a in trained], name=f"{_title(lane)}, trained",
            mode="lines+markers", line={"color": colour(lane)}, marker={"size": 9},
            error_y={"type": "data", "array": [a["standard_error"] for a in trained], "thickness": 1},
        )  # fmt: skip
    if paper:
        figure.add_scatter(
            x=list(paper), y=list(paper.values()), name=f"paper (DFFG), from {paper_full_precision:g} % full precision",
            mode="markers", marker={"color": PAPER, "symbol": "diamond", "size": 11},
        )  # fmt: skip
    if full_precision is not None:
        figure.add_hline(y=full_precision, line={"color": FULL_PRECISION, "dash": "dash"})
        figure.add_annotation(
            x=1, xref="paper", xanchor="right", y=full_precision, yanchor="bottom", showarrow=False,
            text=f"full precision {full_precision:.1f} %", font={"color": FULL_PRECISION},
        )  # fmt: skip
    figure.update_xaxes(title="bit width of weights and activations", dtick=1)
    figure.update_yaxes(title="top-1 accuracy, %")
    return _layout(figure, "Accuracy at each bit width", 420)


def histogram_figure(diversities: Mapping[str, Mapping[str, Any]]) -> go.Figure:
    """Share of image pairs by cosine similarity, a curve for each set, its mean as a dashed line."""
    figure, starts = go.Figure(), [1.0]
    for lane, measured in diversities.items():
        edges, share = measured["histogram"]["edges"], measured["histogram"]["share"]
        figure.add_scatter(
            x=[(a + b) / 2 for a, b in zip(edges, edges[1:])], y=share, name=f"{_title(lane)}, mean {measured['mean_similarity']:.3f}",
            mode="lines", line={"color": colour(lane), "shape": "hvh"}, fill="tozeroy", opacity=0.7,
        )  # fmt: skip
        figure.add_vline(x=measured["mean_similarity"], line={"color": colour(lane), "dash": "dash"})
        starts.append(next((edge for edge, part in zip(edges, share) if part > 1e-4), -1.0))
    figure.update_xaxes(title="cosine similarity of two images (left is more diverse)", range=[max(-1.0, min(starts) - 0.05), 1.0])
    figure.update_yaxes(title="share of pairs")
    return _layout(figure, "Pairwise CLIP similarity", 360)


def matrix_figure(lane: str, matrix: Mapping[str, Any], classes: Sequence[str], low: float = -1.0) -> go.Figure:
    """Cosine similarity between images ordered by class; bright blocks on the diagonal are classes that look alike.

    low: the cosine of the darkest colour, so that two sets share a scale.
    """
    labels = matrix["labels"]
    starts = [i for i, label in enumerate(labels) if i == 0 or labels[i - 1] != label]
    names = [plotly(shown(classes[labels[i]], 40)) for i in starts]
    figure = go.Figure(
        go.Heatmap(
            z=matrix["cosine"], zmin=low, zmax=1, colorscale="Cividis", colorbar={"thickness": 10}, hovertemplate="%{z:.2f}<extra></extra>"
        )
    )
    axis = {"tickvals": starts, "ticktext": names, "showgrid": False}
    figure.update_xaxes(**axis, tickangle=45)
    figure.update_yaxes(**axis, autorange="reversed")
    return _layout(figure, f"Similarity matrix, {_title(lane)}", 430)
