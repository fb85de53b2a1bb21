"""Fragments that follow a run: status and controls, both lanes with their images and curves, the training. They read the store only."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

import streamlit as st

from core.errors import CoreError, RunError
from core.runs.state import RunState
from core.runs.store import Record, Run
from dashboard import elements, figures, state, text
from dashboard.chart_style import json_of

REFRESH_SECONDS = 1.0
CHART_SECONDS = 2.0  # curves move slowly, and drawing them is most of what a refresh costs
_SECONDS_FOR_A_STEP = 1.5
_SECONDS_FOR_PICTURES = 0.3
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
    every: float | None = REFRESH_SECONDS,
    until: Callable[[Run], bool] = lambda run: run.state.is_finished(),
    page_shows: Callable[[Run], Any] = lambda run: None,
) -> None:
    """Draws each function of the run, again and again (seconds) `until` nothing more will change, and then once.

    every: None if one of them says itself when to draw again. page_shows: what of the run the page around it was drawn for, and is drawn
    again for when it changes.

    Of a run that waits in the line only the status is drawn again: nothing else moves before it begins. With many pages open each is
    drawn less often, so that the job keeps its pace.
    """

    def phase(current: Run) -> tuple[bool, bool, Any]:
        return until(current), current.state is RunState.QUEUED, page_shows(current)

    before = phase(run)
    slowness = state.slowness(state.watcher())
    rests = before[0] or (before[1] and status not in draw)
    seconds = None if every is None or rests else every * slowness

    def region() -> None:
        try:
            current = state.store().run(run.id)
        except RunError:
            st.rerun(scope="app")  # deleted meanwhile, perhaps from another page: the page shows another one
        if phase(current) != before or (seconds is not None and state.slowness(state.watcher()) != slowness):
            st.rerun(scope="app")  # the page around it changes too: forms, sliders, results
        for function in draw:
            function(current)

    refreshed(seconds, region)


def refreshed(seconds: float | None, draw: Callable[[], None]) -> None:
    """Draws a region of the page, and again every so many seconds, then letting jobs go first; None: only when it is pressed."""
    first = True

    @st.fragment(run_every=seconds)
    def region() -> None:
        nonlocal first
        if not first and seconds is not None:  # somebody waits for a page, and for what a press does
            state.give_way()
        first = False
        draw()

    region()


def stream_seconds(watcher: state.Watcher) -> float:
    """Between two times that a page is streamed to."""
    return REFRESH_SECONDS * state.slowness(watcher, state.CORES_BESIDE_A_STREAM)


def _chart_seconds(watcher: state.Watcher) -> float:
    return CHART_SECONDS * state.slowness(watcher)


def pace(watcher: state.Watcher) -> str:
    """How often a page is streamed to, in words."""
    return f"pictures every {stream_seconds(watcher):g} s, curves every {_chart_seconds(watcher):g} s"


def turn(watcher: state.Watcher) -> int:
    """Another number when curves of a run that goes on are to be drawn again, the same for all who look."""
    return int(time.monotonic() / _chart_seconds(watcher))


def status(run: Run, made: str = "") -> None:
    """Name, state, progress with time left, and the buttons that apply. made: see elements."""
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
        elements.words(progress_key(run), *progress(run), made=made)
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


def progress_key(run: Run) -> str:
    """Of the element that shows it."""
    return f"progress/{run.id}"


def progress(run: Run) -> tuple[list[str], str, float]:
    """How far a run is: lines, no title, and the part that is done, as elements.words takes them."""
    return [f"{run.stage}{_time_left(run)}"], "", min(run.step / run.total, 1.0) if run.total else 0.0


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
    return f"{done}, about {_duration(seconds)} left"


def _duration(seconds: float) -> str:
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds > 1.5 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _buttons(run: Run) -> None:
    control = state.manager().control(run.id)

    def one_step() -> None:
        before = state.store().run(run.id).step, _pictures(run)
        control.step()
        _wait_for_step(run, *before)
        elements.follow_newest(run.id)

    with st.container(horizontal=True):
        if control.paused:
            st.button("Resume", icon=":material/play_arrow:", key="resume", on_click=control.resume)
        else:
            st.button("Pause", icon=":material/pause:", key="pause", on_click=control.pause)
        st.button(
            "One step",
            icon=":material/skip_next:",
            key="step",
            on_click=one_step,
            help="One iteration of every lane, or one training step; then rest.",
        )
        st.button(
            "Stop", icon=":material/stop:", key="stop", on_click=control.stop, help="Ends the run; what it has made so far stays visible."
        )


def _wait_for_step(run: Run, step: int, pictures: list[int]) -> None:
    """Returns when every lane has taken its step, so that the page shows it at once; or after a while, as a step may take long.

    step, pictures: as they were before.
    """
    generates = run.stage == "generation"
    lanes = len(run.config.optimizers) if generates else 1
    _wait(lambda: state.store().run(run.id).step >= step + lanes, _SECONDS_FOR_A_STEP)
    if generates:
        # written after the figures, and not at all if the last ones are very new
        _wait(lambda: all(new != old for new, old in zip(_pictures(run), pictures)), _SECONDS_FOR_PICTURES)


def _wait(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not condition():
        time.sleep(0.02)


def _pictures(run: Run) -> list[int]:
    """What changes with the newest pictures of each lane."""
    return [state.store().frame_version(run.id, lane) for lane in run.config.optimizers]


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


def chart(run: Run, records: list[Record], what: tuple, make: Callable[[], Any], key: str) -> None:
    """A figure of these records, drawn once for all who look at it within a refresh. what: names it among those of the run."""
    moment = len(records) if run.state.is_finished() else turn(state.watcher())
    figure = state.kept(("figure", run.id, run.attempt, moment, what), lambda: json_of(make()))
    figures.show(figure, key, f"{run.name} {key}")
