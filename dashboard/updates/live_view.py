"""Views that follow a run. One function `values` provides the data for the first drawing and for every update."""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import streamlit as st

from core.errors import RunError, StoreError
from core.runs.run import Run
from core.runs.state import RunState
from dashboard import session
from dashboard.components import elements, problems
from dashboard.pages import PAGES
from dashboard.server import resources
from dashboard.updates import pace, socket

# reserved keys of `View.values`, which are not data of an element
LAYOUT = "layout"  # any JSON value; when it changes, Streamlit redraws the view, because the view has other elements
PAGE = "page"  # any JSON value; when it changes, the whole page is redrawn
ENDED = "ended"  # whether the values no longer change; default: whether the run is finished
BEHIND = "behind"  # SOON or AT_ONCE if newer data is about to be complete, so that the page should ask again earlier
_NOT_ELEMENTS = (LAYOUT, PAGE, ENDED, BEHIND)
# layout versions of an answer without values
_DELETED, _UNREADABLE = "deleted", "unreadable"
# fractions of the usual time between two updates
SOON = 0.2
AT_ONCE = 0.03

Values = dict[str, Any]


class View(NamedTuple):
    """A part of a page that follows a run.

    name: unique. values(run, address): key of an element -> its data that changes while the run is active, and the reserved keys above.
    address: the parameters of the page's address. `values` reads the store only and must be fast: it runs for every update of every page.
    draw(run, values): draws the elements with the data in `values`.
    """

    name: str
    values: Callable[[Run, Mapping[str, str]], Values]
    draw: Callable[[Run, Values], None]


def find_view(name: str) -> View:
    """The view with this name, on any page. Raises KeyError."""
    for source in dict.fromkeys(source for page in PAGES for source in page.views):
        module, _, attribute = source.partition(":")
        view = getattr(importlib.import_module(module), attribute)
        if view.name == name:
            return view
    raise KeyError(name)


def follow(view: View, run: Run) -> None:
    """Draws a view and updates its elements until the values no longer change; then the whole page is redrawn."""
    ended, page = _of_page(run, view.values(run, st.query_params.to_dict()))

    def draw() -> tuple[str, float]:
        try:
            current = session.store().run(run.id)
        except RunError:
            st.rerun(scope="app")  # the run was deleted, so the page must show another one
        values = view.values(current, st.query_params.to_dict())
        if _of_page(current, values) != (ended, page):
            st.rerun(scope="app")
        with elements.rendering("" if ended else str(time.time())):
            view.draw(current, values)
        return _layout_version(current, values), values.get(BEHIND) or 1.0

    @st.fragment
    def region() -> None:
        try:
            layout, part = draw()
        except StoreError as error:
            problems.show(error)
            layout, part = _UNREADABLE, 1.0  # the view is drawn again when an update has another
        if not ended:
            elements.update_socket(f"updates/{view.name}/{run.id}", socket.address(run.id, view.name), layout, _again(part))

    region()


def collect_updates(view: View, run_id: str, query: str) -> dict[str, Any]:
    """The answer to a page whose address has this query.

    `layout`: version key of the view. `again`: milliseconds until the page should ask again. `values`: element key -> JSON of its data.
    """
    try:
        run = session.store().run(run_id)
        values = view.values(run, dict(parse_qsl(query.removeprefix("?"))))
        layout = _layout_version(run, values)
    except RunError:
        return {"layout": _DELETED, "again": _again(), "values": {}}
    except StoreError:
        return {"layout": _UNREADABLE, "again": _again(), "values": {}}
    data = {key: json.dumps(value) for key, value in values.items() if key not in _NOT_ELEMENTS}
    return {"layout": layout, "again": _again(values.get(BEHIND) or 1.0), "values": data}


def _again(part: float = 1.0) -> int:
    """Milliseconds until a page should ask again.

    part: of the usual time, less when newer data is about to be complete. At its usual pace, a page in step with the job could miss all
    such moments.
    """
    return round(1000 * pace.stream_seconds() * part)


def _of_page(run: Run, values: Values) -> tuple[bool, Any]:
    return values.get(ENDED, run.state.is_finished()), values.get(PAGE)


def _layout_version(run: Run, values: Values) -> str:
    """Version key: the view is redrawn when it changes."""
    controls = session.manager().controls(run.id)
    paused = session.manager().pauses(run.id)
    waiting = session.manager().waiting(run.id) if run.state is RunState.QUEUED else 0
    return json.dumps([run.state, bool(run.stage), run.attempt, controls, paused, waiting, _of_page(run, values), values.get(LAYOUT)])


def refreshed(seconds: float | None, draw: Callable[[], None]) -> None:
    """Draws a fragment, and redraws it at an interval in seconds, at a lower priority than jobs. None: only when its widgets are used."""
    first = True

    @st.fragment(run_every=seconds)
    def region() -> None:
        nonlocal first
        if not first and seconds is not None:  # the user waits for the first drawing and for the effects of a click
            resources.lower_priority()
        first = False
        with problems.shown():
            draw()

    region()
