"""Quantize: the training of each bit width, and accuracy against full precision and against the paper."""

from dataclasses import replace

import streamlit as st

from core.config import PRESETS
from core.errors import CoreError
from dashboard import session, text
from dashboard.components import elements, figures
from dashboard.forms import run as forms
from dashboard.forms import sources
from dashboard.tables import results
from dashboard.updates import live_view
from dashboard.views import layers, training

st.title("Quantize")
st.caption(
    "The full-precision network teaches a copy of itself whose weights and activations have few bits, on synthetic images only. "
    "Accuracy is measured on real images that nothing was chosen on."
)

run = session.choose_run(session.has_images, "Run", "quantize run")
if run is None:
    st.info(
        "Nothing to quantize yet: start a run in the Studio, its images appear here when they are made, or upload images of your own.",
        icon=":material/lightbulb:",
    )


def start_run(start, preset, own_images):
    """The form, and the run when its button was pressed."""
    try:
        config, pressed, name = forms.quantization_form(start, f"own/{preset}" if own_images else preset, own_images)
        if pressed:
            session.start(config, session.uploads().run_name(config, name))
            sources.forget_uploads()
            st.rerun()
    except CoreError as error:
        st.error(text.error(error), icon=":material/error:")


if run is not None and session.image_methods(run):
    wanted = not run.config.bits and run.state.is_finished()
    # another expander when it is wanted: that of a run that has just ended opens
    with elements.folded("Quantize these images", f"quantize/{run.id}/{wanted}", wanted, ":material/add:") as opened:
        if opened:
            preset = forms.preset_choice("quantize preset")
            start = replace(
                PRESETS[preset],
                model=run.config.model,
                generation=run.config.generation,
                evaluation=replace(PRESETS[preset].evaluation, encoder=""),
                methods=tuple(session.image_methods(run)),
                images_from=str(session.store().images_folder(run)),
            )
            start_run(start, preset, own_images=False)

key = f"quantize own/{run.id if run is not None else ''}"
with elements.folded("Quantize with your own images", key, False, ":material/upload:") as opened:
    if opened:
        st.caption("For comparison: real images, or synthetic ones made elsewhere. They are kept with the runs and used for nothing else.")
        preset = forms.preset_choice("own preset")
        start_run(PRESETS[preset].with_knobs({"encoder": ""}), preset, own_images=True)

if run is None:
    st.stop()


live_view.follow(training.TRAINING, run)
layers.layers(run)

paper_rows = results.paper_table(run.config.model)
if paper_rows:
    with st.expander("The paper's table for this network"):
        figures.table(paper_rows, "paper rows")
        st.caption(
            "DFFG, BMVC 2023, top-1 in percent, all layers at the same width. The paper starts from "
            f"{paper_rows[0]['full precision']} % full precision, so compare drops rather than values."
        )
