"""Training of a run: accuracies, curves and accuracy checks. Reads the store only."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import streamlit as st

from core.reporting import TEST
from core.runs.run import Run
from core.runs.state import RunState
from dashboard import session
from dashboard.charts import training as training_charts
from dashboard.charts.style import json_of
from dashboard.components import address_widgets, figures
from dashboard.updates import pace
from dashboard.updates.live_view import LAYOUT, PAGE, Values, View
from dashboard.views import accuracy, status, verdict
from dashboard.views.layers import analyzed

CURVE_PARAMETER = "training"  # of the address
_CURVE, _TESTED = "figure/training", "figure/tested"


def values(run: Run, address: Mapping[str, str]) -> Values:
    """Progress and curves. Curves are redrawn once for all viewers, every pace.chart_seconds() at most."""
    records, tested = session.records(run, "training"), session.records(run, TEST)
    known: Values = {
        LAYOUT: [accuracy.version(run, address), bool(records), bool(tested), verdict.version(run)],
        PAGE: analyzed(run),
        **status.values(run, address),
    }
    if records:
        curve = curve_in(address)
        version = pace.chart_version(run.state.is_finished() or run.state is RunState.PAUSED, len(records))
        make = partial(training_charts.training_figure, records, curve)
        drawn = session.shared_cache(("figure", run.id, run.attempt, version, curve), lambda: json_of(make()))
        known[_CURVE] = {"figure": drawn}
    if tested:
        full_precision = (session.store().result(run.id, "full_precision") or {}).get("top1")
        # few records, so each is shown immediately
        drawn = session.shared_cache(
            ("figure", run.id, run.attempt, len(tested), TEST, full_precision),
            lambda: json_of(training_charts.accuracy_during_training(tested, full_precision)),
        )
        known[_TESTED] = {"figure": drawn}
    return known


def draw(run: Run, values: Values) -> None:
    """Status, accuracies and training curves."""
    status.draw(run, values)
    verdict.draw_networks(run)
    accuracy.accuracy(run)
    if _CURVE in values or _TESTED in values:
        _draw_curves(run, values)


TRAINING = View("training", values, draw)


def _draw_curves(run: Run, values: Values) -> None:
    """A training curve for each method and bit width, and the accuracy checks."""
    st.header("Training")
    curve = address_widgets.choose_one("Curve", training_charts.PARTS, CURVE_PARAMETER, label_visibility="collapsed")
    left, right = st.columns(2)
    with left:
        if _CURVE in values:
            figures.show(values[_CURVE]["figure"], _CURVE, f"{run.name} training {curve}")
    with right:
        if _TESTED in values:
            figures.show(values[_TESTED]["figure"], _TESTED, f"{run.name} training test")
            images = session.records(run, TEST)[-1].data["images"]
            weights = "the EMA of the weights" if run.config.training.ema_decay else "the weights"
            st.caption(
                f"On the same {images:,} evaluation images each time, with {weights} of that step. Error bars: one standard error. "
                "It is not used to select anything: the reported accuracy is that of the last step, on all evaluation images."
            )
        elif not accuracy.has_accuracy(run):
            st.caption("This run has no labeled evaluation images: no accuracy during training.")
        elif not run.state.is_finished():
            st.caption("Test accuracy appears here after the first bit width is calibrated.")
        else:
            st.caption("This run did not record accuracy during training.")


def curve_in(address: Mapping[str, str]) -> str:
    """The curve that an address names, or the total loss."""
    return address_widgets.named_option(address, CURVE_PARAMETER, training_charts.PARTS)
