"""The runs to compare, which are in the address, and their records. Reads the store only."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import streamlit as st

from core.config import RunConfig
from core.errors import ConfigError, RunError
from core.runs.lists import ALL
from core.runs.run import Run
from dashboard import session, text
from dashboard.charts.comparison import COLORS, MOST, Compared
from dashboard.tables import terms
from dashboard.tables.run_list import FIGURES
from dashboard.updates import live_view, pace

RUNS_PARAMETER = "runs"
_BOX = "runs to compare"  # key of the selection box
_SECONDS_BEFORE_PROGRESS = 0.5


def compare(run_ids: Sequence[str]) -> None:
    """Opens the Compare page with these runs."""
    st.switch_page("dashboard/pages/compare.py", query_params={RUNS_PARAMETER: ",".join(run_ids)})


def choose() -> list[Run]:
    """A box to choose the runs to compare; initially those in the address, or those that were compared last."""
    wanted = st.query_params.get(RUNS_PARAMETER)
    asked = [part for part in wanted.split(",") if part] if wanted else st.session_state.get("compared", [])
    asked = list(dict.fromkeys(asked))
    known = {run.id: run for run in session.offered(ALL, [*asked, *st.session_state.get(_BOX, [])], _BOX)}
    for run_id in [run_id for run_id in asked if run_id not in known][:3]:
        st.warning(f"No run has the id {text.plain(text.one_line_text(run_id, 60))}: it may have been deleted. See Runs for the ids.")
    chosen = st.multiselect(
        "Runs to compare",
        list(known),
        default=[run_id for run_id in asked if run_id in known][:MOST],
        max_selections=MOST,
        format_func=lambda run_id: session.title(known[run_id]),
        placeholder="Choose two or more",
        help=f"At most {MOST}. Differences are relative to the baseline pinned under Runs, or to the first run if none is pinned.",
        key=_BOX,
    )
    st.session_state["compared"] = chosen
    session.put_into_address(RUNS_PARAMETER, ",".join(chosen) or None)
    return [known[run_id] for run_id in chosen]


def follow(runs: Sequence[Run], draw: Callable[[Sequence[Run]], None]) -> None:
    """Draws these runs, and redraws them until all are finished."""
    active = [run.id for run in runs if not run.state.is_finished()]

    def region() -> None:
        try:
            current = [session.store().run(run.id) for run in runs]
        except RunError:
            st.rerun(scope="app")  # a run was deleted
        if [run.id for run in current if not run.state.is_finished()] != active:
            st.rerun(scope="app")
        draw(current)

    # with its tables, the page costs a browser twice as much as the curves alone
    live_view.refreshed(2 * pace.chart_seconds() if active else None, region)


def compared(runs: Sequence[Run]) -> list[Compared]:
    """Config, results and changes of the runs, without curves. Colors and letters are assigned in order."""
    return [_compared(index, run) for index, run in enumerate(runs)]


def _compared(index: int, run: Run) -> Compared:
    store = session.store()
    config: RunConfig | None
    try:
        config = store.config(run.id)
    except ConfigError:  # of another version
        config = None
    known = store.results_of([run.id], (*FIGURES, terms.RESULT)).get(run.id, {})
    return Compared(run, chr(ord("A") + index), COLORS[index], config, {}, known, store.changes(run.id))


def with_curves(compared: Sequence[Compared], stage: str) -> list[Compared]:
    """The same with the curves of one stage. Shows its progress if it takes long, as the first comparison of long runs does."""
    result, progress, began = [], st.empty(), time.monotonic()
    for number, one in enumerate(compared):
        if time.monotonic() - began > _SECONDS_BEFORE_PROGRESS:
            seconds = (time.monotonic() - began) / number * (len(compared) - number)
            progress.progress(
                number / len(compared), f"Reading the curves: run {number + 1} of {len(compared)}, about {seconds:.0f} s left"
            )
        result.append(replace(one, curves=_curves(one.run, stage)))
    progress.empty()
    return result


_Columns = Mapping[str, Mapping[str, np.ndarray]]
_known: OrderedDict[tuple[str, int, str], tuple[int, _Columns]] = OrderedDict()
_lock = threading.Lock()
_KEPT = 4 * MOST  # stages of runs, of at most some hundred kilobytes each


def _curves(run: Run, stage: str) -> _Columns:
    """All numbers recorded in a stage. Reads only records from the store that are new since the last call."""
    key = (run.id, run.attempt, stage)
    with _lock:
        last, columns = _known.get(key, (0, {}))
        last, new = session.store().curves(run.id, stage, after=last)
        _known[key] = last, joined(columns, new)
        _known.move_to_end(key)
        while len(_known) > _KEPT:
            _known.popitem(last=False)
        return _known[key][1]


def joined(first: _Columns, second: _Columns) -> _Columns:
    """Concatenates records; NaN where a number is missing in one of them."""
    if not first or not second:
        return first or second
    result: dict[str, dict[str, np.ndarray]] = {}
    for method in dict.fromkeys([*first, *second]):
        parts = [part[method] for part in (first, second) if method in part]
        names = dict.fromkeys(name for part in parts for name in part)
        result[method] = {name: np.concatenate([part.get(name, np.full(len(part["step"]), np.nan)) for part in parts]) for name in names}
    return result
