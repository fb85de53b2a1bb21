"""State, progress and buttons of a run, shown on every page that follows one. Reads the store only."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial

import streamlit as st

from core.reporting import WARNING
from core.runs import outlook
from core.runs.control import LocalControl
from core.runs.run import Run
from core.runs.state import RunState
from dashboard import session, text
from dashboard.components import elements, problems
from dashboard.forms import new_run
from dashboard.server import rights
from dashboard.updates.live_view import Values, View
from dashboard.views import headline

_SECONDS_FOR_A_STEP = 1.5
_SECONDS_FOR_IMAGES = 0.3
_BADGES = {
    RunState.QUEUED: ("waiting", "gray"),
    RunState.RUNNING: ("running", "blue"),
    RunState.PAUSED: ("paused", "orange"),
    RunState.COMPLETE: ("complete", "green"),
    RunState.STOPPED: ("stopped", "gray"),
    RunState.FAILED: ("failed", "red"),
    RunState.INTERRUPTED: ("interrupted", "red"),
}


def _progress_key(run: Run) -> str:
    return f"progress/{run.id}"


def values(run: Run, address: Mapping[str, str]) -> Values:
    """What happens now and next, and the progress of the whole run; nothing if the run is finished."""
    if run.state.is_finished():
        return {}
    if run.state is RunState.QUEUED or not run.stage:
        return {_progress_key(run): elements.text_block_data([_beginning(run)], progress=0.0)}
    at = outlook.position(run)
    known = session.store().results_of([run.id], outlook.SPEEDS).get(run.id, {})
    words = outlook.in_words(run.config, at, known, paused=run.state is RunState.PAUSED)
    return {_progress_key(run): elements.text_block_data([words], progress=outlook.done_share(run.config, at) or 0.0)}


def waiting(run: Run) -> int:
    """Number of runs that are computed before this one."""
    return session.manager().waiting(run.id) if run.state is RunState.QUEUED else 0


def draw(run: Run, values: Values) -> None:
    """The line of a run, what it achieved, and its problems."""
    draw_line(run, values)
    draw_result(run)
    draw_warnings(run)


def draw_line(run: Run, values: Values, more: Callable[[], None] | None = None) -> None:
    """Name, state, progress with remaining time, and the buttons that apply. more: draws another button."""
    word, color = ("pausing", "orange") if _pausing(run) else _BADGES[run.state]
    by = f"started by {text.plain(run.user)}" if run.user else ""
    resumed = "resumed once" if run.attempt == 2 else f"resumed {run.attempt - 1} times" if run.attempt > 1 else ""
    notes = f" :small[{', '.join(filter(None, (by, resumed)))}]" if by or resumed else ""
    with st.container(horizontal=True, vertical_alignment="center", key="status line"):
        st.markdown(f"**{text.plain(run.name)}**", width="content")
        st.markdown(f":{color}-badge[{word}]{notes}", width="content")
        if _progress_key(run) in values:
            elements.text_block(_progress_key(run), values[_progress_key(run)], clipped=True)
        with st.container(horizontal=True, key="run buttons", width="content"):
            _buttons(run)
            if run.state is RunState.FAILED:
                _start_again(run)
            if more is not None:
                more()


def draw_result(run: Run) -> None:
    """The error or the headline of a finished run; of another process, what can be done here."""
    if run.error:
        st.error(text.plain(run.error), icon=":material/error:")
        if run.traceback:
            with st.expander("Traceback", key="traceback"):
                st.code(run.traceback, language="text")
    if run.state.is_finished():
        headline.draw(run)
    elif not session.manager().controls(run.id):
        st.caption("This run belongs to another process: you can follow it here and stop it there.")


def draw_warnings(run: Run) -> None:
    """What the engine warned of; several warnings are folded, because they would push the page out of sight."""
    sentences = [text.plain(sentence) for sentence in session.store().results_of([run.id], [WARNING]).get(run.id, {}).values()]
    if len(sentences) == 1:
        st.warning(sentences[0], icon=":material/warning:")
    elif sentences:
        with st.expander(f"{len(sentences)} warnings", icon=":material/warning:", key=f"warnings {run.id}"):
            for sentence in sentences:
                st.markdown(sentence)


STATUS = View("status", values, draw)


def _pausing(run: Run) -> bool:
    """Whether a pause was asked for, which takes effect at the next step, or after a stage without steps."""
    return run.state is RunState.RUNNING and session.manager().pauses(run.id)


def _act(run: Run, action: Callable[[], None]) -> None:
    """Does what a button says, if the user still may, and the run is still there."""
    with problems.shown(st.toast):
        rights.require([run])
        action()


def _beginning(run: Run) -> str:
    """Of a run that computes nothing yet."""
    before = waiting(run)
    return f"Waiting for {before} earlier run{'s' if before > 1 else ''}." if before else "Starting ..."


def _buttons(run: Run) -> None:
    """Resume, or Pause, One step and Stop; none for a run of another process."""
    refusal = rights.objection(run)

    def button(label: str, icon: str, action: Callable[[], None], help: str | None = None, key: str = "") -> None:
        key = key or label.lower().removeprefix("one ")
        st.button(label, icon=icon, key=key, on_click=_act, args=(run, action), disabled=bool(refusal), help=text.plain(refusal) or help)

    if run.state.can_resume():
        same = "Continues from the last resume state, or from the start. The result is the same as without the interruption."
        button("Resume", ":material/play_arrow:", lambda: session.manager().resume(run.id), same, f"resume {run.id}")
    elif not run.state.is_finished() and session.manager().controls(run.id):
        # each asks for the control when it is pressed: the run may end while this is drawn
        control = partial(session.manager().control, run.id)
        if run.state is RunState.QUEUED:
            button("Stop", ":material/stop:", lambda: control().stop(), "Leaves the queue. The run can be resumed.")
            return
        if session.manager().pauses(run.id):
            button("Resume", ":material/play_arrow:", lambda: control().resume())
        else:
            button("Pause", ":material/pause:", lambda: control().pause())
        one_step = "One iteration of every method, or one training step, then pause."
        button("One step", ":material/skip_next:", lambda: _take_step(run, control()), one_step)
        button("Stop", ":material/stop:", lambda: control().stop(), "Ends the run. Its results so far are kept, and it can be resumed.")


def _start_again(run: Run) -> None:
    if st.button("Change settings and start again", icon=":material/replay:", key=f"again {run.id}"):
        new_run.start_again(run)


def _take_step(run: Run, control: LocalControl) -> None:
    before = session.store().run(run.id).step, _image_versions(run)
    control.step()
    _wait_for_step(run, *before)
    elements.follow_newest(run.id)


def _wait_for_step(run: Run, step: int, versions: list[int]) -> None:
    """Waits until every method has taken a step, so that the page shows it immediately; returns after a time limit if steps are slow.

    step, versions: those before the step.
    """
    generates = run.stage == "generation"
    methods = len(run.config.methods) if generates else 1
    _wait(lambda: session.store().run(run.id).step >= step + methods, _SECONDS_FOR_A_STEP)
    if generates:
        # images are saved after the records, and skipped if the last ones are very recent
        _wait(lambda: all(new != old for new, old in zip(_image_versions(run), versions)), _SECONDS_FOR_IMAGES)


def _wait(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not condition():
        time.sleep(0.02)


def _image_versions(run: Run) -> list[int]:
    """Version of the newest images of each method."""
    return [session.store().frames.version(run.id, method) for method in run.config.methods]
