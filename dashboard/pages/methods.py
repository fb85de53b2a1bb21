"""Methods: the methods side by side under one protocol, over several seeds, and a form that measures what is missing."""

from dataclasses import replace

import streamlit as st

from core.comparison import examples, table
from core.comparison.cells import ACTIVE, cells, found, resumable_run
from core.comparison.kept import kept
from core.comparison.verdict import of_table
from core.config import find_knob
from core.generation.methods import METHODS, in_order
from core.runs.lists import RunFilter
from core.runs.manager import default_name
from dashboard import session, text
from dashboard.components import elements, problems
from dashboard.components.empty import empty
from dashboard.forms.seeds import seeds_of
from dashboard.images import contact_sheet
from dashboard.names import method_name
from dashboard.server import rights
from dashboard.views import methods as view
from dashboard.views import verdict
from dashboard.views.generation_data import names_for

MOST = 500  # runs of a network that are searched for those of the protocol
COMPARED = RunFilter(generates=True, quantizes=True)

st.title("Methods")
st.caption(
    "Methods side by side under one protocol: the same quantizer, training, numbers of images and steps, and evaluation images. Only the "
    "images differ."
)

if known := kept():
    with elements.folded("Measured with this program", "kept comparisons", False, ":material/inventory_2:") as opened:
        if opened:
            view.draw_kept(known)

run = session.choose_run(COMPARED, "Protocol: the settings of this run", "methods run")
if run is None:
    empty("No run with bit widths yet. Start one in the Studio: its settings are the first protocol, and its methods are compared here.")
    st.stop()
# a budget of time has become numbers of images and steps, which are the same for all methods
start = run.config.with_knobs({"budget": 0.0})

measured = found(session.store(), start, most=MOST)
rows = table.rows(session.store(), measured)
if rows:
    runs = tuple(sorted({run_id for row in rows for run_id in row.runs}))
    verdict.draw_table((runs, tuple(start.bits)), lambda: of_table(session.store(), rows))
    view.draw_rows(rows, run.name, "methods")
    with elements.folded("Best and worst images", f"best and worst/{run.id}", False, ":material/star:") as opened:
        if opened:
            st.caption(examples.EXPLAINED)
        for shown in examples.of_table(session.store(), rows) if opened else ():
            st.markdown(f"**{text.plain(method_name(shown.method))}**")
            for place, title, part in zip(st.columns(2), ("best", "worst"), (shown.best, shown.worst)):
                with place:
                    st.caption(title)
                    st.html(contact_sheet.row_html(part, names_for(run, part)))
else:
    st.info("This protocol has no complete run with labeled evaluation images yet.", icon=":material/lightbulb:")


def missing(config, seeds):
    """The cells that no run has measured or will measure."""
    known = {(cell.method, cell.seed) for cell, _ in [*measured, *found(session.store(), start, ACTIVE)]}
    return [cell for cell in cells(config, seeds) if (cell.method, cell.seed) not in known]


def start_runs(wanted):
    """Queues a run for each cell, or resumes it if it was interrupted."""
    for cell in wanted:
        earlier = resumable_run(session.store(), cell)
        if earlier is not None and not rights.objection(earlier):
            session.manager().resume(earlier.id)
        else:
            session.manager().start(cell.config, default_name(cell.config), user=rights.user())


with st.expander("Measure more", icon=":material/add:", expanded=not rows, key="measure more"):
    left, right = st.columns(2)
    with left:
        chosen = st.multiselect(
            "Methods", list(METHODS), default=list(run.config.methods), format_func=method_name, key=f"methods/{run.id}"
        )
    with right:
        written = st.text_input(
            "Seeds", "0, 1, 2", key=f"seeds/{run.id}", help="A run for each method and seed. Runs that exist are reused."
        )
    if "real" in chosen:
        field = find_knob("real_images")[1].metadata
        folder = st.text_input(field["label"], start.generation.real_images, key=f"real images/{run.id}", help=field["help"])
    with problems.shown():
        if "real" in chosen:
            start = start.with_knobs({"real_images": folder.strip()})
        wanted = missing(replace(start, methods=tuple(in_order(chosen))), seeds_of(written)) if chosen else []
        if st.button(
            f"Start {len(wanted)} run{'s' if len(wanted) != 1 else ''}",
            type="primary",
            icon=":material/play_arrow:",
            key="measure methods",
            disabled=not wanted,
        ):
            start_runs(wanted)
            st.rerun()
        if chosen and not wanted:
            st.caption("These are measured, or will be: see Runs.")
