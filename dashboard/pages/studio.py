"""Studio: start a run, watch the methods make images side by side, change their knobs while they work."""

import streamlit as st

from dashboard import session
from dashboard.components import elements
from dashboard.forms import new_run
from dashboard.updates import live_view
from dashboard.views import status
from dashboard.views.generation import GENERATION
from dashboard.views.generation_data import generation_finished

run = session.shown_run(lambda run: not run.config.images_from)

st.title("Studio")
st.caption(
    "Images made from a trained network alone: noise is moved until its statistics match those stored in the network's BatchNorm "
    "layers. The images then train a 2- to 8-bit version of the network."
)

# another expander for another run: one that was just started is what is to be seen
key = f"new run/{run.id if run is not None else ''}"
if new_run.just_asked_for():
    st.session_state[key] = True
with elements.folded("New run", key, run is None, ":material/add:") as opened:
    if run is None:
        st.info(
            "Press Start: with the quick preset both optimizers make 2,048 images each from the embedded ResNet-20, "
            "which is then quantized to 3, 4 and 5 bits.",
            icon=":material/lightbulb:",
        )
    if opened:
        new_run.form()

if run is not None:
    if generation_finished(run):
        live_view.follow(status.STATUS, run)
    live_view.follow(GENERATION, run)
