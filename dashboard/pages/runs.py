"""Runs: what has been done, also before the server was restarted."""

import time

import streamlit as st

from core.errors import CoreError
from dashboard import figures, live, results, state, text

st.title("Runs")
st.caption(f"Everything that was started, kept in {text.plain(state.store().folder)}.")


def overview_row(run):
    """A run in one line."""
    known = state.store().results(run.id)
    best = {
        row["bits"]: row["quantized"] for row in results.accuracies(known) if row.get("quantized") is not None and row["lane"] != "adam"
    }
    return {
        "name": run.name,
        "state": str(run.state),
        "by": run.user,
        "started": time.strftime("%Y-%m-%d %H:%M", time.localtime(run.started)) if run.started else "",
        "minutes": round(((run.ended or time.time()) - run.started) / 60, 1) if run.started else None,
        "full precision %": known.get("full_precision", {}).get("top1"),
        "trained % (MI-FGSM images)": ", ".join(f"{bits} bits: {value:.1f}" for bits, value in sorted(best.items())),
    }


state.store().mark_interrupted()  # those of servers and command lines that died since this one started
runs = state.store().runs()
if not runs:
    st.info("No runs yet: start one in the Studio.", icon=":material/lightbulb:")
    st.stop()

selection = figures.table(
    [overview_row(run) for run in runs],
    on_select="rerun",
    selection_mode="single-row",
    key="runs table",
    column_config=None if any(run.user for run in runs) else {"by": None},
)
rows = selection.selection.rows
if not rows:
    st.caption("Select a row to see its settings, open it in the other pages, rename or delete it.")
    st.stop()

run = runs[rows[0]]
live.follow(run, live.status)
with st.container(horizontal=True):
    for title, page in (("Studio", "studio"), ("Quantize", "quantize"), ("Diversity", "diversity")):
        if st.button(f"Open in {title}", key=f"open {page}", disabled=page == "studio" and bool(run.config.images_from)):
            state.show_run(run.id)
            st.switch_page(f"dashboard/pages/{page}.py", query_params={state.RUN_PARAMETER: run.id})
    with st.popover("Rename"):
        name = st.text_input("Name", run.name, key=f"name {run.id}", max_chars=200)
        if st.button("Save", key="save name") and name.strip():
            state.store().rename(run.id, name.strip())
            st.rerun()
    with st.popover("Delete", disabled=not run.state.is_finished()):
        st.write("Removes the run with its images and networks, for good.")
        if st.button("Delete for good", type="primary", key="delete"):
            try:
                state.store().delete(run.id)
                state.show_run(None)
                st.rerun()
            except CoreError as error:
                st.error(text.error(error), icon=":material/error:")
st.caption(f"Files: {text.plain(state.store().run_folder(run.id))}")
left, right = st.columns(2)
with left, st.expander("Settings", expanded=True):
    st.json(run.config.to_dict(), expanded=1)
with right, st.expander("Live changes", expanded=True):
    changes = state.store().changes(run.id)
    figures.table(changes, "changes") if changes else st.caption("None: every knob stayed as it was set.")
