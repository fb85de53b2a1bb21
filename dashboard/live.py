"""Fragments that follow a run: status and controls, both lanes with their images and curves, the training. They read the store only."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cache

import streamlit as st

from core.config import LIVE_KNOBS
from core.errors import CoreError
from core.runs.state import RunState
from core.runs.store import Run
from dashboard import charts, forms, images, state

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
    """Draws each function of the run, again and again (seconds) `until` nothing more will change, and then once."""
    finished = until(run)

    @st.fragment(run_every=None if finished else every)
    def region() -> None:
        current = state.store().run(run.id)
        if until(current) and not finished:
            st.rerun(scope="app")  # the page around it changes too: forms, sliders, results
        for function in draw:
            function(current)

    region()


def generation_finished(run: Run) -> bool:
    """Whether all images are made, so that pictures and curves of the generation stay as they are."""
    return run.state.is_finished() or (run.stage != "generation" and bool(state.records(run.id, "generation")))


def status(run: Run) -> None:
    """Name, state, progress with time left, and the buttons that apply."""
    text, colour = _BADGES[run.state]
    st.markdown(f"**{_plain(run.name)}** :{colour}-badge[{text}]")
    if run.state is RunState.QUEUED:
        before = state.manager().waiting(run.id)
        st.caption(
            f"Waits for {before} run{'s' if before > 1 else ''} before it, then starts by itself." if before else "Starting the engine ..."
        )
    if run.error:
        st.error(_plain(run.error), icon=":material/error:")
        if run.traceback:
            with st.expander("Traceback"):
                st.code(run.traceback, language="text")
    if not run.state.is_finished() and run.stage:
        st.progress(run.step / run.total if run.total else 0.0, text=f"{run.stage}{_time_left(run)}")
    if not run.state.is_finished() and state.manager().controls(run.id):
        _buttons(run)


def _time_left(run: Run) -> str:
    if not run.total or run.stage_started is None:
        return " ..."
    done = f": {run.step:,} of {run.total:,} steps"
    if run.state is RunState.PAUSED or run.step < 3:
        return done
    seconds = (time.time() - run.stage_started) / run.step * (run.total - run.step)
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
        st.toast(str(error), icon=":material/error:")


def lanes(run: Run) -> None:
    """The images of each optimizer side by side, at the same iteration."""
    optimizers = list(run.config.optimizers)
    kept = [state.store().frame_steps(run.id, lane) for lane in optimizers]
    common = sorted(set.intersection(*map(set, kept))) if kept and all(kept) else []
    step = None
    if run.state.is_finished() and len(common) > 1:
        step = st.select_slider("Iteration", common, value=common[-1], key=f"frame/{run.id}", help="The iterations whose images were kept.")
    places = st.columns(len(optimizers))
    records = state.records(run.id, "generation")
    for place, lane in zip(places, optimizers):
        with place:
            frame = state.store().frame(run.id, lane, step)
            st.markdown(f"**{charts.lane_name(lane)}**")
            if frame is None:
                st.caption("Images appear here with the first iteration.")
                continue
            at, pixels, labels = frame
            record = next((r for r in reversed(records) if r.lane == lane and r.step == at), None)
            per_batch = run.config.generation.iterations
            batches = len(run.config.generation.batches)
            text = f"batch {(at - 1) // per_batch + 1} of {batches}, iteration {(at - 1) % per_batch + 1} of {per_batch}"
            if record is not None:
                text += f" · L_BNS {record.data['bns']:.1f} · teacher agrees on {record.data['agreement']:.0f} %"
            st.caption(text)
            st.html(
                images.sheet_html(pixels, labels, classes(run.config.generation.model), f"synthetic images by {charts.lane_name(lane)}")
            )


def losses(run: Run) -> None:
    """Curves of the loss and its parts, and L_BNS by layer."""
    records = state.records(run.id, "generation")
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
        st.plotly_chart(charts.loss_figure(records, part, state.store().changes(run.id)), key="loss chart", config=_CHART)
    names = layer_names(run.config.generation.model)
    with right:
        layer = st.selectbox("Layer", names, format_func=lambda name: f"{names.index(name) + 1}: {name}", key="layer")
        st.plotly_chart(charts.layer_figure(records, names, layer), key="layer chart", config=_CHART)
    ends = charts.heatmap_ends(records)
    for place, lane in zip(st.columns(len(run.config.optimizers)), run.config.optimizers):
        with place:
            st.plotly_chart(charts.layer_heatmap(records, lane, names, ends), key=f"heatmap {lane}", config=_CHART)


def training(run: Run) -> None:
    """Curves of the training, one for each optimizer and bit width."""
    records = state.records(run.id, "training")
    if not records:
        return
    left, right = st.columns(2)
    with left:
        st.plotly_chart(charts.training_figure(records, "total"), key="training loss", config=_CHART)
    with right:
        st.plotly_chart(charts.training_figure(records, "agreement"), key="training agreement", config=_CHART)


_CHART = {"displaylogo": False, "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d"]}
CHART_CONFIG = _CHART


@cache
def layer_names(model: str) -> Sequence[str]:
    """Names of the BatchNorm layers of a network."""
    # torch takes seconds to import: only a page that shows a run waits for it
    import torch

    from core.models.full_precision import batch_norm_layers, build_architecture, find_model

    spec = find_model(model)[1]
    with torch.random.fork_rng(devices=[]):
        return list(batch_norm_layers(build_architecture(spec.architecture, len(spec.classes))))


@cache
def classes(model: str) -> Sequence[str]:
    """Class names of a network."""
    from core.models.registry import MODELS

    if model in MODELS:
        return MODELS[model][1].classes
    from core.models.full_precision import find_model

    return find_model(model)[1].classes


def _plain(text: str) -> str:
    """Text from outside, such as a folder's name, with what Markdown would read as markup made harmless."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]()#+-.!|<>$:~" else c for c in text)
