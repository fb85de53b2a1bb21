"""All layers at one iteration, and the channels of one of them."""

from __future__ import annotations

from collections.abc import Mapping

import streamlit as st

from core.reporting import Frame, RunningStatistics
from core.runs.run import Run
from dashboard import session
from dashboard.charts import generation as generation_charts
from dashboard.charts.style import json_of
from dashboard.components import figures
from dashboard.updates.live_view import Values
from dashboard.views.generation_data import ShownIteration, layer_names_of

_BARS, _CHANNELS = "figure/bars", "figure/channels"


def layer_values(run: Run, shown: ShownIteration, address: Mapping[str, str]) -> Values:
    """Bars of all layers at the shown iteration, and the channels of the chosen layer if the run recorded them."""
    names = layer_names_of(run, shown)
    layer, step = session.layer_in_address(len(names), address), shown.step
    bars = session.shared_cache(
        ("bars", run.id, run.attempt, step, layer), lambda: json_of(generation_charts.layer_bars(shown.records, names, layer))
    )
    running = session.shared_cache(("running", run.id, run.attempt), lambda: session.store().frames.running_statistics(run.id))
    channels = running and session.shared_cache(
        ("channels", run.id, run.attempt, step, layer), lambda: _channels(shown.frames, running, layer)
    )
    return {_BARS: {"figure": bars}, **({_CHANNELS: {"figure": channels}} if channels else {})}


def _channels(frames: Mapping[str, Frame], running: RunningStatistics, layer: int) -> str | None:
    figure = generation_charts.channel_figure(frames, running, layer)
    return None if figure is None else json_of(figure)


def draw_one_layer(run: Run, shown: ShownIteration, values: Values) -> None:
    """The bars, a box to choose a layer, and the channels of that layer."""
    names = layer_names_of(run, shown)
    layer = session.layer_in_address(len(names), st.query_params)
    title = "L_BNS of every layer at the shown iteration"
    figures.show(values[_BARS]["figure"], _BARS, f"{run.name} L_BNS by layer at {shown.step}", title, session.show_layer)
    box = f"layer/{layer}"  # a key for each layer, so that the box follows a clicked bar
    st.selectbox(
        "Layer",
        range(len(names)),
        index=layer,
        format_func=lambda index: f"{index + 1}: {names[index]}",
        key=box,
        on_change=lambda: session.show_layer(st.session_state[box]),
        help="Or click a bar in the chart.",
    )
    if _CHANNELS not in values:
        st.caption("This run did not record channel statistics.")
        return
    st.caption("On the dashed line, the batch statistics of a channel equal its running statistics.")
    title = f"channels of layer {layer + 1}, batch against running statistics"
    figures.show(values[_CHANNELS]["figure"], _CHANNELS, f"{run.name} channels of layer {layer + 1}", title)
