"""The training of a run on the page. Reads the store only."""

from __future__ import annotations

import streamlit as st

from core.runs.store import Run
from dashboard import live, state, training_charts


def curves(run: Run) -> None:
    """Curves of the training, one for each optimizer and bit width."""
    records = state.records(run, "training")
    if not records:
        return
    left, right = st.columns(2)
    with left:
        live.chart(run, records, ("total",), lambda: training_charts.training_figure(records, "total"), "training loss")
    with right:
        live.chart(run, records, ("agreement",), lambda: training_charts.training_figure(records, "agreement"), "training agreement")
