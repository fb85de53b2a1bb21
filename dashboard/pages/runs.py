"""Runs: the list of all runs, to search, describe, tag, compare, delete and restore."""

import streamlit as st

from dashboard import session, text
from dashboard.charts.comparison import MOST
from dashboard.components import figures, problems
from dashboard.forms import new_run
from dashboard.pages import PAGES
from dashboard.tables import run_list
from dashboard.updates import live_view
from dashboard.views import comparison, run_actions, status

st.title("Runs")
st.caption(f"All runs, stored in {text.plain(session.store().folder)}.")

with problems.shown():  # a folder that is read-only can still be listed
    session.store().mark_interrupted()  # runs of other processes that ended without finishing
runs = session.store().runs()
run_actions.undo_line()
if not runs:
    st.info("No runs yet. Start one in the Studio.", icon=":material/lightbulb:")
    run_actions.deleted_runs()
    st.stop()

with st.container(horizontal=True):
    words = st.text_input("Search", placeholder="name, note, tag or network", key="find", bind="query-params", width=320)
    states = st.multiselect("State", list(dict.fromkeys(str(run.state) for run in runs)), key="state", bind="query-params", width=260)
    known = run_list.all_tags(runs)
    tags = st.multiselect("Tags", known, key="tag", bind="query-params", width=260) if known else []
fitting = [run for run in runs if run_list.fits(run, words, states, tags)]
chosen = run_actions.choose_in_table(fitting, runs)

if not fitting:
    st.caption("No run matches the filters above.")
elif not chosen:
    st.caption(
        f"{len(fitting)} of {len(runs)} runs. Select a row to describe, open, repeat or delete the run; select several to compare, tag or "
        "delete them. Click a column header to sort."
    )
elif len(chosen) == 1:
    run = chosen[0]
    live_view.follow(status.STATUS, run)
    with st.container(horizontal=True):
        for page in (page for page in PAGES if page.opens_runs):
            unfit = page.needs_generation and bool(run.config.images_from)
            if st.button(f"Open in {page.title}", key=f"open {page.name}", disabled=unfit):
                session.show_run(run.id)
                st.switch_page(page.path, query_params={session.RUN_PARAMETER: run.id})
        if st.button("Start again with these settings", icon=":material/replay:", key="start again"):
            new_run.start_again(run)
        run_actions.pin_button(run)
        run_actions.delete_button([run])
    left, right = st.columns(2)
    with left:
        run_actions.description_form(run, run_list.all_tags(runs))
        st.caption(f"Files: {text.plain(session.store().run_folder(run.id))}")
        with st.expander("Live changes", expanded=True):
            changes = session.store().changes(run.id)
            if changes:
                figures.table(changes, "changes")
            else:
                st.caption("No setting was changed while the run was active.")
    with right, st.expander("Settings", expanded=True):
        st.json(run.config.to_dict(), expanded=1)
else:
    st.markdown(f"**{len(chosen)} runs** selected.")
    with st.container(horizontal=True):
        if st.button(
            f"Compare {len(chosen)} runs", type="primary", icon=":material/compare_arrows:", key="compare", disabled=len(chosen) > MOST,
            help=f"At most {MOST} at once.",
        ):  # fmt: skip
            comparison.compare([run.id for run in chosen])
        run_actions.tag_together(chosen, run_list.all_tags(runs))
        run_actions.delete_button(chosen)

run_actions.deleted_runs()
