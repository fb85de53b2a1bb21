"""Elements that Streamlit does not have: the iteration player, the contact sheet, a figure that is changed in place, a block of text.

Each is a component with its HTML, CSS and JavaScript in this folder. What comes from outside goes there as data, never into the HTML. An
element that is drawn in a `rendering` is updated through the socket (updates/live_view.py) under its key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import plotly
import streamlit as st
from starlette.requests import Request
from starlette.responses import FileResponse
from starlette.routing import BaseRoute, Route

from dashboard import session
from dashboard.charts import files as chart_files
from dashboard.server import access
from dashboard.tables.iterations import from_address, nearest
from dashboard.text import one_line_text

_FOLDER = Path(__file__).parent
_APPLY_UPDATE = (_FOLDER / "apply_update.js").read_text()
_LIBRARY = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
# the version in its name: a browser may keep it for ever
_LIBRARY_NAME = f"plotly-{plotly.__version__}.js"


def _component(name: str, isolate_styles: bool = True) -> Any:
    texts = {path.suffix[1:]: path.read_text() for path in _FOLDER.glob(f"{name}.*")}
    texts["js"] = _APPLY_UPDATE + texts["js"]
    return st.components.v2.component(f"dashboard.{name}", isolate_styles=isolate_styles, **texts)


_player = _component("player")
_sheet = _component("sheet")
_text_block = _component("text_block")
_update_socket = _component("update_socket")
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


def chosen_step(run_id: str, address: Mapping[str, str], kept: Sequence[int], latest: int) -> tuple[int | None, str]:
    """The step that the player of a run shows, None for the newest, and what is wrong with the one in the address, or ""."""
    wanted, problem = from_address(address.get(session.AT_PARAMETER))
    return nearest(wanted, kept, latest), problem


def player(run_id: str, values: Mapping[str, Any], following: str, iterations: int, batches: int, key: str) -> None:
    """The slider over the kept iterations of a run, with play button and arrow keys. What it shows is in the address.

    values: of `player_data`. following: how often newer images come, "" if there will be none. iterations: of a batch.
    """

    def move() -> None:
        session.put_into_address(session.AT_PARAMETER, st.session_state[key]["at"])

    _player(
        key=key,
        data={
            **values,
            "run": run_id,
            "turn": st.session_state.get(_turn_key(run_id), 0),
            "following": following,
            "iterations": iterations,
            "batches": batches,
            **_updated(key),
        },
        on_at_change=move,
    )


def player_data(kept: Sequence[int], latest: int, at: int | None, marks: Sequence[tuple[int, str]]) -> dict[str, Any]:
    """The data of a player that changes as the run goes on. kept: steps, in order. marks: step and text of live changes."""
    return {"moments": [step for step in kept if step < latest], "latest": latest, "at": at, "marks": [list(mark) for mark in marks]}


_rendering: ContextVar[str] = ContextVar("rendering", default="")


@contextmanager
def rendering(token: str) -> Iterator[None]:
    """Elements drawn in the block are updated through the socket. token: identifies this rendering; updates override what it drew, but
    not what a later one draws; "" for elements that nothing updates.
    """
    before = _rendering.set(token)
    try:
        yield
    finally:
        _rendering.reset(before)


def _updated(key: str) -> dict[str, str]:
    token = _rendering.get()
    return {"key": key, "rendering": token} if token else {}


def follow_newest(run_id: str) -> None:
    """Moves the player of a run to its right end, wherever a person has left it."""
    st.session_state[_turn_key(run_id)] = st.session_state.get(_turn_key(run_id), 0) + 1
    session.put_into_address(session.AT_PARAMETER, None)


def _turn_key(run_id: str) -> str:
    return f"turn of the player/{run_id}"


def sheet(values: Mapping[str, Any], alt: str, chosen: int | None, key: str, on_pick: Callable[[int], None]) -> None:
    """A contact sheet whose images can be hovered over and clicked. values: the fields of a Sheet. on_pick: called with the index of an
    image that was clicked."""
    _sheet(
        key=key,
        data={**values, "chosen": chosen, "alt": alt, **_updated(key)},
        on_picked_change=lambda: on_pick(_picked(key)),
    )


def figure(figure: str, title: str, key: str, name: str, on_pick: Callable[[Any], None] | None = None) -> None:
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
            **_updated(key),
        },
        on_picked_change=(lambda: on_pick(_picked(key))) if on_pick else lambda: None,
    )


def _picked(key: str) -> Any:
    return st.session_state[key]["picked"]


def text_block(key: str, values: Mapping[str, Any], clipped: bool = False) -> None:
    """Lines of small text, with a title and a bar where they have one. values: of `text_block_data`. clipped: each line stays one line."""
    _text_block(key=key, data={**values, "clipped": clipped, **_updated(key)})


def text_block_data(lines: Sequence[str], title: str = "", part: float | None = None) -> dict[str, Any]:
    """The data of a text block that changes as the run goes on. part: how full the bar below the lines is, 0 to 1; None: no bar."""
    return {"title": one_line_text(title), "lines": [one_line_text(line) for line in lines], "part": part}


def update_socket(key: str, address: str, layout: str, milliseconds: int) -> None:
    """Has the elements of the page updated through the socket at `address`, which is asked again after so many milliseconds.

    Streamlit draws the view again when its layout is another than `layout`.
    """
    with st.container(key="updates"):  # takes no space: see page.css
        _update_socket(key=key, data={"address": address, "layout": layout, "milliseconds": milliseconds}, on_changed_change=lambda: None)
