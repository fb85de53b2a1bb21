"""Sweep: runs that differ in the values of some knobs, compared without data, and a form that starts a sweep."""

import time

import streamlit as st

from core.comparison.sweeps import stored
from dashboard import session, text
from dashboard.components import elements, problems
from dashboard.forms.sweep import sweep_form
from dashboard.views import sweep as view

PARAMETER = "sweep"  # of the address: the sweep that is shown

st.title("Sweep")
st.caption(
    "Runs that differ in the values of some knobs, and how closely their networks follow the full-precision one on held-out synthetic "
    "images. No real image takes part."
)

sweeps = {sweep.id: sweep for sweep in stored(session.store())}


def title(sweep):
    """Label in the selection box."""
    return f"{time.strftime('%Y-%m-%d %H:%M', time.localtime(sweep.created))} · {text.shortened(sweep.name, 90)}"


if sweeps:
    wanted = st.query_params.get(PARAMETER)
    shown = wanted if wanted in sweeps else next(iter(sweeps))
    chosen = st.selectbox(
        "Sweep", list(sweeps), index=list(sweeps).index(shown), format_func=lambda one: title(sweeps[one]), key=f"sweep shown/{shown}"
    )
    session.put_into_address(PARAMETER, chosen)
    if chosen != shown:
        st.rerun()
    view.follow(sweeps[chosen])
else:
    st.info(
        "No sweep yet. Choose below which knobs to vary, and press Start: the best values, parallel coordinates, and a heat map of two "
        "knobs appear here.",
        icon=":material/lightbulb:",
    )

with elements.folded("New sweep", "new sweep", not sweeps, ":material/add:") as opened:
    if (opened or not sweeps) and (sweep := sweep_form()) is not None:
        with problems.shown():
            session.sweeper().start(sweep)
            session.put_into_address(PARAMETER, sweep.id)
            st.rerun()
