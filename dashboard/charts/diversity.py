"""Similarities to plotly figures. Pure: no streamlit in here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from dashboard.charts.style import colour, laid_out, title_of
from dashboard.text import one_line_text, plotly


def histogram_figure(diversities: Mapping[str, Mapping[str, Any]], references: Mapping[str, Mapping[str, Any]] | None = None) -> go.Figure:
    """Share of image pairs by cosine similarity, a curve for each set, its mean as a dashed line.

    references: noise and real images, measured alike: dotted, with their names at their means.
    """
    references = references or {}
    figure, starts = go.Figure(), [1.0]
    for name, measured in {**diversities, **references}.items():
        edges, share = measured["histogram"]["edges"], measured["histogram"]["share"]
        of_run = name in diversities
        figure.add_scatter(
            x=[(a + b) / 2 for a, b in zip(edges, edges[1:])], y=share, name=f"{title_of(name)}, mean {measured['mean_similarity']:.3f}",
            mode="lines", line={"color": colour(name), "shape": "hvh", "dash": None if of_run else "dot"},
            fill="tozeroy" if of_run else None, opacity=0.7 if of_run else 1.0,
        )  # fmt: skip
        figure.add_vline(x=measured["mean_similarity"], line={"color": colour(name), "dash": "dash" if of_run else "dot"})
        starts.append(next((edge for edge, part in zip(edges, share) if part > 1e-4), -1.0))
    for place, (name, measured) in enumerate(references.items()):
        figure.add_annotation(
            x=measured["mean_similarity"], y=1 - 0.09 * place, yref="paper", xanchor="left", yanchor="top", showarrow=False,
            text=title_of(name),
        )  # fmt: skip
    figure.update_xaxes(title="cosine similarity, left is more diverse", range=[max(-1.0, min(starts) - 0.05), 1.0])
    figure.update_yaxes(title="share of pairs")
    return laid_out(figure, "Pairwise CLIP similarity", 360)


def matrix_figure(method: str, matrix: Mapping[str, Any], classes: Sequence[str], low: float = -1.0) -> go.Figure:
    """Cosine similarity between images ordered by class; bright blocks on the diagonal are classes that look alike.

    low: the cosine of the darkest colour, so that two sets share a scale.
    """
    labels = matrix["labels"]
    starts = [i for i, label in enumerate(labels) if i == 0 or labels[i - 1] != label]
    names = [plotly(one_line_text(classes[labels[i]], 40)) for i in starts]
    figure = go.Figure(
        go.Heatmap(
            z=matrix["cosine"], zmin=low, zmax=1, colorscale="Cividis", colorbar={"thickness": 10}, hovertemplate="%{z:.2f}<extra></extra>"
        )
    )
    axis = {"tickvals": starts, "ticktext": names, "showgrid": False}
    figure.update_xaxes(**axis, tickangle=45)
    figure.update_yaxes(**axis, autorange="reversed")
    return laid_out(figure, f"Similarity matrix, {title_of(method)}", 430)
