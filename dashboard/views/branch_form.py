"""The form that starts a branch: a run goes on from one of its iterations with other values of its live knobs."""

from __future__ import annotations

from typing import Any

import streamlit as st

from core.config import GenerationConfig, has_knob, live_knobs
from core.generation.methods import METHODS
from core.runs import branches
from core.runs.run import Run
from core.runs.state import RunState
from dashboard import session, text
from dashboard.components import problems
from dashboard.forms.knobs import live_sliders
from dashboard.names import method_name
from dashboard.server import rights
from dashboard.tables import iterations


def draw(run: Run, shown: int, latest: int, count: int) -> None:
    """The button that opens the form, or the form. shown: the step that the page shows; latest: the last one with images; count: of the
    branches so far.
    """
    if _open_key(run) in st.session_state:
        with st.container(border=True, key="branch form"):
            _form(run, st.session_state[_open_key(run)], latest)
        return
    refusal = _refusal(run, count)
    st.button(
        "Try other values",
        icon=":material/fork_right:",
        key="try other values",
        on_click=_open,
        args=(run, shown),
        disabled=bool(refusal),
        help=text.plain(refusal)
        or "Goes on from the shown iteration with other values, to the end of its batch, beside the run: with the same noise, labels and "
        "momentum. The run stays as it is.",
    )


def _open_key(run: Run) -> str:
    return f"branch form/{run.id}"


def _open(run: Run, shown: int) -> None:
    st.session_state[_open_key(run)] = shown


def _close(run: Run) -> None:
    st.session_state.pop(_open_key(run), None)


def _refusal(run: Run, count: int) -> str:
    """Why no branch can be started; "" if one can."""
    if reason := branches.why_not(run):
        return f"This run cannot have branches: {reason}."
    if run.config.generation.iterations == 1:
        return "A batch of this run has a single iteration."
    if count >= branches.MOST:
        return f"A run has at most {branches.MOST} branches: remove one first."
    return rights.objection(run)


def _form(run: Run, shown: int, latest: int) -> None:
    """From which iteration, and the live knobs with their values there."""
    st.markdown("**Try other values**")
    at = _choose_iteration(run, shown, latest)
    methods = [method for method in run.config.methods if not METHODS[method].is_reference]
    before = values_at(run, methods, at)
    chosen = live_sliders(before, f"branch/{run.id}/{at}", methods=methods)
    changed = {name: value for name, value in chosen.items() if value != before[name]}
    notes = ["The run pauses until the branch is computed."] if run.state is RunState.RUNNING else []
    if again := [method_name(method) for method in methods if METHODS[method].has_generator]:
        notes.append(f"{' and '.join(again)}: computed again from the first epoch, because all epochs are one training.")
    if notes:
        st.caption(text.plain(" ".join(notes)))
    with st.container(horizontal=True):
        label = text.plain(f"Start: {branches.branch_name(run.config, at, changed)}") if changed else "Start"
        why_not = None if changed else "Move a slider first."
        if st.button(label, type="primary", key="start branch", disabled=not changed, help=why_not):
            with problems.shown():
                rights.require([run])
                session.manager().branch(run.id, at, changed, rights.user())
                _close(run)
                st.rerun(scope="app")
        st.button("Cancel", key="cancel branch", on_click=_close, args=(run,))


def _choose_iteration(run: Run, shown: int, latest: int) -> int:
    """A slider over the iterations of the shown batch that are followed by another one; returns the step."""
    per_batch = run.config.generation.iterations
    batch = (shown - 1) // per_batch
    last = min(per_batch - 1, latest - batch * per_batch)
    iteration = (shown - 1) % per_batch + 1
    start = iteration if iteration <= last else max(1, last // 2)  # nothing follows the last one: half of them, to see a difference
    where = f" ({iterations.group_word(run)} {batch + 1})" if len(run.config.generation.batches) > 1 else ""
    if last > 1:
        start = st.slider(f"From iteration{where}", 1, last, start, key=f"branch iteration/{run.id}/{shown}", width=350)
    return batch * per_batch + start


def values_at(run: Run, methods: list[str], at: int) -> dict[str, float]:
    """Values of the live knobs that the step after `at` had, each of the first method that has it."""
    found = {}
    changes = session.store().changes(run.id)
    for name, knob in live_knobs(GenerationConfig).items():
        method = next((one for one in methods if has_knob(knob, one)), "")
        values = [change["value"] for change in changes if (change["method"], change["name"]) == (method, name) and change["step"] <= at]
        kind: Any = type(knob.default)
        found[name] = kind([getattr(run.config.generation, name), *values][-1])
    return found
