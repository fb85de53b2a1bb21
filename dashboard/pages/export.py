"""Export: quantized networks, images and a model card as files for other programs."""

from functools import partial

import streamlit as st

from dashboard import session, text
from dashboard.components import problems
from dashboard.components.empty import empty
from dashboard.downloads import artifacts, report
from dashboard.updates import live_view
from dashboard.views import status

st.title("Export")
st.caption(
    "The results of a run as files that work without this program; each network file is loaded again and compared with the original "
    "network before it is offered."
)

run = session.choose_run(session.WITH_IMAGES, "Run", "export run")
if run is None:
    empty("Nothing to export yet. Start a run in the Studio: its images and networks are offered here as files.")
    st.stop()

live_view.follow(status.STATUS, run)
store = session.store()
st.download_button(
    "Download report (HTML)",
    # rendered when the button is pressed, from the state of the run at that time
    partial(report.report_now, store, run.id, session.class_names),
    file_name=report.file_name(run),
    mime="text/html",
    on_click="ignore",
    icon=":material/summarize:",
    key=f"report {run.id}",
    help="One file with settings, images, charts, tables and the command that repeats the run. It opens in any browser, offline, and its "
    "charts can be downloaded as on these pages.",
)
folder = store.run_folder(run.id)
offers = artifacts.offers(run, folder, session.image_methods(run))
if not offers:
    st.info("Images and networks of this run appear here when they are finished.", icon=":material/hourglass:")
    st.stop()

left, right = st.columns(2)
with left:
    offer = st.selectbox("Content", offers, format_func=lambda offer: text.one_line_text(offer.title), key=f"content {run.id}")
with right:
    of_network = "onnxruntime" in offer.formats
    label = "For" if of_network else "Format"
    kind = st.selectbox(label, offer.formats, format_func=artifacts.FORMATS.__getitem__, key=f"format {offer.formats}")
preprocessing = artifacts.normalizes(kind) and st.checkbox(
    "Include the normalization",
    key="preprocessing",
    help="The file takes uint8 images, 0 to 255, and normalizes them itself. Otherwise, it takes normalized float32 images.",
)
if st.button("Create file", type="primary", icon=":material/file_export:", key="make"):
    with (
        problems.shown(),
        st.spinner("Writing and verifying the file; you may leave this page, it is listed here when it is done ...", show_time=True),
    ):
        artifacts.make(session.store().folder, run.id, offer, kind, folder, preprocessing)

files = artifacts.exported(folder)
if not files:
    st.caption("Created files are stored with the run and listed here.")
    st.stop()
st.header("Files of this run")
WIDTHS = (4, 4, 2, 3, 3, 3)
with st.container(key="titles"):
    titles = st.columns(WIDTHS)
for column, name in zip(titles, artifacts.FILE_COLUMNS, strict=True):
    column.caption(name)
for path, facts in files:
    button, *columns = st.columns(WIDTHS, vertical_alignment="center")
    button.download_button(
        path.name, path.read_bytes, file_name=path.name, on_click="ignore", icon=":material/download:", key=f"download {path.name}"
    )
    *cells, check = artifacts.file_cells(facts)
    for column, cell in zip(columns, cells):
        column.markdown(text.plain(cell))
    columns[-1].markdown(text.plain(check), help=artifacts.check_in_words(facts) or None)
if any("torch_accuracy" in facts for _, facts in files):
    st.caption(
        "Top-1 of the file and of the network in PyTorch on the evaluation images of the run; latency on this machine, in turns with the "
        "float32 network in the same format and program. With integer kernels, scores differ by some steps on many images. "
        "[Netron](https://netron.app) shows the graph of an ONNX file."
    )
