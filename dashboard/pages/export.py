"""Export: quantized networks, images and a model card as files that work elsewhere."""

from functools import partial

import streamlit as st

from core.errors import CoreError
from dashboard import session, text
from dashboard.components import figures
from dashboard.downloads import artifacts, report
from dashboard.names import class_names
from dashboard.updates import live_view
from dashboard.views import status

st.title("Export")
st.caption(
    "The results of a run as files that work without this program. A network's file is loaded again after it was written, and measured "
    "against the network it came from."
)

run = session.choose_run(session.has_images, "Run", "export run")
if run is None:
    st.info("Nothing to export yet: start a run in the Studio, its images and networks appear here.", icon=":material/lightbulb:")
    st.stop()

live_view.follow(status.STATUS, run)
store = session.store()
st.download_button(
    "Report of the run (HTML)",
    # made when it is pressed, of the run as it is then
    partial(report.report_now, store, run.id, class_names),
    file_name=report.file_name(run),
    mime="text/html",
    on_click="ignore",
    icon=":material/summarize:",
    key=f"report {run.id}",
    help="One file with settings, pictures, charts, tables and how to make the run again. It opens in any browser, without a server or "
    "a network, and its charts can be taken along as here.",
)
folder = store.run_folder(run.id)
offers = artifacts.offers(run, folder, session.image_methods(run))
if not offers:
    st.info("Images and networks of this run appear here when they are made.", icon=":material/hourglass:")
    st.stop()

left, right = st.columns(2)
with left:
    offer = st.selectbox("What", offers, format_func=lambda offer: text.one_line_text(offer.title), key=f"what {run.id}")
with right:
    kind = st.selectbox("Format", offer.formats, format_func=artifacts.FORMATS.__getitem__, key=f"format {offer.formats}")
if st.button("Make the file", type="primary", icon=":material/file_export:", key="make"):
    try:
        with st.spinner("Writing and checking the file ...", show_time=True):
            artifacts.make(session.store().folder, run.id, offer, kind, folder)
    except (CoreError, OSError) as error:
        st.error(text.error(error), icon=":material/error:")

made = artifacts.exported(folder)
if not made:
    st.caption("Files that were made are kept with the run and listed here.")
    st.stop()
st.header("Made of this run")
for path, of_file in made:
    with st.container(horizontal=True, vertical_alignment="center"):
        st.download_button(
            path.name, path.read_bytes, file_name=path.name, on_click="ignore", icon=":material/download:", key=f"download {path.name}"
        )
        st.markdown(f"{text.plain(of_file['title'])} · {of_file['bytes'] / 1e6:.2f} MB")
networks = [artifacts.network_row(path, of_file) for path, of_file in made if "torch_accuracy" in of_file]
if networks:
    figures.table(networks, "networks")
    st.caption(
        "Top-1 of the network in torch and of its file, on the run's evaluation images, and on how many of these no score differs by more "
        "than a step of the last quantizer; size, and milliseconds for one image with one thread, beside the float32 network in the same "
        "format."
    )
