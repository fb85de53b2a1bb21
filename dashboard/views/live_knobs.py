"""Sliders that change the settings of a running generation, each with the course of its value; the values alone once it has ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import Field
from typing import Any

import streamlit as st

from core.config import GenerationConfig, has_knob, help_text, label, live_knobs
from core.runs.run import Run
from core.runs.state import RunState
from dashboard import session, text
from dashboard.charts.style import color
from dashboard.components import elements, problems
from dashboard.forms.knobs import slider_options
from dashboard.names import knob_symbol, method_name
from dashboard.server import rights
from dashboard.tables import iterations
from dashboard.updates.live_view import Values

_ALL = "all"


def _key(run: Run) -> str:
    return f"knobs/{run.id}"


def values(run: Run, ended: bool) -> Values:
    """The live knobs of all methods together and of each; nothing if no method has one, or if this server does not control the run.

    ended: whether the generation has ended, so that nothing can be changed.
    """
    if not any(live_knobs(GenerationConfig, method) for method in run.config.methods):
        return {}
    if not ended and not session.manager().controls(run.id):
        return {}
    changes = session.store().changes(run.id)
    methods = run.config.methods
    groups = {_ALL: list(methods), **({method: [method] for method in methods} if len(methods) > 1 else {})}
    return {_key(run): {"knobs": {name: _knobs(run, own, changes) for name, own in groups.items()}}}


def _knobs(run: Run, methods: Sequence[str], changes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The knobs that one of the methods has. One that several have shows the value of the first of them."""
    found = []
    for name, knob in live_knobs(GenerationConfig).items():
        owners = [method for method in methods if has_knob(knob, method)]
        if owners:
            start = getattr(run.config.generation, name)
            points = {
                method: [(0, start), *((c["step"], c["value"]) for c in changes if c["method"] == method and c["name"] == name)]
                for method in owners
            }
            found.append(_knob(knob, start, points))
    return found


def _knob(knob: Field, start: float, points: Mapping[str, Sequence[tuple[int, float]]]) -> dict[str, Any]:
    """One knob as `elements.knobs` takes it. points: method -> the steps before which it was set, and its values, from the start."""
    first = next(iter(points.values()))
    return {
        "name": knob.name,
        "title": label(knob),
        "symbol": knob_symbol(knob.name),
        "help": help_text(GenerationConfig, knob.name),
        "options": slider_options(knob, [value for own in points.values() for _, value in own]),
        "value": first[-1][1],
        "start": start,
        "previous": first[-2][1] if len(first) > 1 else None,
        "since": first[-1][0] + 1 if len(first) > 1 else None,
        "lines": [[color(method), own] for method, own in points.items()],
    }


def draw(run: Run, values: Values, ended: bool) -> None:
    """The panel of the live knobs. A change takes effect in the next iteration."""
    if _key(run) not in values:
        return
    generation, methods = run.config.generation, run.config.methods
    refusal = "" if ended else rights.objection(run)
    if refusal:
        st.caption(text.plain(refusal))
    names = {_ALL: "all methods", **{method: method_name(method) for method in methods}}
    fixed = {
        "groups": [[group, names[group]] for group in values[_key(run)]["knobs"]],
        "total": generation.iterations * len(generation.batches),
        "iterations": generation.iterations,
        "group": iterations.group_word(run),
        "ended": ended,
        "refusal": refusal,
        "paused": run.state is RunState.PAUSED,
    }
    elements.knobs({**values[_key(run)], **fixed}, _key(run), lambda new: change(run, new))


def change(run: Run, new: Mapping[str, Any]) -> None:
    """Sets a knob from the next iteration on. new: of the browser, with "group" (a method or "all"), "name" and "value"."""
    with problems.shown(st.toast):
        rights.require([run])
        name, group = str(new["name"]), new["group"]
        knob = live_knobs(GenerationConfig).get(name)
        owners = [method for method in run.config.methods if group in (_ALL, method) and knob is not None and has_knob(knob, method)]
        session.manager().control(run.id).set(name, new["value"], owners)
