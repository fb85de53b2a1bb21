"""Studio: start a run, watch the methods generate images side by side, and change their settings live."""

import streamlit as st

from dashboard import session
from dashboard.components import elements
from dashboard.forms import new_run, two_ways
from dashboard.updates import live_view
from dashboard.views.generation import GENERATION, GENERATION_STATUS
from dashboard.views.generation_data import generation_finished

run = session.shown_run(session.GENERATING)
shown = run.id if run is not None else ""


def new_run_forms():
    """The two ways, and the form with all settings, which is folded."""
    elements.figures_to_come()
    two_ways.two_ways()
    with elements.folded("All settings", f"all settings/{shown}", False, ":material/tune:") as opened:
        if opened:
            new_run.form()


with st.container(key="heading" if run is None else "unseen heading"):  # the run takes its room
    st.title("Studio")
if run is None:
    st.caption(
        "Generates images from a trained network alone: starting from noise, until their batch statistics match the running statistics "
        "stored in the BatchNorm layers of the network. The images then train a 2- to 8-bit version of it."
    )
session.say_if_another(run, session.GENERATING)
if new_run.just_asked_for():
    st.session_state[new_run.open_key(shown)] = st.session_state[f"all settings/{shown}"] = True

if run is None:
    new_run_forms()
else:
    opened = st.session_state.get(new_run.open_key(shown))
    if opened is not None:  # once it has been opened, it is drawn, so that typed values are kept
        with st.container(border=True, key="new run opened" if opened else "new run closed"):
            new_run_forms()
    if generation_finished(run):
        live_view.follow(GENERATION_STATUS, run)
    live_view.follow(GENERATION, run)
