"""The runs that are computed or wait, on every page: progress, links, cancel, and a notification when one ends. Reads the store only."""

from __future__ import annotations

import json
import re
from typing import Any

import streamlit as st

from core.runs import outlook
from core.runs.lists import RunFilter
from core.runs.run import Run
from core.runs.state import RunState
from dashboard import session
from dashboard.components import elements, problems
from dashboard.server import rights
from dashboard.text import one_line_text, shortened
from dashboard.updates import socket

SOCKET = "activity"  # instead of the name of a view
_MOST = 20  # runs that are listed
_AGAIN, _AGAIN_WHEN_IDLE = 4_000, 10_000  # milliseconds between two questions of a page
_WIDTH = re.compile(r"\bW(\d)A\d\b")


def draw() -> None:
    """The list, as a button in the header of the page; nothing while there are no active runs. To be called once per page."""
    opened = elements.activity(collect(""), socket.address("", SOCKET), _stop)
    if opened:
        run = session.store().run(opened)
        session.open_run(session.page_of(run), run.id)


def collect(watched: str) -> dict[str, Any]:
    """What activity.js shows. watched: ids of runs, separated by commas, which the page has seen active."""
    store = session.store()
    active = store.runs(RunFilter(active=True), most=_MOST)
    ids = [one for one in watched.removeprefix("?").split(",") if one][:_MOST]
    ended = [run for run in store.runs(RunFilter(ids=ids), most=_MOST) if run.state.is_finished()] if ids else []
    return {
        "runs": [_described(run) for run in sorted(active, key=_order)],
        "ended": [{"id": run.id, "name": shortened(run.name, 60), "state": str(run.state)} for run in ended],
        "again": _AGAIN if active else _AGAIN_WHEN_IDLE,
    }


def answer(watched: str) -> dict[str, Any]:
    """The answer to a question of activity.js, as updates/socket.py expects it."""
    values = collect(watched)
    return {"layout": "", "again": values.pop("again"), "values": {"activity": json.dumps(values)}}


def _order(run: Run) -> tuple[bool, float, str]:
    """Those that are computed first, then by age."""
    return run.state is RunState.QUEUED, run.created, run.id


def _described(run: Run) -> dict[str, Any]:
    words, short, share = "waiting", "", None
    if run.state is not RunState.QUEUED:
        at = outlook.position(run)
        share = outlook.done_share(run.config, at)
        words, short = _words(run, at)
    return {
        "id": run.id,
        "name": shortened(run.name, 60),
        "href": session.page_address(session.page_of(run), run.id),
        "state": str(run.state),
        "words": one_line_text(words),
        "short": short,
        "percent": None if share is None else int(100 * share),
        "stoppable": session.manager().controls(run.id),
    }


def _words(run: Run, at: outlook.Position) -> tuple[str, str]:
    """What a run does and when it ends; and its stage in one word, for the title of the window."""
    width = _WIDTH.search(run.stage)
    short = f"W{width[1]}" if width else "images" if run.stage == "generation" else ""
    if run.state is RunState.PAUSED:
        return "paused", short
    known = session.store().results_of([run.id], outlook.SPEEDS).get(run.id, {})
    left = outlook.seconds_left(run.config, at, known)
    return outlook.title(run.config, run.stage) + (f", {outlook.duration(left)} left" if left is not None else ""), short


def _stop(run_id: str) -> None:
    with problems.shown(st.toast):
        run = session.store().run(run_id)
        rights.require([run])
        session.manager().control(run_id).stop()
