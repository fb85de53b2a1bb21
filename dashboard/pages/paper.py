"""Paper: the results table of the paper beside local measurements, and a form that measures a row."""

import streamlit as st

from core.config import PRESETS
from core.generation.methods import METHODS
from core.runs import paper_table
from core.runs.early_checks import check_classes, check_data
from dashboard import session
from dashboard.components import problems, tables
from dashboard.forms import run as forms
from dashboard.names import method_name
from dashboard.tables import results
from dashboard.tables.columns import Column

MOST = 20  # runs of each network of a row

st.title("Paper")
st.caption(
    "Top-1 (%) of DFFG (BMVC 2023) and the methods it compares with, all layers at the same bit width, beside measurements made here. "
    "If a measurement started from other weights than the paper's, compare the drop from full precision rather than the value."
)

rows = paper_table.table(session.store(), MOST)
columns = {
    f"{quantity} {method}": Column(f"{quantity} {method_name(method)}", digits=2)
    for quantity in ("drop", "top-1", "±")
    for method in METHODS
} | results.PAPER_COLUMNS
tables.table(results.whole_table(rows), "paper", columns, alt="The paper's table", all_rows=True, best=results.DATA_FREE)
st.caption(
    "Bold: the best data-free method of a row in the paper. Of several measurements of a row, the one with the fewest changes to a preset "
    "is shown, and of equal ones the newest."
)

st.header("Measurements")
measured = [one for _, of_row in rows for one in of_row]
if measured:
    picked = tables.table(
        results.measured_table(measured),
        "measured",
        columns,
        alt="Measurements",
        ids=[f"{number} {one.run}".strip() for number, one in enumerate(measured)],
        links=lambda line: session.page_address("quantize", run) if (run := line.partition(" ")[2]) else None,
    )
    if picked.opened:
        session.open_run("quantize", picked.opened.partition(" ")[2])
    st.caption(
        "±: one standard error of the top-1 on its left. A row's name opens its run. Of each row and network, the newest "
        # without backticks: code in a caption has too little contrast
        f'{MOST} runs are shown; "python -m core table" prints all.'
    )
else:
    st.info("No row has been measured yet. Choose one below and press Measure.", icon=":material/lightbulb:")

with st.expander("Measure a row", icon=":material/add:", expanded=not measured, key="measure a row"):
    left, right = st.columns(2)
    with left:
        name = st.selectbox("Row", [row.name for row, _ in rows], key="row")
        row = paper_table.paper_row(name)
        # weights that are available locally come first; those of the paper must be downloaded
        model = st.selectbox(
            "Network",
            row.networks[::-1],
            format_func=lambda model: f"{model}, {paper_table.weights_source(model)}",
            help="The weights of the paper are downloaded on first use.",
            key=f"{name}/model",
        )
    with right:
        preset = forms.preset_choice("table preset")
        data = st.text_input(
            "Evaluation images",
            placeholder=paper_table.default_data(PRESETS[preset], row)
            if row.dataset == paper_table.EMBEDDED_DATA
            else f"a folder of {row.dataset}'s images",
            help="A folder on the machine that runs the job. Leave empty for CIFAR-10 only.",
            key=f"{name}/data",
        ).strip()
    if st.button("Measure", type="primary", icon=":material/play_arrow:", key="measure row"):
        with problems.shown():
            config = paper_table.row_config(name, PRESETS[preset], model, data)
            check_data(config.evaluation.data)
            check_classes(config.evaluation.data, model)
            session.start(config)
            st.switch_page("dashboard/pages/studio.py", query_params={session.RUN_PARAMETER: st.query_params[session.RUN_PARAMETER]})
