"""Widgets for knobs: everything they show comes from core.config, and nothing is checked twice."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import Field
from typing import Any

import streamlit as st

from core.config import GenerationConfig, RunConfig, find_knob, help_text, label, live_knobs

_SLIDER_WIDTH = 165  # pixels: two fit next to each other on a phone
_STEPS_OF_A_DECADE = (1, 3)


def help_of(config_class: type, name: str) -> str:
    """All that is known of a knob, for the question mark beside it: one paragraph for each line."""
    return help_text(config_class, name).replace("\n", "\n\n")


def knob_widget(config_class: type, knob: Field, value: Any, key: str) -> Any:
    """The widget that fits a knob; returns its value."""
    meta, kind = knob.metadata, type(knob.default)
    shared: dict[str, Any] = {"label": label(knob), "help": help_of(config_class, knob.name), "key": key}
    if meta["choices"] is not None:
        choices = list(meta["choices"])
        return st.selectbox(options=choices, index=choices.index(value), **shared)
    if kind is bool:
        return st.checkbox(value=value, **shared)
    if kind is int:
        return st.number_input(min_value=int(meta["minimum"]), max_value=int(meta["maximum"]), value=int(value), step=1, **shared)
    if kind is float:
        low, high = float(meta["minimum"]), float(meta["maximum"])
        return st.number_input(min_value=low, max_value=high, value=float(value), step=meta["step"] or 0.1, format="%g", **shared)
    return st.text_input(value=value, **shared).strip()


def knob_grid(start: RunConfig, names: Sequence[str], key: str, columns: int = 3) -> dict[str, Any]:
    """Widgets for several knobs in columns, which begin with the values of `start`; name -> value."""
    values = {}
    cells = st.columns(columns)
    for index, name in enumerate(names):
        section, knob = find_knob(name)
        with cells[index % columns]:
            config = getattr(start, section) if section else start
            values[name] = knob_widget(type(config), knob, start.value(name), f"{key}/{name}")
    return values


def live_sliders(
    values: Mapping[str, float],
    key: str,
    on_change: Callable[[str, str], None] | None = None,
    methods: Sequence[str] = (),
    disabled: Collection[str] = (),
) -> dict[str, float]:
    """A slider for every live knob that one of the `methods` has (default: all); returns their values.

    on_change(name, widget key) is called when one is moved. disabled: knobs that cannot be moved now.
    """
    result = {}
    with st.container(horizontal=True, vertical_alignment="bottom"):
        for name, knob in live_knobs(GenerationConfig).items():
            value, of = float(values[name]), knob.metadata["of"]
            if methods and of and not set(of) & set(methods):
                result[name] = value
                continue
            widget_key = f"{key}/{name}"
            arguments: dict[str, Any] = {
                "label": label(knob),
                "value": value,
                "key": widget_key,
                "help": help_of(GenerationConfig, name),
                "on_change": on_change,
                "args": (name, widget_key) if on_change else None,
                "disabled": name in disabled,
                "width": _SLIDER_WIDTH,
            }
            low, high = knob.metadata["slider"] or (knob.metadata["minimum"], knob.metadata["maximum"])
            if knob.metadata["log"]:
                options = sorted({*log_steps(low, high), value})
                result[name] = st.select_slider(options=options, format_func=lambda v: f"{v:g}", **arguments)
            else:
                top, step = max(float(high), value), knob.metadata["step"] or (high - low) / 100
                result[name] = st.slider(min_value=float(low), max_value=top, step=step, format="%.3g", **arguments)
    return result


def log_steps(low: float, high: float) -> list[float]:
    """Values for a logarithmic slider: 0, then 1 and 3 times each power of ten from `low` to `high`, both included."""
    exponents = range(-12, 13)
    steps = (float(f"{factor}e{exponent}") for exponent in exponents for factor in _STEPS_OF_A_DECADE)
    return [0.0, *(step for step in steps if low <= step <= high)]
