"""Runs: the list of all runs, to search, describe, tag, compare, delete and restore."""

import streamlit as st

from core.runs.lists import RunFilter
from dashboard import session, text
from dashboard.charts.comparison import MOST
from dashboard.components import problems, tables
from dashboard.components.empty import empty
from dashboard.forms import new_run
from dashboard.pages import PAGES
from dashboard.tables import run_list
from dashboard.updates import live_view
from dashboard.views import comparison, run_actions, status

st.title("Runs")
note = (
    " The folder is read-only: runs can be looked at, but nothing can be started or changed."
    if session.store().database.is_for_reading
    else ""
)
st.caption(f"All runs, stored in {text.plain(session.store().folder)}.{note}")

with problems.shown():  # a folder that has become read-only can still be listed
    session.store().mark_interrupted()  # runs of other processes that ended without finishing
lists = session.store().lists
count = lists.count()
run_actions.undo_line()
if not count:
    empty("No runs yet. Each run that is started in the Studio is listed here, with its settings, state and accuracies.")
    run_actions.deleted_runs()
    st.stop()

with st.container(horizontal=True):
    words = st.text_input("Search", placeholder="name, note, tag or network", key="find", bind="query-params", width=320)
    states = st.multiselect("State", [str(state) for state in lists.states()], key="state", bind="query-params", width=260)
    known_tags = lists.tags()
    tags = st.multiselect("Tags", known_tags, key="tag", bind="query-params", width=260) if known_tags else []
    wanted = RunFilter(words=words, states=states, tags=tags)
    fitting = lists.count(wanted)
    order, first = run_actions.choose_part(fitting)
shown = lists.runs(wanted, session.MOST_LISTED, first, order)
chosen = run_actions.choose_in_table(shown)

if not shown:
    st.caption("No run matches the filters above.")
elif not chosen:
    st.caption(
        f"{fitting:,} of {count:,} runs. Select a row to describe, open, repeat or delete the run; select several to compare, tag or "
        "delete them. "
        + (
            "Click a column header to sort."
            if fitting <= len(shown)
            else f"The table shows {len(shown)} of them: choose others, or how all are sorted, above. A column header sorts only these."
        )
    )
elif len(chosen) == 1:
    run = chosen[0]
    live_view.follow(status.STATUS, run)
    with st.container(horizontal=True):
        for page in (page for page in PAGES if page.opens_runs):
            unfit = page.needs_generation and bool(run.config.images_from)
            if st.button(f"Open in {page.title}", key=f"open {page.name}", disabled=unfit):
                session.open_run(page.name, run.id)
        if st.button("Start again with these settings", icon=":material/replay:", key="start again"):
            new_run.start_again(run)
        run_actions.pin_button(run)
        run_actions.delete_button([run])
    left, right = st.columns(2)
    with left:
        run_actions.description_form(run, known_tags)
        st.caption(f"Files: {text.plain(session.store().run_folder(run.id))}")
        with st.expander("Live changes", expanded=True, key="live changes"):
            changes = session.store().changes(run.id)
            if changes:
                tables.table(run_list.change_lines(changes), "changes", alt="Live changes")
            else:
                st.caption("No setting was changed while the run was active.")
    with right, st.expander("Settings", expanded=True, key="settings of the run"):
        st.json(run.config.to_dict(), expanded=1)
else:
    st.markdown(f"**{len(chosen)} runs** selected.")
    with st.container(horizontal=True):
        if st.button(
            f"Compare {len(chosen)} runs", type="primary", icon=":material/compare_arrows:", key="compare", disabled=len(chosen) > MOST,
            help=f"At most {MOST} at once.",
        ):  # fmt: skip
            comparison.compare([run.id for run in chosen])
        run_actions.tag_together(chosen, known_tags)
        run_actions.delete_button(chosen)

run_actions.deleted_runs()
