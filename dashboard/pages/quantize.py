"""Quantize: training of each bit width, and accuracy compared with full precision and the paper."""

from dataclasses import replace

import streamlit as st

from core.config import PRESETS
from dashboard import session
from dashboard.components import elements, problems, tables
from dashboard.components.empty import empty
from dashboard.forms import run as forms
from dashboard.forms import sources
from dashboard.tables import results
from dashboard.updates import live_view
from dashboard.views import confusion, layers, training

st.title("Quantize")
st.caption(
    "The full-precision network (teacher) trains a low-bit copy of itself (student) on synthetic images only; accuracy is measured on real "
    "images that were not used to choose anything."
)

run = session.choose_run(session.WITH_IMAGES, "Run", "quantize run")
if run is None:
    empty("No run with images yet. Start a run in the Studio: the accuracy of its networks is shown here. Or upload your own images below.")


def start_run(start, preset, own_images):
    """The form; starts a run when its button is pressed."""
    with problems.shown():
        config, pressed, name = forms.quantization_form(start, f"own/{preset}" if own_images else preset, own_images)
        if pressed:
            session.start(config, name)
            sources.forget_uploads()
            st.rerun()


if run is not None and session.image_methods(run):
    wanted = not run.config.bits and run.state.is_finished()
    # a different key when it should be open, so that it opens when the run ends
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
        st.caption("Real images, or synthetic images from another program, for comparison. They are stored with the runs.")
        preset = forms.preset_choice("own preset")
        start_run(PRESETS[preset].with_knobs({"encoder": ""}), preset, own_images=True)

if run is None:
    st.stop()


live_view.follow(training.TRAINING, run)
confusion.confusion(run)
layers.layers(run)

paper_rows = results.paper_table(run.config.model)
if paper_rows:
    with st.expander("The paper's table for this network", key="paper's table"):
        tables.table(paper_rows, "paper", results.PAPER_COLUMNS, alt="The paper's table for this network", best=results.DATA_FREE)
        st.caption(
            "DFFG, BMVC 2023: top-1 (%), all layers at the same bit width. The paper starts from "
            f"{paper_rows[0]['full precision']} % at full precision, so compare drops rather than values."
        )
