"""Records of a training to plotly figures. Pure: no streamlit in here."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from core.runs.store import Record
from dashboard.chart_style import POINTS, by_lane, colour, laid_out, numbers, steps_of, thinned, title_of

_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "solid")


def training_figure(records: Sequence[Record], part: str) -> go.Figure:
    """Loss or agreement with the teacher over training steps: colour is the optimizer of the images, dash the bit width."""
    figure = go.Figure()
    lanes = by_lane(records)
    widths = sorted({lane.partition(" ")[2] for lane in lanes})
    for lane, own in lanes.items():
        points = thinned(list(zip(own, smoothed([r.data[part] for r in own]))), POINTS)
        figure.add_scatter(
            x=steps_of([record for record, _ in points]),
            y=numbers(value for _, value in points),
            name=title_of(lane),
            mode="lines",
            line={"color": colour(lane), "width": 2, "dash": _DASHES[widths.index(lane.partition(" ")[2]) % len(_DASHES)]},
        )
    figure.update_xaxes(title="training step")
    title = "loss (smoothed)" if part == "total" else "agreement with the teacher in training, % (smoothed)"
    if part == "total":
        figure.update_yaxes(type="log")
    return laid_out(figure, title, 340)


def smoothed(values: Sequence[float], weight: float = 0.9) -> list[float]:
    """Exponential moving average, corrected for its start as Adam's moments are."""
    smoothed, average = [], 0.0
    for index, value in enumerate(values):
        average = weight * average + (1 - weight) * value
        smoothed.append(average / (1 - weight ** (index + 1)))
    return smoothed
