"""Diversity: how alike the images of each optimizer are, by CLIP similarity."""

from dataclasses import replace

import streamlit as st

from core.errors import CoreError
from dashboard import charts, forms, images, live, results, state

st.title("Diversity")
st.caption("Cosine similarity between the CLIP embeddings of two synthetic images, over all pairs. Lower means more diverse images.")

run = state.choose_run(lambda run: bool(state.image_lanes(run)) or not run.state.is_finished(), "Run", "diversity run")
if run is None:
    st.info("Nothing to compare yet: start a run in the Studio, the similarity of its images appears here.", icon=":material/lightbulb:")
    st.stop()

if state.image_lanes(run):
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
                state.show_run(state.manager().start(config))
                st.rerun()
            except CoreError as error:
                st.error(str(error), icon=":material/error:")


def similarity(run):
    """What is known so far: means, histogram, matrices, and the images themselves."""
    measured = results.diversities(state.store().results(run.id))
    if not measured:
        st.caption("Similarities appear here when the images are made." if run.config.encoder else "This run did not measure diversity.")
        return
    any_set = next(iter(measured.values()))
    st.markdown(f"Encoder **{any_set['encoder']}**, trained on {any_set['encoder_trained_on']}.")
    for place, (lane, figures) in zip(st.columns(len(measured)), measured.items()):
        with place, st.container(horizontal=True):
            st.metric(f"{charts.lane_name(lane)}, all pairs", f"{figures['mean_similarity']:.3f}", border=True)
            within = figures["within_class_similarity"]
            st.metric(f"{charts.lane_name(lane)}, within a class", "none" if within is None else f"{within:.3f}", border=True)
    st.plotly_chart(charts.histogram_figure(measured), key="histogram", config=live.CHART_CONFIG)
    classes = live.classes(run.config.generation.model)
    low = min(value for figures in measured.values() for row in figures["matrix"]["cosine"] for value in row)
    for place, (lane, figures) in zip(st.columns(len(measured)), measured.items()):
        with place:
            st.plotly_chart(charts.matrix_figure(lane, figures["matrix"], classes, low), key=f"matrix {lane}", config=live.CHART_CONFIG)
            sheet = state.sheet(run, lane)
            if sheet is not None:
                st.html(images.sheet_html(*sheet, classes, f"images by {charts.lane_name(lane)}", rows=8))


live.follow(run, live.status)
live.follow(run, similarity, every=live.CHART_SECONDS)
