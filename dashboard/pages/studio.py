"""Studio: start a run, watch the methods generate images side by side, and change their settings live."""

import streamlit as st

from core.config import PRESETS
from dashboard import session
from dashboard.components import elements
from dashboard.forms import new_run
from dashboard.names import method_name
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

# the key contains the run, so that the form closes when a run starts
key = f"new run/{run.id if run is not None else ''}"
if new_run.just_asked_for():
    st.session_state[key] = True
with elements.folded("New run", key, run is None, ":material/add:") as opened:
    if run is None:
        quick = PRESETS["quick"]
        st.info(
            f"Press Start: with the quick preset, {' and '.join(map(method_name, quick.methods))} generate "
            f"{quick.generation.images:,} images each from the embedded ResNet-20, which is then quantized to "
            f"{', '.join(map(str, quick.bits))} bits.",
            icon=":material/lightbulb:",
        )
    if opened:
        new_run.form()

if run is not None:
    if generation_finished(run):
        live_view.follow(status.STATUS, run)
    live_view.follow(GENERATION, run)
