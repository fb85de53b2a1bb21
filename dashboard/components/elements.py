"""Elements of the pages that Streamlit does not have: the iteration player, the contact sheet, a figure that is changed in place.

Each is a component with its HTML, CSS and JavaScript in `components/`. What comes from outside goes there as data, never into the HTML.

With `made`, any text that is another with each drawing, an element can be streamed to (see stream.py) under the name that is its key: what
comes so goes over what it was drawn with, and is newer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import plotly
import streamlit as st
from starlette.requests import Request
from starlette.responses import FileResponse
from starlette.routing import BaseRoute, Route

from dashboard import session
from dashboard.charts import files as chart_files
from dashboard.images.contact_sheet import Sheet
from dashboard.server import access
from dashboard.tables.iterations import nearest
from dashboard.text import one_line_text

_FOLDER = Path(__file__).parent
_STREAMED = (_FOLDER / "streamed.js").read_text()
_LIBRARY = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
# the version in its name: a browser may keep it for ever
_LIBRARY_NAME = f"plotly-{plotly.__version__}.js"


def _component(name: str, isolate_styles: bool = True) -> Any:
    texts = {path.suffix[1:]: path.read_text() for path in _FOLDER.glob(f"{name}.*")}
    texts["js"] = _STREAMED + texts["js"]
    return st.components.v2.component(f"dashboard.{name}", isolate_styles=isolate_styles, **texts)


_player = _component("player")
_sheet = _component("sheet")
_words = _component("words")
_live = _component("live")
# plotly puts its own styles into the head of the page
_figure = _component("figure", isolate_styles=False)


def routes() -> list[BaseRoute]:
    """What the server must answer besides Streamlit's own: the plotly.js that came with plotly."""
    return [Route(_library_address(), _send_library)]


async def _send_library(request: Request) -> FileResponse:
    return FileResponse(_LIBRARY, media_type="text/javascript", headers={"Cache-Control": "public, max-age=31536000, immutable"})


def _library_address() -> str:
    return access.path(_LIBRARY_NAME)


@contextmanager
def folded(label: str, key: str, expanded: bool, icon: str) -> Iterator[bool]:
    """An expander, and whether to make what is in it: when somebody has opened it, and from then on, so that nothing typed is lost.

    A form has dozens of elements, and a browser beside a job takes seconds for them.
    """
    with st.expander(label, expanded=expanded, key=key, icon=icon, on_change="rerun") as expander:
        opened = f"opened/{key}"
        st.session_state[opened] = bool(expander.open) or st.session_state.get(opened, False)
        yield st.session_state[opened]


def player(
    run_id: str,
    moments: Sequence[int],
    latest: int,
    start: int | None,
    following: str,
    iterations: int,
    batches: int,
    marks: Sequence[tuple[int, str]],
    key: str,
    made: str = "",
) -> int | None:
    """The slider over the kept moments of a run, with play button and arrow keys; returns the step to show, None for the newest.

    What it stands at is in the address. moments: kept steps, in order. latest: the newest step. start: what a page that is just opened
    shows. following: how often newer ones come, "" if there will be none. iterations: of a batch. marks: step and text of live changes.
    """
    chosen = nearest(st.session_state.get(_moment_key(run_id), start), moments, latest)

    def move() -> None:
        at = st.session_state[key]["at"]
        st.session_state[_moment_key(run_id)] = at
        session.put_into_address(session.AT_PARAMETER, at)

    _player(
        key=key,
        data={
            **player_data(moments, latest, chosen, marks),
            "run": run_id,
            "turn": st.session_state.get(_turn_key(run_id), 0),
            "following": following,
            "iterations": iterations,
            "batches": batches,
            **_streamed(key, made),
        },
        on_at_change=move,
    )
    return chosen


def player_data(moments: Sequence[int], latest: int, at: int | None, marks: Sequence[tuple[int, str]]) -> dict[str, Any]:
    """What of a player changes as the run goes on."""
    return {"moments": [step for step in moments if step < latest], "latest": latest, "at": at, "marks": [list(mark) for mark in marks]}


def _streamed(key: str, made: str) -> dict[str, str]:
    return {"piece": key, "made": made} if made else {}


def follow_newest(run_id: str) -> None:
    """Moves the player of a run to its right end, wherever a person has left it."""
    st.session_state[_moment_key(run_id)] = None
    st.session_state[_turn_key(run_id)] = st.session_state.get(_turn_key(run_id), 0) + 1
    session.put_into_address(session.AT_PARAMETER, None)


def _moment_key(run_id: str) -> str:
    return f"moment/{run_id}"


def _turn_key(run_id: str) -> str:
    return f"turn of the player/{run_id}"


def sheet(sheet: Sheet, alt: str, chosen: int | None, key: str, on_pick: Callable[[int], None], made: str = "") -> None:
    """A contact sheet whose images can be pointed at and pressed. on_pick: called with the index of an image that was pressed."""
    _sheet(
        key=key,
        data={**vars(sheet), "chosen": chosen, "alt": alt, **_streamed(key, made)},
        on_picked_change=lambda: on_pick(_picked(key)),
    )


def figure(figure: str, title: str, key: str, name: str, on_pick: Callable[[Any], None] | None = None, made: str = "") -> None:
    """A figure, changed in place when it comes again under the same key.

    figure: JSON as chart_style.json_of makes it. title: for screen readers, its own without one. name: of its files. on_pick: called
    with the customdata of a point that was pressed, or its number in its trace.
    """
    _figure(
        key=key,
        data={
            "figure": figure,
            "title": title,
            "library": _library_address(),
            "pressable": on_pick is not None,
            "config": chart_files.config(name),
            **_streamed(key, made),
        },
        on_picked_change=(lambda: on_pick(_picked(key))) if on_pick else lambda: None,
    )


def _picked(key: str) -> Any:
    return st.session_state[key]["picked"]


def words(key: str, lines: Sequence[str], title: str = "", part: float | None = None, clipped: bool = False, made: str = "") -> None:
    """Lines of text, small, and a title over them. part: how full a bar under them is, 0 to 1. clipped: each line stays one line."""
    _words(key=key, data={**words_data(lines, title, part), "clipped": clipped, **_streamed(key, made)})


def words_data(lines: Sequence[str], title: str = "", part: float | None = None) -> dict[str, Any]:
    """What of `words` changes as the run goes on."""
    return {"title": one_line_text(title), "lines": [one_line_text(line) for line in lines], "part": part}


def live(key: str, address: str, phase: str, milliseconds: int, redraw: bool) -> None:
    """Has the elements of the page streamed to by the socket at `address`, which is asked again after so many milliseconds.

    The page is drawn anew when the run is in another phase than `phase`. redraw: each time, with nothing streamed.
    """
    with st.container(key="live"):  # takes no place: see page.css
        _live(
            key=key,
            data={"address": address, "phase": phase, "milliseconds": milliseconds, "redraw": redraw},
            on_changed_change=lambda: None,
        )
