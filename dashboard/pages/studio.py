"""Studio: start a run, watch the methods generate images side by side, and change their settings live."""

import streamlit as st

from dashboard import session
from dashboard.components import elements
from dashboard.forms import new_run, two_ways
from dashboard.updates import live_view
from dashboard.views import status
from dashboard.views.generation import GENERATION
from dashboard.views.generation_data import generation_finished

run = session.shown_run(session.GENERATING)

st.title("Studio")
st.caption(
    "Generates images from a trained network alone: starting from noise, until their batch statistics match the running statistics stored "
    "in the BatchNorm layers of the network. The images then train a 2- to 8-bit version of it."
)
session.say_if_another(run, session.GENERATING)

# the keys contain the run, so that the forms close when a run starts
shown = run.id if run is not None else ""
if new_run.just_asked_for():
    st.session_state[f"new run/{shown}"] = st.session_state[f"all settings/{shown}"] = True


def new_run_forms():
    """The two ways, and the form with all settings, which is folded."""
    two_ways.two_ways()
    with elements.folded("All settings", f"all settings/{shown}", False, ":material/tune:") as opened:
        if opened:
            new_run.form()


if run is None:
    new_run_forms()
else:
    with elements.folded("New run", f"new run/{shown}", False, ":material/add:") as opened:
        if opened:
            new_run_forms()

if run is not None:
    if generation_finished(run):
        live_view.follow(status.STATUS, run)
    live_view.follow(GENERATION, run)
