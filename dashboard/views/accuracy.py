"""The accuracy of a run on the page, beside other runs and the paper. Reads the store only; what is chosen is in the address."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import streamlit as st

from core import layout
from core.runs.paper_table import PAPER_METHODS
from core.runs.run import Run
from dashboard import session, text
from dashboard.charts import accuracy as accuracy_charts
from dashboard.charts.style import json_of
from dashboard.components import figures
from dashboard.tables import results, series

WITH, PAPER, DRAWN_AS = "with", "paper", "as"  # in the address: other runs, methods of the paper, lines or bars
MOST_RUNS = 12  # beside the shown one


def accuracy(run: Run) -> None:
    """Chart and table of what is known so far of this run, of others that are chosen, and of the paper's methods."""
    own = _evaluated(run)
    if not results.accuracies(own.results):
        st.caption(_nothing(run))
        return
    left, middle, right = st.columns([3, 2, 1])
    with left:
        others = _other_runs(run, own)
    methods = _methods(run, middle)
    with right:
        bars = _one_of("Drawn as", ("lines", "bars"), DRAWN_AS, f"accuracy as/{run.id}") == "bars"
    full_precision = own.results.get("full_precision", {})
    rows = series.accuracy_series([own, *others])
    paper, paper_full_precision = results.paper_accuracies(run.config.model, methods)
    figure = accuracy_charts.accuracy_figure(rows, full_precision.get("top1"), paper, paper_full_precision, bars)
    figures.show(json_of(figure), "accuracy", f"{run.name} accuracy")
    st.caption(_said(rows, full_precision.get("evaluated_on", ""), bool(paper)))
    for note in dict.fromkeys(row["note"] for row in results.accuracies(own.results) if row.get("note")):
        st.warning(text.plain(note), icon=":material/info:")
    figures.table(results.accuracy_table(rows, full_precision.get("top1")), "accuracy table")


def version(run: Run, address: Mapping[str, str]) -> int:
    """Changes when there is more to draw of this run, or of those that an address shows beside it."""
    others = {other.id: other for other in session.store().runs()} if address.get(WITH) else {}
    shown = [run, *(others[run_id] for run_id in address.get(WITH, "").split(",") if run_id in others)]
    # a few kilobytes of numbers, told to a page with every answer
    return zlib.crc32(json.dumps([_evaluated(one).results for one in shown[: 1 + MOST_RUNS]]).encode())


def _nothing(run: Run) -> str:
    if not run.config.bits:
        return "This run quantizes nothing: open “Quantize these images” above to choose bit widths for its images."
    if run.state.is_finished():
        return "This run ended before its first bit width was calibrated: resume it, or start another in the Studio."
    return "Accuracies appear here when the first bit width is calibrated."


def _said(rows: Sequence[dict[str, Any]], evaluated_on: str, paper: bool) -> str:
    """What the figure shows, in a few sentences."""
    several = sorted({row["runs"] for row in rows if row["runs"] > 1})
    bars = "bars are one standard error of the evaluation"
    if several:
        bars = f"bars are the standard deviation over {', '.join(map(str, several))} seeds, and where there is one seed, {bars[9:]}"
    said = (
        f"Top-1 on {text.plain(evaluated_on)}, higher is better; {bars}. Calibrated: ranges only, no training (PTQ); trained: the same "
        "network after quantization-aware training (QAT)."
    )
    return said + (" The paper starts from another checkpoint: compare the distance to its full precision." if paper else "")


def _evaluated(run: Run) -> series.Evaluated:
    """The few results of a run that are accuracies, without the large ones."""
    names = ["full_precision"]
    for method in (*run.config.methods, layout.USER_IMAGES):
        names += [f"accuracy/{method}/{run.config.training_for(bits).width}" for bits in run.config.bits]
    store = session.store()
    known = {name: value for name in names if (value := store.result(run.id, name)) is not None}
    return series.Evaluated(run.name, run.config, known, store.changes(run.id))


def _other_runs(run: Run, own: series.Evaluated) -> list[series.Evaluated]:
    """Runs of the same network and evaluation images that are chosen to be shown, too."""
    fitting = {
        other.id: other
        for other in session.store().runs()
        if other.id != run.id
        and other.config.bits
        and (other.config.model, other.config.evaluation.data) == (run.config.model, run.config.evaluation.data)
    }
    if not fitting:
        st.caption("There is no other run of this network, evaluated on these images, to show beside this one.")
        return []
    key = f"accuracy with/{run.id}"
    chosen = _some_of(
        "Also show",
        list(fitting),
        WITH,
        key,
        format_func=lambda run_id: text.one_line_text(fitting[run_id].name, 80) if run_id in fitting else run_id,
        placeholder="other runs of this network",
        max_selections=MOST_RUNS,
        help="Runs of the same network, evaluated on the same images. Those that differ only in their seeds are averaged.",
    )
    seeds = [run_id for run_id, other in fitting.items() if run_id not in chosen and series.differ_only_in_seeds(run.config, other.config)][
        : MOST_RUNS - len(chosen)
    ]
    if seeds:
        # plain list: a callback may not hold on to the page
        st.button(
            "Add the run that differs only in its seeds" if len(seeds) == 1 else f"Add {len(seeds)} runs that differ only in their seeds",
            key=f"add seeds {run.id}",
            type="tertiary",
            icon=":material/add:",
            on_click=_choose,
            args=(key, [*chosen, *seeds]),
        )
    found = [_evaluated(fitting[run_id]) for run_id in chosen]
    # a folder may have been filled anew between two runs
    on = own.results.get("full_precision", {}).get("evaluated_on")
    same = [other for other in found if other.results.get("full_precision", {}).get("evaluated_on") == on]
    if len(same) < len(found):
        st.caption("Left out: runs that have no accuracy yet, or whose evaluation images were others.")
    return same


def _choose(key: str, values: list[str]) -> None:
    st.session_state[key] = values


def _methods(run: Run, place: Any) -> list[str]:
    """The paper's methods that are shown as marks; none where the paper does not have the network."""
    known = results.paper_methods(run.config.model)
    if not known:
        return []
    with place:
        return _some_of(
            "Methods in the paper",
            known,
            PAPER,
            f"accuracy paper/{run.id}",
            default=known[:1],
            format_func=PAPER_METHODS.__getitem__,
            help="As the paper reports them (DFFG, BMVC 2023) for this architecture and these bit widths.",
        )


def _some_of(
    label: str, options: list[str], parameter: str, key: str, *, format_func: Callable[[str], str], default: Sequence[str] = (), **rest: Any
) -> list[str]:
    """Some of the options, also in the address; nothing in it means `default`."""
    asked = st.query_params.get(parameter)
    given = list(default) if asked is None else [name for name in asked.split(",") if name in options]
    most = rest.get("max_selections")
    # a run that is gone since must not be asked for
    if key in st.session_state:
        st.session_state[key] = [name for name in st.session_state[key] if name in options]
    else:
        st.session_state[key] = list(dict.fromkeys(given))[:most]
    chosen = st.multiselect(label, options, key=key, format_func=format_func, **rest)
    _keep_in_address(parameter, ",".join(chosen), ",".join(default))
    return chosen


def _one_of(label: str, options: Sequence[str], parameter: str, key: str) -> str:
    """One of the options, also in the address; nothing in it means the first."""
    asked = st.query_params.get(parameter)
    chosen = st.segmented_control(
        label, options, default=asked if asked in options else options[0], required=True, key=key, selection_mode="single"
    )
    _keep_in_address(parameter, str(chosen), options[0])
    return str(chosen)


def _keep_in_address(parameter: str, value: str, default: str) -> None:
    if value == default:
        st.query_params.pop(parameter, None)
    elif st.query_params.get(parameter) != value:
        st.query_params[parameter] = value
