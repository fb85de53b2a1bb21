"""Sensitivity of the layers of a network as a chart: a click chooses a layer, whose bits are then changed beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from core.config import BIT_WIDTHS
from core.runs.run import Run
from dashboard import session, text
from dashboard.charts import training as training_charts
from dashboard.charts.style import json_of
from dashboard.components import figures


def clicked_bits(key: str) -> Mapping[str, int]:
    """Layer -> bits that were chosen beside the chart. key: of the network."""
    return st.session_state.get(f"{key}/clicked", {})


def editor_key(key: str) -> str:
    """Key of the table of layers: another after each change beside the chart, because a table keeps its own edits."""
    changes = st.session_state.get(f"{key}/changes", 0)
    return f"{key}/editor/{changes}" if changes else f"{key}/editor"


def draw(run: Run, method: str, width: str, layers: Sequence[Mapping[str, Any]], bits: Mapping[str, int], key: str) -> None:
    """The chart, and the bits of the layer that was clicked. bits: of every layer, as chosen so far. Nothing for earlier versions."""
    if not layers or "score_sqnr" not in layers[0]:
        return
    names = [layer["name"] for layer in layers]
    most = min(layers, key=lambda layer: float("inf") if layer["score_sqnr"] is None else layer["score_sqnr"])["name"]
    chosen = st.session_state.get(f"{key}/sensitive", most)

    def choose(number: int) -> None:
        st.session_state[f"{key}/sensitive"] = names[number]

    drawn = json_of(training_charts.sensitivity_figure(layers, method, chosen, bits))
    figures.show(drawn, f"{key}/sensitivity", f"{run.name} sensitivity {method} {width}", on_pick=choose)
    number = names.index(chosen) + 1
    st.caption(
        f"Layer {number} is {text.plain(chosen)}: click a bar to choose another. Only the weights and the input of one layer are rounded "
        "at a time. A dot is the error expected with the chosen bits: half for each bit more."
    )
    picker = f"{key}/bits/{chosen}/{bits[chosen]}"

    def change() -> None:
        _choose(key, {**bits, chosen: st.session_state[picker]})

    st.segmented_control(
        f"Bits of layer {number}",
        BIT_WIDTHS,
        default=bits[chosen],
        required=True,
        key=picker,
        on_change=change,
    )


def draw_sizes(run: Run, method: str, width: str, key: str) -> None:
    """For a network whose bits were chosen by its size: the error within other sizes. A click chooses the bits of a size."""
    known = session.store().result(run.id, f"allocation/{method}/{width}")
    if known is None:
        return

    def choose(number: int) -> None:
        _choose(key, dict(zip(known["layers"], known["curve"][number]["bits"])))

    drawn = json_of(training_charts.size_figure(known["curve"], method, known["bytes"], known["error"]))
    figures.show(drawn, f"{key}/sizes", f"{run.name} error within a size {method} {width}", on_pick=choose)
    st.caption(
        "The bits of each layer's weights were chosen within a size: for each size, those with which the scores change least. Click a "
        "point for its bits. The error is the mean squared change of the scores when weights alone are rounded."
    )


def _choose(key: str, bits: Mapping[str, int]) -> None:
    """Puts bits of every layer into the table."""
    st.session_state[f"{key}/clicked"] = bits
    st.session_state[f"{key}/changes"] = st.session_state.get(f"{key}/changes", 0) + 1
