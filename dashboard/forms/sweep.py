"""The form that starts a sweep: where it starts from, the knobs to vary with their values, and what it will cost."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import streamlit as st

from core.comparison.search_space import GRID, HALVING, RANDOM, SAMPLERS, TPE, Range, Space, has_optuna, sweepable, values_of
from core.comparison.sweeps import Sweep, held_out_folder, likely_points, new_sweep, runs_of, seconds_of_sweep
from core.config import PRESETS, RunConfig, find_knob, help_text
from core.errors import ConfigError
from core.generation.methods import METHODS, in_order
from core.runs.early_checks import check_run
from core.runs.lists import RunFilter
from core.runs.outlook import duration
from dashboard import session
from dashboard.components import problems
from dashboard.forms import run as forms
from dashboard.forms.refusals import Refusals
from dashboard.forms.seeds import seeds_of
from dashboard.names import knob_title, method_name
from dashboard.server import rights

_STARTS = RunFilter(generates=True, quantizes=True)
_FIRST: Mapping[str, str] = {"epsilon": "0.05, 0.1, 0.2", "mu": "0.5, 0.9"}  # what a new form varies
_COUNT = 20  # points at random
_SAMPLERS: Mapping[str, str] = {GRID: "Every combination", RANDOM: "At random", TPE: "By TPE", HALVING: "By halving"}
_KEY = "sweep"


def sweep_form() -> Sweep | None:
    """Draws the form; returns the sweep to start when its button was pressed. Values that are refused are named above the button."""
    start = _start()
    left, middle, right = st.columns(3)
    with left:
        methods = st.multiselect("Methods", list(METHODS), default=list(start.methods[:1]), format_func=method_name, key=f"{_KEY}/methods")
    with middle:
        bits = st.multiselect("Bit widths", range(2, 9), default=_widths(start), key=f"{_KEY}/bits")
    with right:
        written = st.text_input("Seeds", "0", key=f"{_KEY}/seeds", help="A run with each. Several seeds show how much chance there is.")
    refusals = Refusals(_KEY)
    with problems.shown():
        space = _space(methods)
        sampler, count = _sampler(space)
        forms.choose_executor(refusals, _KEY)
        if not (methods and bits and space):
            st.caption("Choose at least one method, one bit width and one knob.")
            return None
        sweep = new_sweep(replace(start, methods=tuple(in_order(methods)), bits=tuple(bits)), space, sampler, count, seeds_of(written))
        check_run(sweep.start)
        points = likely_points(sweep)
        seconds = seconds_of_sweep(session.store(), sweep, points)
        runs = sum(runs_of(sweep, points).values())
        st.markdown(_cost(sweep, len(points), runs, seconds))
        if refusals.button(f"Start {_counted(runs, 'run')}", "start sweep"):
            return replace(sweep, user=rights.user(), executor=forms.chosen_executor(_KEY))
    return None


def _start() -> RunConfig:
    """A box of the settings that all runs share: those of a preset, or of a run."""
    shown = session.shown_run(_STARTS)
    runs = {run.id: run for run in session.offered(_STARTS, [shown.id] if shown else [], f"{_KEY}/start")}
    options = [*PRESETS, *runs]
    chosen = st.selectbox(
        "Settings to start from",
        options,
        format_func=lambda name: f"run: {session.title(runs[name])}" if name in runs else f"preset: {name}",
        help="Of a preset, or of a run with its network. All runs of the sweep have them, except for the knobs below.",
        key=f"{_KEY}/start",
    )
    return runs[chosen].config if chosen in runs else PRESETS[chosen]


def _widths(start: RunConfig) -> list[int]:
    return [4] if 4 in start.bits or not start.bits else list(start.bits[:1])


def _space(methods: Sequence[str]) -> Space:
    """A box of the knobs to vary, and a field with the values of each. Raises ConfigError for what is no value."""
    known = sweepable(methods)
    names = st.multiselect(
        "Knobs to vary",
        list(known),
        default=[name for name in _FIRST if name in known],
        format_func=lambda name: f"{knob_title(name)} ({name})",
        key=f"{_KEY}/knobs",
    )
    space: dict[str, Sequence[Any] | Range] = {}
    columns = st.columns(3)
    for index, name in enumerate(names):
        with columns[index % len(columns)]:
            values = _values(name)
            if values:
                space[name] = values
    return space


def _values(name: str) -> Sequence[Any] | Range:
    """The field with the values of a knob."""
    section, knob = find_knob(name)
    help = help_text(type(getattr(RunConfig(), section)), name).replace("\n", "\n\n")
    choices = knob.metadata["choices"]
    if choices is not None or type(knob.default) is bool:
        offered = list(choices) if choices is not None else [False, True]
        return st.multiselect(knob_title(name), offered, default=offered[:2], key=f"{_KEY}/values/{name}", help=help)
    written = st.text_input(
        knob_title(name),
        _FIRST.get(name, f"{knob.default:g}"),
        key=f"{_KEY}/values/{name}",
        help=f"Values such as 1, 2, 3, or a range such as 1..3.\n\n{help}",
    )
    parts = [part for part in re.split(r"[\s,;]+", written.strip()) if part]
    if not parts:
        raise ConfigError(f"{name} must have at least one value, got none")
    return values_of(name, parts)


def _sampler(space: Space) -> tuple[str, int]:
    """How points are chosen, and how many. With a range, there is no grid."""
    ranged = any(isinstance(values, Range) for values in space.values())
    left, right = st.columns(2)
    with left:
        chosen = st.segmented_control(
            "Points",
            [name for name in SAMPLERS if (name != GRID or not ranged) and (name != TPE or has_optuna())],
            default=RANDOM if ranged else GRID,
            required=True,
            format_func=lambda name: _SAMPLERS[name],
            help="Every combination of the values, or some of them. A range such as 0.01..0.5 is drawn from. TPE is a sampler of Optuna, "
            "offered where that is installed: it proposes points from the agreement of the earlier ones. Halving measures points at random "
            "with few images and training steps, the best third with three times as many, and the best of these with all.",
            key=f"{_KEY}/sampler/{ranged}",
        )
    if chosen == GRID:
        return chosen, 0
    with right:
        return chosen, int(st.number_input("Number of points", 1, 1000, _COUNT, key=f"{_KEY}/count"))


def _cost(sweep: Sweep, points: int, runs: int, seconds: float | None) -> str:
    """What a sweep will cost, in a sentence."""
    numbers = ((points, "point"), (len(sweep.start.methods), "method"), (len(sweep.seeds), "seed"))
    factors = [_counted(number, word) for number, word in numbers]
    images = "" if held_out_folder(session.store(), sweep).exists() else ", and one for the held-out images"
    time = (
        f"About **{duration(seconds)}** of processing, by the speed of the newest runs of this network."
        if seconds is not None
        else "The time is known when a run of this network is complete."
    )
    return f"{', '.join(factors)}: **{_counted(runs, 'run')}**{images}. {time}"


def _counted(number: int, word: str) -> str:
    return f"{number:,} {word}{'s' if number != 1 else ''}"
