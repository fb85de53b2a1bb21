"""Generation of a run: live settings, iteration player, the images of every method, curves and layers. Reads the store only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import streamlit as st

from core.generation.methods import counts_epochs
from core.runs.records import Record
from core.runs.run import Run
from core.runs.state import RunState
from dashboard import session, text
from dashboard.charts import generation as generation_charts
from dashboard.charts.overview import Shown, overview_figure
from dashboard.charts.style import json_of
from dashboard.components import address_widgets, elements, figures
from dashboard.forms import new_run
from dashboard.names import method_name
from dashboard.tables import iterations
from dashboard.updates import pace
from dashboard.updates.live_view import AT_ONCE, BEHIND, ENDED, LAYOUT, PAGE, SOON, Values, View
from dashboard.views import branch_form, branches, images, live_knobs, status, verdict
from dashboard.views.generation_data import (
    GenerationHistory,
    ShownIteration,
    changed_images,
    generation_finished,
    has_newer_frame,
    history_of,
    iteration_at,
    layer_names_of,
)
from dashboard.views.one_layer import draw_one_layer, layer_values

CHARTS = {"overview": "Overview", "loss": "Loss", "layers": "Layers over time", "heatmaps": "Heatmaps", "layer": "One layer"}


def values(run: Run, address: Mapping[str, str]) -> Values:
    """Progress, live knobs, player, contact sheets, and the chart that the address names."""
    finished = generation_finished(run)
    history = history_of(run)
    own_branches, image = branches.branches_of(run), session.image_in(address)
    # the elements of the large view differ in every iteration
    enlarged = (
        image is not None
        and history is not None
        and [pace.chart_version(finished, history.latest), *(branches.versions(own_branches) if image.beside else ())]
    )
    known: Values = {
        ENDED: finished and not branches.active(own_branches),
        PAGE: finished,
        LAYOUT: [0 if history is None else len(history.newest), enlarged, branches.layout(own_branches)],
        BEHIND: _behind(run, history),
        **verdict.values(run),
        **live_knobs.values(run, finished),
        **({} if finished else status.values(run, address)),
    }
    if history is None:
        return known
    at, _ = elements.chosen_step(address, history.kept, history.latest)
    shown = iteration_at(run, history, at)
    chart = chart_in(address)
    return {
        **known,
        _player_key(run): elements.player_data(history.kept, history.latest, at, history.marks),
        **images.sheet_values(run, _with_changed_images(run, shown) if at is None and not finished else shown),
        **({} if chart == "overview" else {_lines_key(run): elements.text_block_data(_lines(run, shown, chart))}),
        **_chart_values(run, shown, chart, address),
        **branches.values(run, history, at, own_branches, address),
    }


def _with_changed_images(run: Run, shown: ShownIteration) -> ShownIteration:
    """The effect of a live change is shown at once, not when all methods are at its iteration."""
    ahead = changed_images(run, shown.history)
    records = {
        method: record for method, frame in ahead.items() if (record := iterations.record_at(shown.history.records, method, frame.step))
    }
    return shown._replace(frames={**shown.frames, **ahead}, records={**shown.records, **records})


def draw(run: Run, values: Values) -> None:
    """During generation the line of the run; then images, player and the chosen chart, and beside them verdict and live knobs."""
    finished, history = generation_finished(run), history_of(run)
    if not finished:
        draw_status(run, values)
    with st.container(key="frame"):
        with st.container(key="pictures"):
            _draw_pictures(run, history, values)
        with st.container(key="side"):
            if run.state.is_finished():
                verdict.draw(run, values)
            live_knobs.draw(run, values, finished)
            if history is not None and _player_key(run) in values:
                at, _ = elements.chosen_step(st.query_params, history.kept, history.latest)
                branch_form.draw(run, iteration_at(run, history, at).step, history.latest, len(branches.branches_of(run)))
            if not run.state.is_finished():
                verdict.draw(run, values)
            status.draw_warnings(run)


def _behind(run: Run, history: GenerationHistory | None) -> float | None:
    """Images are about to appear: the first ones of a run that has begun or begins next, or those of a method that is behind."""
    if history is None or len(history.newest) < len(run.config.methods):
        begins = run.state is RunState.RUNNING or (run.state is RunState.QUEUED and status.waiting(run) == 0)
        return AT_ONCE if begins else None
    return SOON if run.state is RunState.RUNNING and has_newer_frame(run) else None


def draw_status(run: Run, values: Values) -> None:
    """The line of the run, with the button that opens the form of a new one, and what the run achieved."""
    with st.container(key="bar"):
        status.draw_line(run, values, lambda: new_run.toggle(run.id))
    status.draw_result(run)


def _draw_pictures(run: Run, history: GenerationHistory | None, values: Values) -> None:
    """The images of the shown iteration, the player, the chosen chart, and the branches."""
    if history is None or _player_key(run) not in values:
        if not run.state.is_finished():
            st.caption("Images and curves appear here after the first iteration.")
        return
    at, problem = elements.chosen_step(st.query_params, history.kept, history.latest)
    if problem:
        st.warning(text.plain(problem))
    images.draw_sheets(run, values)
    generation = run.config.generation
    following = "" if generation_finished(run) else pace.in_words()
    groups = (generation.iterations, len(generation.batches), iterations.group_word(run))
    elements.player(run.id, values[_player_key(run)], following, groups, _player_key(run))
    shown = iteration_at(run, history, at)
    images.draw_large(run, shown)
    _draw_chart(run, shown, values)
    branches.draw(run, branches.branches_of(run), values, at)


GENERATION_STATUS = View("generation status", status.values, draw_status)
GENERATION = View("generation", values, draw)


def _player_key(run: Run) -> str:
    return f"player/{run.id}"


def _lines_key(run: Run) -> str:
    return f"numbers/{run.id}"


def chart_in(address: Mapping[str, str]) -> str:
    """The chart that an address names, or the first of CHARTS."""
    return address_widgets.named_option(address, session.VIEW_PARAMETER, CHARTS)


def _draw_chart(run: Run, shown: ShownIteration, values: Values) -> None:
    """The chart that the address names."""
    chart = address_widgets.choose_one("Chart", CHARTS, session.VIEW_PARAMETER, label_visibility="collapsed")
    if _lines_key(run) in values:
        elements.text_block(_lines_key(run), values[_lines_key(run)])
    if chart == "layer":
        draw_one_layer(run, shown, values)
        return
    titles = {"overview": "L_BNS in total and by layer, and teacher agreement", "heatmaps": "L_BNS by layer and iteration"}
    title = titles.get(chart, f"{CHARTS[chart]}: curves over iterations")
    figures.show(values[f"figure/{chart}"]["figure"], f"figure/{chart}", f"{run.name} {CHARTS[chart]}", title)


def _chart_values(run: Run, shown: ShownIteration, chart: str, address: Mapping[str, str]) -> Values:
    """The figures of a chart. Curves are redrawn once for all viewers: every pace.chart_seconds() at most, and after every live change."""
    if chart == "layer":
        return layer_values(run, shown, address)
    history, names = shown.history, layer_names_of(run, shown)
    marks = generation_charts.change_marks(history.changes)
    makers: dict[str, Any] = {
        "overview": lambda: overview_figure(history.records, _overviewed(run, shown), names, marks),
        "loss": lambda: generation_charts.loss_figure(history.records, history.changes, history.terms),
        "layers": lambda: generation_charts.layer_figure(history.records, names, history.changes),
        "heatmaps": lambda: generation_charts.layer_heatmaps(history.records, list(run.config.methods), names, history.changes),
    }
    at_rest = generation_finished(run) or run.state is RunState.PAUSED
    of_step = shown.step if chart == "overview" and shown.step != history.latest else None
    key = ("json", run.id, run.attempt, chart, pace.chart_version(at_rest, len(history.records)), len(history.changes), of_step)
    return {f"figure/{chart}": {"figure": session.shared_cache(key, lambda: json_of(makers[chart]()))}}


def _overviewed(run: Run, shown: ShownIteration) -> Shown:
    """Epochs of generators continue each other, so their curves are not overlaid."""
    period = 0 if counts_epochs(run.config.methods) else run.config.generation.iterations
    return Shown(shown.step, period, shown.records)


def _lines(run: Run, shown: ShownIteration, chart: str) -> list[str]:
    """Text above a chart other than the overview."""
    if chart == "loss":
        return iterations.values(shown.records, shown.label, shown.history.terms)
    if chart == "layer":
        return [f"L_BNS of every layer at {shown.label}. Click a bar to inspect its layer."]
    title = "L_BNS of each BatchNorm layer, on one scale." if chart == "layers" else "L_BNS of each BatchNorm layer."
    return [f"{title} At {shown.label}: {_highest_layers(shown.records, run, shown)}"]


def _highest_layers(records: Mapping[str, Record], run: Run, shown: ShownIteration) -> str:
    """The layer with the highest L_BNS of each method."""
    names, parts = layer_names_of(run, shown), []
    for method, record in records.items():
        values = record.data["layers"]
        worst = max(range(len(values)), key=lambda index: values[index])
        parts.append(f"{method_name(method)}: highest in layer {worst + 1} ({names[worst]}), {values[worst]:.3g}")
    return "; ".join(parts)
