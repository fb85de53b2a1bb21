"""Accuracy of a run beside other runs and the paper. Reads the store only; the choices are in the address."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import streamlit as st

from core import layout
from core.config import AUTO_DATA
from core.runs.lists import RunFilter
from core.runs.paper_table import PAPER_METHODS
from core.runs.run import Run
from dashboard import session, text
from dashboard.charts import accuracy as accuracy_charts
from dashboard.charts.style import json_of
from dashboard.components import address_widgets, figures, tables
from dashboard.tables import results, series

_AGREEMENT = (
    "Agreement: the share of images to which the kept network gives the same class as the full-precision one, with its standard error; "
    "KL: the mean divergence between their predictions, in nats, lower is better; score SQNR: the signal-to-noise ratio of the scores, "
    "where at 20 dB the error is a tenth of the signal."
)
_NO_IMAGES, _UNLABELED = "This run has no evaluation images", "The evaluation images of this run have no labels"
WITH, PAPER, CHART_TYPE = "with", "paper", "as"  # address parameters: other runs, methods of the paper, lines or bars
MOST_RUNS = 12  # beside the shown one


def accuracy(run: Run) -> None:
    """Chart and table of the accuracies so far: of this run, of other chosen runs, and of methods in the paper."""
    own = _evaluated(run)
    if not results.accuracies(own.results):
        st.caption(_nothing(run))
        return
    left, middle, right = st.columns([3, 2, 1])
    with left:
        others = _other_runs(run, own)
    methods = _methods(run, middle)
    with right:
        bars = address_widgets.choose_one("Chart type", {"lines": "lines", "bars": "bars"}, CHART_TYPE) == "bars"
    full_precision = own.results.get("full_precision", {})
    rows = series.accuracy_series([own, *others])
    paper, paper_full_precision = results.paper_accuracies(run.config.model, methods)
    figure = accuracy_charts.accuracy_figure(rows, full_precision.get("top1"), paper, paper_full_precision, bars)
    figures.show(json_of(figure), "accuracy", f"{run.name} accuracy")
    measured_on = results.measured_on(results.accuracies(own.results))
    st.caption(_explanation(rows, full_precision.get("evaluated_on", ""), measured_on, bool(paper)))
    if measured_on:
        where = "; ".join(f"{words}: on {text.plain(images)}" for words, images in measured_on.items())
        st.caption(f"{_AGREEMENT} {where[0].upper()}{where[1:]}.")
    if protocols := results.protocols(results.accuracies(own.results)):
        st.caption(f"{'; '.join(protocols)}.")
    for note in dict.fromkeys(row["note"] for row in results.accuracies(own.results) if row.get("note")):
        st.warning(text.plain(note), icon=":material/info:")
    tables.table(results.accuracy_table(rows, full_precision.get("top1")), "accuracy", results.ACCURACY_COLUMNS, alt="Accuracies")


def has_accuracy(run: Run) -> bool:
    """Whether a run has labeled evaluation images, as far as it is known yet."""
    return results.has_accuracy(results.accuracies(_evaluated(run).results))


def version(run: Run, address: Mapping[str, str]) -> int:
    """Version key: changes with the accuracies of this run and of the runs that an address shows beside it."""
    others = session.store().runs(RunFilter(ids=address[WITH].split(",")), most=MOST_RUNS) if address.get(WITH) else []
    # a checksum, because the numbers are a few kilobytes and every update contains them
    return zlib.crc32(json.dumps([_evaluated(one).results for one in [run, *others]]).encode())


def _nothing(run: Run) -> str:
    if not run.config.bits:
        return "This run has no bit widths. Open “Quantize these images” above to choose some."
    if run.state.is_finished():
        return "This run ended before its first bit width was calibrated. Resume it, or start another in the Studio."
    return "Accuracies appear here after the first bit width is calibrated."


def _explanation(rows: Sequence[dict[str, Any]], evaluated_on: str, measured_on: Mapping[str, str], paper: bool) -> str:
    """A caption for the chart. measured_on: see `results.measured_on`."""
    several = sorted({row["runs"] for row in rows if row["runs"] > 1})
    bars = "one standard error of the evaluation"
    quantity = f"Top-1 on {text.plain(evaluated_on)}"
    if not results.has_accuracy(rows):
        bars, paper = "one standard error", False
        quantity = f"{_UNLABELED if 'real' in measured_on else _NO_IMAGES}, so its accuracy is unknown. Agreement with full precision"
        quantity += f" on {text.plain(next(iter(measured_on.values())))}" if measured_on else ""
    if several:
        bars = f"standard deviation over {', '.join(map(str, several))} seeds; for a single seed, {bars}"
    caption = (
        f"{quantity}, higher is better. Error bars: {bars}. Calibrated: ranges only, no training (PTQ); trained: "
        "the same network after quantization-aware training (QAT). Kept: the one that is saved and exported, closer to full precision on "
        "held-out synthetic images unless the run keeps the trained one anyway; the drop is its own."
    )
    return caption + (" The paper starts from other weights: compare the drop from full precision." if paper else "")


def _evaluated(run: Run) -> series.Evaluated:
    """Accuracies of a run. Reads only these results, because others are large."""
    names = ["full_precision"]
    for method in (*run.config.methods, layout.USER_IMAGES):
        names += [f"accuracy/{method}/{run.config.training_for(bits).width}" for bits in run.config.bits]
    store = session.store()
    known = {name: value for name in names if (value := store.result(run.id, name)) is not None}
    return series.Evaluated(run.name, run.config, known, store.changes(run.id))


def _other_runs(run: Run, own: series.Evaluated) -> list[series.Evaluated]:
    """Chosen runs of the same network and evaluation images, to compare with."""
    key = f"accuracy with/{run.id}"
    data = run.config.evaluation.data
    alike = (AUTO_DATA, "embedded") if data in (AUTO_DATA, "embedded") else (data,)
    comparable = RunFilter(model=run.config.model, data=alike, quantizes=True, without=run.id)
    if not session.store().runs(comparable, most=1):
        st.caption("No other run of this network on these evaluation images to compare with.")
        return []
    kept = st.session_state.get(key, st.query_params.get(WITH, "").split(","))
    fitting = {other.id: other for other in session.offered(comparable, kept, key, "Search runs to compare with")}
    chosen = address_widgets.choose_several(
        "Compare with",
        list(fitting),
        WITH,
        key,
        lambda run_id: text.one_line_text(fitting[run_id].name, 80) if run_id in fitting else run_id,
        placeholder="other runs of this network",
        max_selections=MOST_RUNS,
        help="Runs of the same network on the same evaluation images. Runs that differ only in their seeds are averaged.",
    )
    seeds = _other_seeds(run, comparable, chosen)[: MOST_RUNS - len(chosen)]
    if seeds:
        st.button(
            "Add the run that differs only in its seeds" if len(seeds) == 1 else f"Add {len(seeds)} runs that differ only in their seeds",
            key=f"add seeds {run.id}",
            type="tertiary",
            icon=":material/add:",
            on_click=_choose,
            args=(key, [*chosen, *seeds]),
        )
    found = [_evaluated(fitting[run_id]) for run_id in chosen]
    # the images in a folder may have changed between two runs
    same = [other for other in found if _images_of(other) == _images_of(own)]
    if len(same) < len(found):
        st.caption("Omitted: runs without accuracies yet, or with other evaluation images.")
    return same


def _images_of(run: series.Evaluated) -> str | None:
    """The evaluation images of a run, as far as it has measured anything on them."""
    labeled = run.results.get("full_precision", {}).get("evaluated_on")
    return labeled or results.measured_on(results.accuracies(run.results)).get("real")


def _other_seeds(run: Run, comparable: RunFilter, chosen: Sequence[str]) -> list[str]:
    """Runs that differ from this one only in their seeds and are not chosen yet; of the newest with its methods and bit widths."""
    widths = [run.config.training_for(bits).width for bits in run.config.bits]
    alike = session.store().runs(replace(comparable, methods=run.config.methods, widths=widths), most=session.MOST_LISTED)
    return [other.id for other in alike if other.id not in chosen and series.differ_only_in_seeds(run.config, other.config)]


def _choose(key: str, values: list[str]) -> None:
    st.session_state[key] = values
    address_widgets.put_several(WITH, values)


def _methods(run: Run, column: Any) -> list[str]:
    """Chosen methods of the paper, drawn as markers; empty if the paper does not have the network."""
    known = results.paper_methods(run.config.model)
    if not known:
        return []
    with column:
        return address_widgets.choose_several(
            "Methods in the paper",
            known,
            PAPER,
            f"accuracy paper/{run.id}",
            PAPER_METHODS.__getitem__,
            default=known[:1],
            help="As reported in the paper (DFFG, BMVC 2023) for this architecture and these bit widths.",
        )
