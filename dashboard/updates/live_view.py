"""How a page follows a run, and what every page says of it: status and controls. Reads the store only."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import streamlit as st

from core.errors import CoreError, RunError
from core.runs.run import Run
from core.runs.state import RunState
from dashboard import session, text
from dashboard.components import elements
from dashboard.updates import socket

REFRESH_SECONDS = 1.0
CHART_SECONDS = 2.0  # curves move slowly, and drawing them costs a browser most; a page that is drawn again costs it more
_SECONDS_FOR_A_STEP = 1.5
_SECONDS_FOR_PICTURES = 0.3
_SOON = 0.2  # of the usual time between two answers
_BADGES = {
    RunState.QUEUED: ("waiting", "gray"),
    RunState.RUNNING: ("running", "blue"),
    RunState.PAUSED: ("paused", "orange"),
    RunState.COMPLETE: ("complete", "green"),
    RunState.STOPPED: ("stopped", "gray"),
    RunState.FAILED: ("failed", "red"),
    RunState.INTERRUPTED: ("interrupted", "red"),
}


class Part(NamedTuple):
    """A part of a page that follows a run, and is streamed to while the run goes on (see stream.py). A page has one at most."""

    name: str
    draw: Callable[[Run, str], None]
    """Puts it on the page, with a text as `made` of the elements that are streamed to (see elements), or "" where none is."""
    pieces: Callable[[Run, Mapping[str, str], session.Watcher], dict[str, dict[str, Any]]]
    """What changes while it stays as it was drawn: key of an element -> what is new of its data. Of the run, the parameters of the page's
    address and who looks."""
    phase: Callable[[Run, Mapping[str, str]], Any] = lambda run, address: None
    """Another value when more has changed, besides the run's state: then it is drawn again."""
    around: Callable[[Run], Any] = lambda run: None
    """Another value when the page around it has to be drawn again, too."""
    until: Callable[[Run], bool] = lambda run: run.state.is_finished()
    """Whether nothing more will change."""
    is_redrawn: Callable[[Mapping[str, str]], bool] = lambda address: False
    """Whether an address shows what cannot be streamed to, and so all is drawn again each time."""
    is_behind: Callable[[Run], bool] = lambda run: False
    """Whether there is more than can be shown yet, so that it is worth asking again soon."""


def follow(part: Part, run: Run) -> None:
    """Draws a part of the page and has it streamed to, until nothing more will change; then the page is drawn again."""

    def whole_page(current: Run) -> tuple[bool, Any]:
        return part.until(current), part.around(current)

    before = whole_page(run)
    ended = before[0]

    @st.fragment
    def region() -> None:
        try:
            current = session.store().run(run.id)
        except RunError:
            st.rerun(scope="app")  # deleted meanwhile, perhaps from another page: the page shows another one
        if whole_page(current) != before:
            st.rerun(scope="app")  # forms, sliders, results
        address = st.query_params.to_dict()
        redraw = part.is_redrawn(address)
        known = _phase(part, current, address)  # before it is drawn: what changes meanwhile is not missed
        part.draw(current, "" if ended or redraw else str(time.time()))
        if not ended:
            milliseconds = round(1000 * (chart_seconds if redraw else stream_seconds)(session.watcher()))
            elements.live(f"live/{run.id}", socket.address(run.id, part.name), known, milliseconds, redraw)

    region()


def news(part: Part, run_id: str, watcher: session.Watcher, query: str) -> dict[str, Any]:
    """What the page of a watcher, at an address with this query, is told of a part when it asks (see stream.py)."""
    again = round(1000 * stream_seconds(watcher))
    try:
        run = session.store().run(run_id)
    except RunError:
        return {"phase": "deleted", "again": again, "pieces": {}}
    address = dict(parse_qsl(query.removeprefix("?")))
    pieces = part.pieces(run, address, watcher)
    if run.state is RunState.RUNNING and part.is_behind(run):
        # a page and a job that keep step could miss every moment at which there is something new to be shown
        again = round(again * _SOON)
    return {"phase": _phase(part, run, address), "again": again, "pieces": {key: json.dumps(piece) for key, piece in pieces.items()}}


def _phase(part: Part, run: Run, address: Mapping[str, str]) -> str:
    """Another text when a page has to be drawn again."""
    controls = session.manager().controls(run.id)
    own = part.until(run), part.around(run), part.phase(run, address)
    paused = controls and session.manager().control(run.id).paused
    return json.dumps([run.state, bool(run.stage), run.attempt, controls, paused, waiting(run), own])


def refreshed(seconds: float | None, draw: Callable[[], None]) -> None:
    """Draws a region of the page, and again every so many seconds, then letting jobs go first; None: only when it is pressed."""
    first = True

    @st.fragment(run_every=seconds)
    def region() -> None:
        nonlocal first
        if not first and seconds is not None:  # somebody waits for a page, and for what a press does
            session.give_way()
        first = False
        draw()

    region()


def stream_seconds(watcher: session.Watcher) -> float:
    """Between two times that a page is streamed to."""
    return REFRESH_SECONDS * session.slowness(watcher)


def chart_seconds(watcher: session.Watcher) -> float:
    """Between two times that curves are drawn, or what cannot be streamed to."""
    return CHART_SECONDS * session.slowness(watcher)


def pace(watcher: session.Watcher, redraw: bool) -> str:
    """How often a page shows what is new, in words. redraw: whether it is drawn again for that."""
    charts = f"every {chart_seconds(watcher):g} s"
    return charts if redraw else f"pictures every {stream_seconds(watcher):g} s, curves {charts}"


def moment(still: bool, records: int, watcher: session.Watcher) -> tuple[bool, int]:
    """Something else when curves are to be drawn again, the same for all who look. still: whether the run rests with so many records."""
    return still, records if still else int(time.monotonic() / chart_seconds(watcher))


def waiting(run: Run) -> int:
    """Runs before it in the line."""
    return session.manager().waiting(run.id) if run.state is RunState.QUEUED else 0


def status(run: Run, made: str) -> None:
    """Name, state, progress with time left, and the buttons that apply. made: see elements."""
    word, colour = _BADGES[run.state]
    by = f" started by {text.plain(run.user)}" if run.user else ""
    again = ", resumed once" if run.attempt == 2 else f", resumed {run.attempt - 1} times" if run.attempt > 1 else ""
    st.markdown(f"**{text.plain(run.name)}** :{colour}-badge[{word}]{by}{again}")
    if run.state is RunState.QUEUED:
        before = waiting(run)
        st.caption(
            f"Waits for {before} run{'s' if before > 1 else ''} before it, then starts by itself." if before else "Starting the engine ..."
        )
    if run.error:
        st.error(text.plain(run.error), icon=":material/error:")
        if run.traceback:
            with st.expander("Traceback"):
                st.code(run.traceback, language="text")
    if not run.state.is_finished() and run.stage:
        elements.words(_progress_key(run), *_progress(run), made=made)
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
        if session.manager().controls(run.id):
            _buttons(run)
        else:
            st.caption("Another process works on this run: it can be watched here, and stopped there.")


def _progress_key(run: Run) -> str:
    """Of the element that shows it."""
    return f"progress/{run.id}"


def _progress(run: Run) -> tuple[list[str], str, float]:
    """How far a run is: lines, no title, and the part that is done, as elements.words takes them."""
    return [f"{run.stage}{_time_left(run)}"], "", min(run.step / run.total, 1.0) if run.total else 0.0


def status_pieces(run: Run, address: Mapping[str, str], watcher: session.Watcher) -> dict[str, dict[str, Any]]:
    """What changes of the status while the run is in one state."""
    return {_progress_key(run): elements.words_data(*_progress(run))} if run.stage else {}


STATUS = Part("status", status, status_pieces)


def _resume(run_id: str) -> None:
    try:
        session.manager().resume(run_id)
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
    control = session.manager().control(run.id)

    def one_step() -> None:
        before = session.store().run(run.id).step, _pictures(run)
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
            help="One iteration of every method, or one training step; then rest.",
        )
        st.button(
            "Stop", icon=":material/stop:", key="stop", on_click=control.stop, help="Ends the run; what it has made so far stays visible."
        )


def _wait_for_step(run: Run, step: int, pictures: list[int]) -> None:
    """Returns when every method has taken its step, so that the page shows it at once; or after a while, as a step may take long.

    step, pictures: as they were before.
    """
    generates = run.stage == "generation"
    methods = len(run.config.methods) if generates else 1
    _wait(lambda: session.store().run(run.id).step >= step + methods, _SECONDS_FOR_A_STEP)
    if generates:
        # written after the figures, and not at all if the last ones are very new
        _wait(lambda: all(new != old for new, old in zip(_pictures(run), pictures)), _SECONDS_FOR_PICTURES)


def _wait(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not condition():
        time.sleep(0.02)


def _pictures(run: Run) -> list[int]:
    """What changes with the newest pictures of each method."""
    return [session.store().frames.version(run.id, method) for method in run.config.methods]
