"""Widgets for knobs. Labels, limits, steps and help come from the metadata of the knobs in core.config, which also checks the values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field
from types import MappingProxyType
from typing import Any

import streamlit as st

from core.config import GenerationConfig, RunConfig, find_knob, has_knob, help_text, label, live_knobs

_SLIDER_WIDTH = 165  # pixels: two fit next to each other on a phone
_FINE_RATIO = 1e4  # between the ends of a logarithmic slider, up to which it has three values per decade


def help_of(config_class: type, name: str) -> str:
    """The help text of a knob for its tooltip, one paragraph per line."""
    return help_text(config_class, name).replace("\n", "\n\n")


def number_arguments(knob: Field) -> dict[str, Any]:
    """Limits, step and format of the number field of a knob."""
    meta, kind = knob.metadata, _kind(knob)
    bounds = {f"{end[:3]}_value": None if meta[end] is None else kind(meta[end]) for end in ("minimum", "maximum")}
    return {**bounds, "step": meta["step"] or (1 if kind is int else 0.1), **({} if kind is int else {"format": "%g"})}


def _kind(knob: Field) -> Any:
    """The type of a knob: int, float, bool or str."""
    return type(knob.default)


def knob_widget(config_class: type, knob: Field, value: Any, key: str) -> Any:
    """The widget that fits the type of a knob; returns its value."""
    choices, kind = knob.metadata["choices"], _kind(knob)
    shared: dict[str, Any] = {"label": label(knob), "help": help_of(config_class, knob.name), "key": key}
    if choices is not None:
        return st.selectbox(options=list(choices), index=list(choices).index(value), **shared)
    if kind is bool:
        return st.checkbox(value=value, **shared)
    if kind in (int, float):
        return st.number_input(value=kind(value), **number_arguments(knob), **shared)
    return st.text_input(value=value, **shared).strip()


def knob_grid(
    start: RunConfig,
    names: Sequence[str],
    key: str,
    columns: int = 3,
    below: Mapping[str, Callable[[Any], None]] = MappingProxyType({}),
) -> dict[str, Any]:
    """Widgets for several knobs in columns, initialized with the values of `start`. Returns name -> value.

    below: name -> what draws something below the widget, given its value.
    """
    values = {}
    cells = st.columns(columns)
    for index, name in enumerate(names):
        section, knob = find_knob(name)
        with cells[index % columns]:
            config = getattr(start, section) if section else start
            values[name] = knob_widget(type(config), knob, start.value(name), f"{key}/{name}")
            if name in below:
                below[name](values[name])
    return values


def live_sliders(values: Mapping[str, float], key: str, methods: Sequence[str] = ()) -> dict[str, float]:
    """A slider for every live knob that one of the `methods` has (default: all live knobs). Returns name -> value, also without a slider.

    values: initial value of every live knob.
    """
    result = {}
    with st.container(horizontal=True, vertical_alignment="bottom"):
        for name, knob in live_knobs(GenerationConfig).items():
            if methods and not any(has_knob(knob, method) for method in methods):
                result[name] = values[name]
                continue
            result[name] = _slider(knob, values[name], f"{key}/{name}")
    return result


def _slider(knob: Field, value: float, key: str) -> float:
    """The slider of one live knob, wide enough to include `value`."""
    kind = _kind(knob)
    value = kind(value)
    shared: dict[str, Any] = {"label": label(knob), "help": help_of(GenerationConfig, knob.name), "width": _SLIDER_WIDTH, "key": key}
    if knob.metadata["log"]:
        return st.select_slider(options=slider_options(knob, [value]), value=value, format_func=lambda v: f"{v:g}", **shared)
    low, high, step = _slider_range(knob)
    shared |= {"step": step, "format": "%d" if kind is int else "%.3g"}
    return st.slider(min_value=min(low, value), max_value=max(high, value), value=value, **shared)


def _slider_range(knob: Field) -> tuple[Any, Any, Any]:
    """Lowest and highest value of the slider of a live knob, and its step."""
    meta, kind = knob.metadata, _kind(knob)
    low, high = map(kind, meta["slider"] or (meta["minimum"], meta["maximum"]))
    return low, high, meta["step"] or (1 if kind is int else (high - low) / 100)


def slider_options(knob: Field, values: Sequence[float]) -> list[float]:
    """All values of the slider of a live knob in order, `values` among them."""
    meta, kind = knob.metadata, _kind(knob)
    low, high, step = _slider_range(knob)
    if meta["log"]:
        lowest = low if meta["minimum"] is None else meta["minimum"]
        options = [kind(option) for option in log_steps(low, high) if option >= lowest]
    else:
        options = [kind(float(f"{low + index * step:.6g}")) for index in range(round((high - low) / step) + 1)]
    return sorted({*options, *values})


def log_steps(low: float, high: float) -> list[float]:
    """Values of a logarithmic slider: 0, both ends, and 1, 2 and 5 times every power of ten between; 1 and 3 times beyond 4 decades."""
    mantissas = (1, 3) if high / low > _FINE_RATIO else (1, 2, 5)
    steps = (float(f"{mantissa}e{exponent}") for exponent in range(-12, 13) for mantissa in mantissas)
    return [0.0, *sorted({low, high, *(step for step in steps if low < step < high)})]
