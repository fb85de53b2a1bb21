"""Actions on the list of runs: select, describe, pin, tag, delete, restore."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import streamlit as st

from core.runs.lists import NEWEST
from core.runs.run import DAYS_IN_TRASH, NAME_CHARACTERS, NOTE_CHARACTERS, TAGS, Run
from dashboard import session, text
from dashboard.components import problems, tables
from dashboard.server import rights
from dashboard.tables import run_list

_JUST_DELETED = "just deleted"
_TABLE = "runs"  # its name in the address


def choose_part(count: int) -> tuple[str, int]:
    """Boxes to choose an order, and which part of `count` runs the table shows. Returns the order, and how many runs come before the part.

    There are none if the table shows all: its column headers sort it.
    """
    if count <= session.MOST_LISTED:
        return NEWEST, 0
    order = st.selectbox("Sort by", session.store().lists.orders(), key="sort", bind="query-params", width=200)
    first = st.selectbox(
        "Show",
        range(0, count, session.MOST_LISTED),
        format_func=lambda start: f"{start + 1:,} to {min(start + session.MOST_LISTED, count):,}",
        key=f"part {order}",
        width=200,
    )
    return order, first


def choose_in_table(runs: Sequence[Run]) -> list[Run]:
    """Draws a table of these runs; returns the selected ones."""
    known = {run.id: run for run in runs}
    picked = tables.table(
        run_list.lines(runs, session.store().results_of(list(known), run_list.FIGURES)),
        _TABLE,
        run_list.COLUMNS,
        alt="Runs",
        ids=list(known),
        select="many",
        links=lambda run_id: session.page_address(session.page_of(known[run_id]), run_id),
        find=False,  # the page searches all runs, not only those in the table
    )
    if picked.opened in known:
        session.open_run(session.page_of(known[picked.opened]), picked.opened)
    return [known[run_id] for run_id in picked.rows]


def description_form(run: Run, known_tags: Sequence[str]) -> None:
    """Name, note and tags of a run."""
    with st.form(f"description {run.id}"):
        name = st.text_input("Name", run.name, max_chars=NAME_CHARACTERS, key=f"name {run.id}")
        note = st.text_area("Note", run.note, max_chars=NOTE_CHARACTERS, key=f"note {run.id}", placeholder="Purpose and observations")
        tags = st.multiselect(
            "Tags",
            list(dict.fromkeys([*run.tags, *known_tags])),
            default=list(run.tags),
            accept_new_options=True,
            max_selections=TAGS,
            key=f"tags {run.id}",
            placeholder="Choose or type",
        )
        if st.form_submit_button("Save", icon=":material/save:", key="save description"):

            def save() -> None:
                store = session.store()
                if name.strip():
                    store.rename(run.id, name.strip())
                store.set_note(run.id, note.strip())
                store.set_tags(run.id, tags)

            if _done(save):
                st.rerun()


def pin_button(run: Run) -> None:
    """Makes the run the baseline, or removes it as the baseline."""
    label, icon, act = (
        ("Unpin as baseline", ":material/keep_off:", session.store().unpin)
        if run.pinned
        else ("Pin as baseline", ":material/keep:", session.store().pin)
    )
    if st.button(label, icon=icon, key="pin", help="The Compare page shows differences from the baseline.") and _done(lambda: act(run.id)):
        st.rerun()


def tag_together(runs: Sequence[Run], known_tags: Sequence[str]) -> None:
    """Adds tags to several runs, or removes tags from them."""
    with st.popover("Tag", icon=":material/label:"), st.form("tag together", border=False):
        added = st.multiselect("Add", known_tags, accept_new_options=True, key="tags to add", placeholder="Choose or type")
        removed = st.multiselect("Remove", run_list.all_tags(runs), key="tags to remove")
        if st.form_submit_button("Save", key="save tags"):

            def save() -> None:
                for run in runs:
                    session.store().set_tags(run.id, [*(tag for tag in run.tags if tag not in removed), *added])

            if _done(save):
                st.rerun()


def delete_button(runs: Sequence[Run]) -> None:
    """Moves runs to the trash."""
    active = [run for run in runs if not run.state.is_finished()]
    refusal = _refusal(runs) or ("Active runs cannot be deleted. Stop them first." if active else "")
    if st.button(
        "Delete",
        icon=":material/delete:",
        key="delete",
        disabled=bool(refusal),
        help=text.plain(refusal) or f"Can be restored for {DAYS_IN_TRASH} days under Deleted runs below.",
    ):

        def trash() -> None:
            rights.require(runs)
            for run in runs:
                session.store().trash.put(run.id)

        if _done(trash):
            st.session_state[_JUST_DELETED] = [run.id for run in runs]
            if st.query_params.get(session.RUN_PARAMETER) in st.session_state[_JUST_DELETED]:
                session.show_run(None)
            st.rerun()


def undo_line() -> None:
    """The runs that were just deleted, with a button that restores them."""
    deleted = session.store().trash.runs(ids=st.session_state.get(_JUST_DELETED, []))
    if not deleted:
        return
    with st.container(horizontal=True, vertical_alignment="center", border=True):
        names = f"**{text.plain(deleted[0].name)}**" if len(deleted) == 1 else f"**{len(deleted)} runs**"
        st.markdown(f"Deleted {names}.", width="content")
        if st.button("Undo", icon=":material/undo:", key="undo") and _done(lambda: _restore(deleted)):
            tables.select(_TABLE, [run.id for run in deleted])
            st.session_state[_JUST_DELETED] = []
            st.rerun()
        if st.button("Close", key="close undo", type="tertiary"):
            st.session_state[_JUST_DELETED] = []
            st.rerun()


def _restore(runs: Sequence[Run]) -> None:
    rights.require(runs)
    for run in runs:
        session.store().trash.restore(run.id)


def deleted_runs() -> None:
    """The runs in the trash, to restore or to delete permanently."""
    count = session.store().trash.count()
    if not count:
        return
    with st.expander("Deleted runs", icon=":material/delete:", key="deleted runs", on_change="rerun") as expander:
        if not expander.open:
            return
        trashed = session.store().trash.runs(most=session.MOST_LISTED)
        st.caption(
            f"{count:,} deleted run{'s' if count > 1 else ''}. Files are kept for {DAYS_IN_TRASH} days and removed at the next start after "
            "that." + (f" The table shows the last {len(trashed)}." if count > len(trashed) else "")
        )
        picked = tables.table(
            run_list.deleted_lines(trashed, DAYS_IN_TRASH),
            "deleted",
            run_list.COLUMNS,
            alt="Deleted runs",
            ids=[run.id for run in trashed],
            select="many",
        )
        chosen = [run for run in trashed if run.id in picked.rows]
        refusal = _refusal(chosen)
        if refusal:
            st.caption(text.plain(refusal))
        off = not chosen or bool(refusal)
        these = "" if not chosen else " 1 run" if len(chosen) == 1 else f" {len(chosen)} runs"
        with st.container(horizontal=True):
            if st.button(f"Restore{these}", icon=":material/undo:", key="restore", disabled=off) and _done(lambda: _restore(chosen)):
                st.rerun()
            with st.popover("Delete permanently", disabled=off):
                st.write(f"Removes{these} with all images and networks. This cannot be undone.")
                if st.button("Delete permanently", type="primary", key="delete permanently"):

                    def delete() -> None:
                        rights.require(chosen)
                        for run in chosen:
                            session.store().delete(run.id)

                    if _done(delete):
                        st.rerun()


def _refusal(runs: Sequence[Run]) -> str:
    """Why the user may not delete or restore these runs; "" if they may."""
    return next((refusal for run in runs if (refusal := rights.objection(run))), "")


def _done(act: Callable[[], None]) -> bool:
    """Whether the action succeeded; if not, the page shows the error."""
    with problems.shown():
        act()
        return True
    return False
