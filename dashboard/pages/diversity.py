"""Diversity: how similar the images of each method are, by CLIP similarity."""

from dataclasses import replace

import streamlit as st

from core.config import PRESETS
from dashboard import session
from dashboard.components import elements, problems
from dashboard.components.empty import empty
from dashboard.forms import run as forms
from dashboard.forms import sources
from dashboard.forms.refusals import Refusals
from dashboard.updates import live_view
from dashboard.views import diversity

st.title("Diversity")
st.caption("How similar the synthetic images of each method are: the CLIP similarity of two images, over all pairs; lower is more diverse.")

run = session.choose_run(session.WITH_IMAGES, "Run", "diversity run")
if run is None:
    empty("No run with images yet. Start a run in the Studio: the similarity of its images is shown here. Or upload your own images below.")
else:
    live_view.follow(diversity.DIVERSITY, run)

if run is not None and session.image_methods(run):
    # open where nothing is measured, because nothing else is on the page then
    unmeasured = run.state.is_finished() and not any(name.startswith("diversity/") for name in session.store().result_names(run.id))
    with st.expander("Measure with an encoder", icon=":material/add:", expanded=unmeasured, key="measure with an encoder"):
        refusals = Refusals("diversity")
        encoder = forms.encoder_widget(PRESETS["quick"], "diversity", refusals)
        if refusals.button("Measure", "measure"):
            with problems.shown():
                config = replace(
                    run.config,
                    methods=tuple(session.image_methods(run)),
                    bits=(),
                    evaluation=replace(run.config.evaluation, encoder=encoder),
                    images_from=str(session.store().images_folder(run)),
                )
                session.start(config)
                st.rerun()


def own_form():
    """The form; starts a run when its button is pressed."""
    refusals = Refusals("own diversity")
    left, right = st.columns(2)
    with left:
        own_images = sources.images_widget("own diversity", refusals)
        own_encoder = forms.encoder_widget(PRESETS["quick"], "own diversity", refusals)
    with right:
        network = sources.network_widgets(PRESETS["quick"].model, "own diversity", refusals)
    if refusals.button("Measure these images", "measure own") and own_images is not None:
        with problems.shown():
            config = replace(PRESETS["quick"], bits=()).with_knobs({"encoder": own_encoder})
            config = forms.with_own_images(config, sources.kept_images(own_images, refusals), sources.kept_network(network, refusals))
            session.start(config, own_images.name)
            sources.forget_uploads()
            st.rerun()


key = f"diversity own/{run.id if run is not None else ''}"
with elements.folded("Measure your own images", key, False, ":material/upload:") as opened:
    if opened:
        own_form()
