"""Sliders that change the settings of a running generation."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from core.config import GenerationConfig, has_knob, live_knobs
from core.runs.run import Run
from dashboard import session, text
from dashboard.components import problems
from dashboard.forms.knobs import live_sliders
from dashboard.names import method_name
from dashboard.server import rights

_ALL = "all"


def live_values(run: Run, method: str) -> dict[str, float]:
    """Current values of the live knobs of a method: those of the config, updated by live changes."""
    values = {name: getattr(run.config.generation, name) for name in live_knobs(GenerationConfig)}
    for change in session.store().changes(run.id):
        if change["method"] == method:
            values[change["name"]] = change["value"]
    return values


def has_knobs(run: Run) -> bool:
    """Whether the run has sliders: only if this server controls it."""
    return session.manager().controls(run.id)


def draw_knobs(run: Run) -> None:
    """Sliders for one method or all; changes take effect in the next iteration."""
    methods = list(run.config.methods)
    chosen = methods
    if len(methods) > 1:
        names = {_ALL: "All methods", **{method: method_name(method) for method in methods}}
        act_on = st.segmented_control(
            "Apply to",
            list(names),
            default=_ALL,
            required=True,
            format_func=lambda method: names[method],
            key="apply to",
            help="Changes take effect in the next iteration and are marked on the curves with their values.",
        )
        chosen = methods if act_on == _ALL else [act_on]
    known = live_knobs(GenerationConfig)
    if refusal := rights.objection(run):
        st.caption(text.plain(refusal))
    # a knob that only some methods have shows the value of the first such method
    owners = {name: next((method for method in chosen if has_knob(knob, method)), chosen[0]) for name, knob in known.items()}
    live_sliders(
        {name: live_values(run, owner)[name] for name, owner in owners.items()},
        f"live/{run.id}" if chosen == methods else f"live/{run.id}/{chosen[0]}",
        lambda name, key: _change(run, name, key, chosen),
        chosen,
        disabled=known if refusal else (),
    )


def _change(run: Run, name: str, key: str, chosen: Sequence[str]) -> None:
    knob = live_knobs(GenerationConfig)[name]
    with problems.shown(st.toast):
        rights.require([run])
        session.manager().control(run.id).set(name, st.session_state[key], [method for method in chosen if has_knob(knob, method)])
