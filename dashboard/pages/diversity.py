"""Diversity: how alike the images of each optimizer are, by CLIP similarity."""

from dataclasses import replace

import streamlit as st

from core.config import PRESETS
from core.errors import CoreError
from dashboard import diversity_charts, figures, forms, images, live, results, state, text
from dashboard.chart_style import lane_name

st.title("Diversity")
st.caption("Cosine similarity between the CLIP embeddings of two synthetic images, over all pairs. Lower means more diverse images.")

run = state.choose_run(state.has_images, "Run", "diversity run")
if run is None:
    st.info(
        "Nothing to compare yet: start a run in the Studio, the similarity of its images appears here, or upload images of your own.",
        icon=":material/lightbulb:",
    )

if run is not None and state.image_lanes(run):
    with st.expander("Measure with another encoder", icon=":material/add:"), st.form("diversity form", border=False):
        encoder = forms.encoder_widget("embedded", "diversity/encoder")
        if st.form_submit_button("Measure", type="primary", icon=":material/play_arrow:", key="measure"):
            try:
                config = replace(
                    run.config,
                    optimizers=tuple(state.image_lanes(run)),
                    bits=(),
                    encoder=encoder,
                    images_from=str(state.store().images_folder(run)),
                )
                state.start(config)
                st.rerun()
            except CoreError as error:
                st.error(text.error(error), icon=":material/error:")


with st.expander("Measure your own images", icon=":material/upload:"), st.form("own diversity form", border=False):
    left, right = st.columns(2)
    with left:
        own_images = forms.images_widget("own diversity")
        own_encoder = forms.encoder_widget("embedded", "own diversity/encoder")
    with right:
        network = forms.network_widgets(PRESETS["quick"].generation.model, "own diversity")
    if st.form_submit_button("Measure these", type="primary", icon=":material/play_arrow:", key="measure own"):
        try:
            config = replace(PRESETS["quick"], bits=(), encoder=own_encoder)
            config = forms.with_own_images(config, forms.kept_images(own_images), forms.kept_network(network))
            name = state.uploads().run_name(config, own_images.name if own_images else "")
            state.start(config, name)
            forms.forget_uploads()
            st.rerun()
        except CoreError as error:
            st.error(text.error(error), icon=":material/error:")

if run is None:
    st.stop()


def similarity(run):
    """What is known so far: means, histogram, matrices, and the images themselves."""
    measured = results.diversities(state.store().results(run.id))
    if not measured:
        st.caption("Similarities appear here when the images are made." if run.config.encoder else "This run did not measure diversity.")
        return
    any_set = next(iter(measured.values()))
    st.markdown(f"Encoder **{text.plain(any_set['encoder'])}**, trained on {text.plain(any_set['encoder_trained_on'])}.")
    for place, (lane, of_lane) in zip(st.columns(len(measured)), measured.items()):
        with place, st.container(horizontal=True):
            st.metric(f"{text.plain(lane_name(lane))}, all pairs", f"{of_lane['mean_similarity']:.3f}", border=True)
            within = of_lane["within_class_similarity"]
            st.metric(f"{text.plain(lane_name(lane))}, within a class", "none" if within is None else f"{within:.3f}", border=True)
    figures.show(diversity_charts.histogram_figure(measured), "histogram", f"{run.name} similarities")
    low = min(value for of_lane in measured.values() for row in of_lane["matrix"]["cosine"] for value in row)
    for place, (lane, of_lane) in zip(st.columns(len(measured)), measured.items()):
        with place:
            sheet = state.sheet(run, lane)
            labels = [*of_lane["matrix"]["labels"], *(sheet[1] if sheet else ())]
            classes = live.classes(run.config.generation.model, labels)
            matrix = diversity_charts.matrix_figure(lane, of_lane["matrix"], classes, low)
            figures.show(matrix, f"matrix {lane}", f"{run.name} similarity matrix {lane}")
            if sheet is not None:
                st.html(images.sheet_html(*sheet, classes, f"images by {lane_name(lane)}", rows=8))


live.follow(run, live.status)
live.follow(run, similarity, every=live.CHART_SECONDS)
