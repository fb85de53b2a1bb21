"""Fragments that follow a run: status and controls, both lanes with their images and curves, the training. They read the store only."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from typing import Any

import streamlit as st

from core.config import LIVE_KNOBS
from core.errors import CoreError, RunError
from core.runs.state import RunState
from core.runs.store import Record, Run
from dashboard import charts, forms, images, state, text

REFRESH_SECONDS = 1.0
CHART_SECONDS = 2.0  # curves move slowly, and drawing them is most of what a refresh costs
_BADGES = {
    RunState.QUEUED: ("waiting", "gray"),
    RunState.RUNNING: ("running", "blue"),
    RunState.PAUSED: ("paused", "orange"),
    RunState.COMPLETE: ("complete", "green"),
    RunState.STOPPED: ("stopped", "gray"),
    RunState.FAILED: ("failed", "red"),
    RunState.INTERRUPTED: ("interrupted", "red"),
}


def follow(
    run: Run,
    *draw: Callable[[Run], None],
    every: float = REFRESH_SECONDS,
    until: Callable[[Run], bool] = lambda run: run.state.is_finished(),
) -> None:
    """Draws each function of the run, again and again (seconds) `until` nothing more will change, and then once.

    Of a run that waits in the line only the status is drawn again: nothing else moves before it begins. With many pages open each is
    drawn less often, so that the job keeps its pace.
    """

    def phase(current: Run) -> tuple[bool, bool]:
        return until(current), current.state is RunState.QUEUED

    before = phase(run)
    rests = before[0] or (before[1] and status not in draw)
    slowness = state.slowness()

    @st.fragment(run_every=None if rests else every * slowness)
    def region() -> None:
        state.give_way()
        try:
            current = state.store().run(run.id)
        except RunError:
            st.rerun(scope="app")  # deleted meanwhile, perhaps from another page: the page shows another one
        if phase(current) != before or (not rests and state.slowness() != slowness):
            st.rerun(scope="app")  # the page around it changes too: forms, sliders, results
        for function in draw:
            function(current)

    region()


def generation_finished(run: Run) -> bool:
    """Whether all images are made, so that pictures and curves of the generation stay as they are."""
    return run.state.is_finished() or (
        run.stage != "generation" and state.store().result(run.id, f"generation/{run.config.optimizers[-1]}") is not None
    )


def status(run: Run) -> None:
    """Name, state, progress with time left, and the buttons that apply."""
    word, colour = _BADGES[run.state]
    by = f" started by {text.plain(run.user)}" if run.user else ""
    again = ", resumed once" if run.attempt == 2 else f", resumed {run.attempt - 1} times" if run.attempt > 1 else ""
    st.markdown(f"**{text.plain(run.name)}** :{colour}-badge[{word}]{by}{again}")
    if run.state is RunState.QUEUED:
        before = state.manager().waiting(run.id)
        st.caption(
            f"Waits for {before} run{'s' if before > 1 else ''} before it, then starts by itself." if before else "Starting the engine ..."
        )
    if run.error:
        st.error(text.plain(run.error), icon=":material/error:")
        if run.traceback:
            with st.expander("Traceback"):
                st.code(run.traceback, language="text")
    if not run.state.is_finished() and run.stage:
        st.progress(run.step / run.total if run.total else 0.0, text=f"{text.plain(run.stage)}{_time_left(run)}")
    if run.state.can_resume():
        st.button(
            "Resume",
            icon=":material/play_arrow:",
            key=f"go on {run.id}",
            on_click=_resume,
            args=(run.id,),
            help="Goes on from the last checkpoint, or from the beginning where there is none, and ends as if nothing had happened.",
        )
    elif not run.state.is_finished():
        if state.manager().controls(run.id):
            _buttons(run)
        else:
            st.caption("Another process works on this run: it can be watched here, and stopped there.")


def _resume(run_id: str) -> None:
    try:
        state.manager().resume(run_id)
    except CoreError as error:
        st.toast(text.error(error), icon=":material/error:")


def _time_left(run: Run) -> str:
    if not run.total or run.stage_started is None:
        return " ..."
    done = f": {run.step:,} of {run.total:,} steps"
    taken = run.step - run.stage_done
    if run.state is RunState.PAUSED or taken < 3:
        return done
    seconds = (time.time() - run.stage_started) / taken * (run.total - run.step)
    return f"{done}, about {seconds / 60:.0f} min left" if seconds > 90 else f"{done}, about {seconds:.0f} s left"


def _buttons(run: Run) -> None:
    control = state.manager().control(run.id)
    with st.container(horizontal=True):
        if control.paused:
            st.button("Resume", icon=":material/play_arrow:", key="resume", on_click=control.resume)
        else:
            st.button("Pause", icon=":material/pause:", key="pause", on_click=control.pause)
        st.button(
            "One step",
            icon=":material/skip_next:",
            key="step",
            on_click=control.step,
            help="One iteration of every lane, or one training step; then rest.",
        )
        st.button(
            "Stop", icon=":material/stop:", key="stop", on_click=control.stop, help="Ends the run; what it has made so far stays visible."
        )


def live_values(run: Run) -> dict[str, float]:
    """The knobs as they stand: those of the config, with what was changed since."""
    values = {name: getattr(run.config.generation, name) for name in LIVE_KNOBS}
    for change in state.store().changes(run.id):
        values[change["name"]] = change["value"]
    return values


def turn(run: Run) -> None:
    """Sliders that act on the next iteration of the run."""
    st.caption("These act on the next iteration of the running job; every change is marked on the curves.")
    forms.live_sliders(live_values(run), f"live/{run.id}", lambda name, key: _turned(run, name, key))


def _turned(run: Run, name: str, key: str) -> None:
    lanes = {"epsilon": ["mi-fgsm"], "mu": ["mi-fgsm"], "lr": ["adam"]}.get(name, list(run.config.optimizers))
    try:
        state.manager().control(run.id).set(name, st.session_state[key], lanes)
    except CoreError as error:
        st.toast(text.error(error), icon=":material/error:")


def lanes(run: Run) -> None:
    """The images of each optimizer side by side, at the same iteration."""
    optimizers = list(run.config.optimizers)
    kept = [state.store().frame_steps(run.id, lane) for lane in optimizers]
    common = sorted(set.intersection(*map(set, kept))) if kept and all(kept) else []
    step = None
    if run.state.is_finished() and len(common) > 1:
        step = st.select_slider("Iteration", common, value=common[-1], key=f"frame/{run.id}", help="The iterations whose images were kept.")
    places = st.columns(len(optimizers))
    for place, lane in zip(places, optimizers):
        with place:
            st.markdown(f"**{text.plain(charts.lane_name(lane))}**")
            version = state.store().frame_version(run.id, lane, step)
            drawn = state.kept(("frame", run.id, lane, step, version), partial(_frame, run, lane, step))
            if drawn is None:
                st.caption("Images appear here with the first iteration.")
                continue
            at, sheet, record = drawn
            per_batch = run.config.generation.iterations
            batches = len(run.config.generation.batches)
            caption = f"batch {(at - 1) // per_batch + 1} of {batches}, iteration {(at - 1) % per_batch + 1} of {per_batch}"
            if record is not None:
                caption += f" · L_BNS {record.data['bns']:.1f} · teacher agrees on {record.data['agreement']:.0f} %"
            st.caption(caption)
            st.html(sheet)


def _frame(run: Run, lane: str, step: int | None) -> tuple[int, str, Record | None] | None:
    """Step, contact sheet and record of the latest or a kept moment."""
    frame = state.store().frame(run.id, lane, step)
    if frame is None:
        return None
    at, pixels, labels = frame
    names = classes(run.config.generation.model, labels)
    sheet = images.sheet_html(pixels, labels, names, f"synthetic images by {charts.lane_name(lane)}")
    record = next((r for r in reversed(state.records(run, "generation")) if r.lane == lane and r.step == at), None)
    return at, sheet, record


def _chart(run: Run, records: list[Record], what: tuple, make: Callable[[], Any], key: str) -> None:
    """A figure of these records, drawn once for all who look at it within a refresh. what: names it among those of the run."""
    moment = len(records) if run.state.is_finished() else int(time.monotonic() / CHART_SECONDS)
    figure = state.kept(("figure", run.id, run.attempt, moment, what), make)
    st.plotly_chart(figure, key=key, config=_CHART)


def losses(run: Run) -> None:
    """Curves of the loss and its parts, and L_BNS by layer."""
    records = state.records(run, "generation")
    if not records:
        st.caption("Loss curves appear here with the first iteration.")
        return
    left, right = st.columns(2)
    with left:
        part = st.selectbox(
            "Curve",
            list(charts.PARTS),
            format_func=lambda name: charts.PARTS[name],
            key="part",
            help="Each tooth is a batch that starts from new noise.",
        )
        _chart(
            run,
            records,
            ("loss", part),
            lambda: charts.loss_figure(records, part, state.store().changes(run.id)),
            "loss chart",
        )
    names = layer_names(run, len(records[0].data["layers"]))
    with right:
        layer = st.selectbox("Layer", names, format_func=lambda name: f"{names.index(name) + 1}: {name}", key="layer")
        _chart(run, records, ("layer", layer), lambda: charts.layer_figure(records, names, layer), "layer chart")
    for place, lane in zip(st.columns(len(run.config.optimizers)), run.config.optimizers):
        with place:
            _chart(
                run,
                records,
                ("heatmap", lane),
                partial(_heatmap, records, lane, names),
                f"heatmap {lane}",
            )


def _heatmap(records: list[Record], lane: str, names: Sequence[str]) -> Any:
    return charts.layer_heatmap(records, lane, names, charts.heatmap_ends(records))


def training(run: Run) -> None:
    """Curves of the training, one for each optimizer and bit width."""
    records = state.records(run, "training")
    if not records:
        return
    left, right = st.columns(2)
    with left:
        _chart(run, records, ("total",), lambda: charts.training_figure(records, "total"), "training loss")
    with right:
        _chart(run, records, ("agreement",), lambda: charts.training_figure(records, "agreement"), "training agreement")


_CHART = {"displaylogo": False, "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d"]}
CHART_CONFIG = _CHART


def layer_names(run: Run, count: int) -> Sequence[str]:
    """Names of the `count` BatchNorm layers of the run's network; numbers where they are not known."""
    # torch takes seconds to import, and the server does without it: only a run of an earlier version does not say what its layers are
    names = state.store().result(run.id, "layers") or _layer_names(run.config.generation.model)
    return names if len(names) == count else [f"layer {index + 1}" for index in range(count)]


@cache
def _layer_names(model: str) -> Sequence[str]:
    from core.models.full_precision import batch_norm_names_of

    try:
        return batch_norm_names_of(model)
    except CoreError:
        return []


def classes(model: str, labels: Iterable[int]) -> Sequence[str]:
    """Class names of a network, enough for these labels; numbers where its file is gone."""
    names = _classes(model)
    return [*names, *(f"class {index}" for index in range(len(names), max(map(int, labels), default=-1) + 1))]


@cache
def _classes(model: str) -> Sequence[str]:
    from core.models.registry import MODELS

    if model in MODELS:
        return MODELS[model][1].classes
    from core.models.full_precision import find_model

    try:
        return find_model(model)[1].classes
    except CoreError:
        return ()
