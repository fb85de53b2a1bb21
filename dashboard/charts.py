"""Records of a generation to plotly figures. Pure: no streamlit in here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from core.runs.store import Record
from dashboard.chart_style import POINTS, by_lane, colour, laid_out, numbers, steps_of, thinned, title_of
from dashboard.text import plotly

PARTS = {
    "total": "total loss",
    "bns": "L_BNS (batch-norm statistics)",
    "ce": "L_CE (cross entropy)",
    "tv": "R_TV (total variation)",
    "l2": "R_l2 (l2 norm)",
    "agreement": "teacher agreement (%)",
}
SYMBOLS = {"epsilon": "ε", "mu": "μ", "lr": "lr", "alpha_tv": "α_TV", "alpha_l2": "α_l2", "beta": "β"}


def loss_figure(records: Sequence[Record], part: str, changes: Sequence[Mapping[str, Any]] = ()) -> go.Figure:
    """One part of the loss over iterations, a curve for each optimizer; live changes as vertical marks with their value."""
    figure = go.Figure()
    for lane, own in by_lane(records, POINTS).items():
        figure.add_scatter(
            x=steps_of(own),
            y=numbers(r.data[part] for r in own),
            name=title_of(lane),
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
    return laid_out(figure, PARTS[part], 300)


def layer_heatmap(records: Sequence[Record], lane: str, layers: Sequence[str], ends: tuple[float, float] | None = None) -> go.Figure:
    """L_BNS of every layer over iterations, logarithmic colour; `ends`: lowest and highest value, so that two lanes share a scale."""
    own = thinned([r for r in records if r.lane == lane], 200)
    values = np.maximum(np.array([r.data["layers"] for r in own], np.float32), 1e-6).reshape(len(own), -1).T
    low, high = (math.log10(max(end, 1e-6)) for end in ends) if ends else (None, None)
    ticks = [t for t in range(-3, 4) if low is None or low - 0.5 <= t <= (high or 0) + 0.5]
    figure = go.Figure(
        go.Heatmap(
            x=steps_of(own),
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
    return laid_out(figure, f"L_BNS by layer, {title_of(lane)}", 320)


def heatmap_ends(records: Sequence[Record]) -> tuple[float, float]:
    """Lowest and highest L_BNS of a layer in all lanes, of a long run about."""
    values = [value for r in thinned(list(records), 400) for value in r.data["layers"] if value > 0]
    return (min(values), max(values)) if values else (1e-3, 1.0)


def layer_figure(records: Sequence[Record], layers: Sequence[str], layer: str) -> go.Figure:
    """L_BNS of one layer over iterations, a curve for each optimizer."""
    index = list(layers).index(layer)
    figure = go.Figure()
    for lane, own in by_lane(records, POINTS).items():
        figure.add_scatter(
            x=steps_of(own), y=numbers(r.data["layers"][index] for r in own), name=title_of(lane), mode="lines",
            line={"color": colour(lane), "width": 2},
        )  # fmt: skip
    figure.update_yaxes(type="log")
    figure.update_xaxes(title="iteration")
    return laid_out(figure, f"L_BNS of layer {index + 1}: {plotly(layer)}", 300)
