"""Accuracies to plotly figures. Pure: no streamlit in here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from dashboard.chart_style import FULL_PRECISION, PAPER, colour, laid_out, title_of


def accuracy_figure(
    accuracies: Sequence[Mapping[str, Any]], full_precision: float | None, paper: Mapping[int, float], paper_full_precision: float | None
) -> go.Figure:
    """Top-1 over bit width. accuracies: {"lane", "bits", "calibrated", "quantized", "standard_error"}; paper: bits -> DFFG's top-1."""
    figure = go.Figure()
    for lane in dict.fromkeys(a["lane"] for a in accuracies):
        own = sorted((a for a in accuracies if a["lane"] == lane), key=lambda a: a["bits"])
        figure.add_scatter(
            x=[a["bits"] for a in own], y=[a["calibrated"] for a in own], name=f"{title_of(lane)}, calibrated only",
            mode="lines+markers", line={"color": colour(lane), "dash": "dot"}, marker={"symbol": "circle-open", "size": 9},
        )  # fmt: skip
        trained = [a for a in own if a.get("quantized") is not None]
        figure.add_scatter(
            x=[a["bits"] for a in trained], y=[a["quantized"] for a in trained], name=f"{title_of(lane)}, trained",
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
    return laid_out(figure, "Accuracy at each bit width", 420)
