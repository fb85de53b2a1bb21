"""Similarities to figures. Pure: no streamlit in here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dashboard.charts.style import Figure, color, dash, figure, title_of, vertical
from dashboard.text import one_line_text, plotly


def histogram_figure(diversities: Mapping[str, Mapping[str, Any]], references: Mapping[str, Mapping[str, Any]] | None = None) -> Figure:
    """Share of image pairs by cosine similarity: a curve for each set, with its mean as a dashed line.

    references: noise and real images, measured in the same way; drawn dotted.
    """
    references = references or {}
    traces, shapes, starts = [], [], [1.0]
    for name, measured in {**diversities, **references}.items():
        edges, share = measured["histogram"]["edges"], measured["histogram"]["share"]
        of_run = name in diversities
        filled = of_run and len(diversities) == 1  # two areas would blend to a third color
        traces.append({
            "type": "scatter", "mode": "lines", "x": [(a + b) / 2 for a, b in zip(edges, edges[1:])], "y": share,
            "name": f"{title_of(name)}, mean {measured['mean_similarity']:.3f}", "opacity": 0.7 if filled else 1.0,
            "line": {"color": color(name), "shape": "hvh", "dash": dash(name) if of_run else "dot"},
            "fill": "tozeroy" if filled else "none",
        })  # fmt: skip
        shapes.append(vertical(measured["mean_similarity"], color(name), "dash" if of_run else "dot"))
        starts.append(next((edge for edge, part in zip(edges, share) if part > 1e-4), -1.0))
    return figure(
        traces, "Pairwise CLIP similarity", 360, shapes=shapes, yaxis={"title": {"text": "share of pairs"}},
        xaxis={"title": {"text": "cosine similarity; left is more diverse"}, "range": [max(-1.0, min(starts) - 0.05), 1.0]},
    )  # fmt: skip


def matrix_figure(method: str, matrix: Mapping[str, Any], classes: Sequence[str], low: float = -1.0) -> Figure:
    """Cosine similarity between images ordered by class; bright blocks on the diagonal are classes whose images are similar.

    low: the cosine at the dark end of the color scale, so that all sets share one scale.
    """
    labels = matrix["labels"]
    starts = [i for i, label in enumerate(labels) if i == 0 or labels[i - 1] != label]
    middles = [(start + end - 1) / 2 for start, end in zip(starts, [*starts[1:], len(labels)])]
    names = [plotly(one_line_text(classes[labels[i]], 40)) for i in starts]
    heatmap = {
        "type": "heatmap", "z": matrix["cosine"], "zmin": low, "zmax": 1, "colorscale": "Cividis", "colorbar": {"thickness": 10},
        "hovertemplate": "%{z:.2f}<extra></extra>",
    }  # fmt: skip
    axis = {"tickvals": middles, "ticktext": names, "showgrid": False}
    return figure(
        [heatmap], f"Similarity matrix, {title_of(method)}", 430, xaxis={**axis, "tickangle": 45}, yaxis={**axis, "autorange": "reversed"}
    )
