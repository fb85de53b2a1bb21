"""Page elements that Streamlit lacks: iteration player, contact sheet, live knobs, a figure that is updated in place, a block of text.

Each is a component with its HTML, CSS and JavaScript in this folder. Text from outside is passed as data, never inserted into the HTML.
The height of an element in Python holds its place until it is drawn (page.css).
An element that is drawn in a `rendering` is updated through the socket (updates/live_view.py) under its key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

import plotly
import streamlit as st
from starlette.requests import Request
from starlette.responses import FileResponse
from starlette.routing import BaseRoute, Route

from dashboard import session
from dashboard.charts import files as chart_files
from dashboard.charts.style import height_of
from dashboard.server import settings
from dashboard.tables.iterations import from_address, nearest
from dashboard.text import one_line_text

T = TypeVar("T")
_PLAYER, _TITLE, _LINE = 40, 26, 23  # pixels (player.css and text_block.css)
_FOLDER = Path(__file__).parent
_APPLY_UPDATE = (_FOLDER / "apply_update.js").read_text(encoding="utf-8")
_LIBRARY = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
# the name contains the version, so that browsers may cache the file forever
_LIBRARY_NAME = f"plotly-{plotly.__version__}.js"


def component(name: str, isolate_styles: bool = True) -> Any:
    """The component whose HTML, CSS and JavaScript are files of this name in this folder."""
    texts = {path.suffix[1:]: path.read_text(encoding="utf-8") for path in _FOLDER.glob(f"{name}.*")}
    texts["js"] = _APPLY_UPDATE + texts["js"]
    return st.components.v2.component(f"dashboard.{name}", isolate_styles=isolate_styles, **texts)


_player = component("player")
_sheet = component("sheet")
_knobs = component("knobs")
_text_block = component("text_block")
_activity = component("activity")
_update_socket = component("update_socket")
# plotly inserts its styles into the head of the page
_figure = component("figure", isolate_styles=False)


def routes() -> list[BaseRoute]:
    """The route that serves the plotly.js of the installed plotly."""
    return [Route(_library_address(), _send_library)]


async def _send_library(request: Request) -> FileResponse:
    return FileResponse(_LIBRARY, media_type="text/javascript", headers={"Cache-Control": "public, max-age=31536000, immutable"})


def _library_address() -> str:
    return settings.path(_LIBRARY_NAME)


def grid(items: Sequence[T], columns: int) -> Iterator[tuple[Any, T]]:
    """Each item with its cell, at most `columns` in a row; the cells of one grid have equal widths."""
    width = max(1, min(len(items), columns))
    for start in range(0, len(items), width):
        yield from zip(st.columns(width), items[start : start + width])


@contextmanager
def folded(label: str, key: str, expanded: bool, icon: str) -> Iterator[bool]:
    """An expander; yields whether to draw its content: once it has been opened, and then always, so that typed values are kept.

    Closed forms are not drawn, because a form has dozens of elements, which take a browser beside a job seconds to draw.
    """
    with st.expander(label, expanded=expanded, key=key, icon=icon, on_change="rerun") as expander:
        opened = f"opened/{key}"
        st.session_state[opened] = bool(expander.open) or st.session_state.get(opened, False)
        yield st.session_state[opened]


def chosen_step(address: Mapping[str, str], kept: Sequence[int], latest: int) -> tuple[int | None, str]:
    """The step that an address shows, None for the newest; and why the step in the address is invalid, or ""."""
    wanted, problem = from_address(address.get(session.AT_PARAMETER))
    return nearest(wanted, kept, latest), problem


def player(run_id: str, values: Mapping[str, Any], following: str, groups: tuple[int, int, str], key: str) -> None:
    """The slider over the recorded iterations of a run, with play button and arrow keys. The shown step is in the address.

    values: of `player_data`. following: how often newer images arrive, "" if none will. groups: iterations per batch, number of batches,
    and what they are called.
    """

    def move() -> None:
        session.put_into_address(session.AT_PARAMETER, st.session_state[key]["at"])

    _player(
        key=key,
        height=_PLAYER,
        data={
            **values,
            "run": run_id,
            "jump": st.session_state.get(_jump_key(run_id), 0),
            "following": following,
            "iterations": groups[0],
            "batches": groups[1],
            "group": groups[2],
            **_updated(key),
        },
        on_at_change=move,
    )


def player_data(kept: Sequence[int], latest: int, at: int | None, marks: Sequence[tuple[int, str]]) -> dict[str, Any]:
    """The data of a player that changes while the run is active. kept: steps in order. marks: step and text of live changes."""
    return {"steps": [step for step in kept if step < latest], "latest": latest, "at": at, "marks": [list(mark) for mark in marks]}


_rendering: ContextVar[str] = ContextVar("rendering", default="")


@contextmanager
def rendering(token: str) -> Iterator[None]:
    """Elements drawn in the block are updated through the socket.

    token: identifies this rendering. An update overrides what the rendering drew; a later rendering overrides the update. "": no updates.
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
    """Moves the player of a run to the newest step."""
    st.session_state[_jump_key(run_id)] = st.session_state.get(_jump_key(run_id), 0) + 1
    session.put_into_address(session.AT_PARAMETER, None)


def _jump_key(run_id: str) -> str:
    return f"jump of the player/{run_id}"


def sheet(values: Mapping[str, Any], alt: str, chosen: int | None, key: str, on_pick: Callable[[int], None]) -> None:
    """A contact sheet with tooltips. values: the fields of a Sheet. on_pick: called with the index of a clicked image."""
    _sheet(
        key=key,
        data={**values, "chosen": chosen, "alt": alt, **_updated(key)},
        on_picked_change=lambda: on_pick(_picked(key)),
    )


def knobs(values: Mapping[str, Any], key: str, on_change: Callable[[Any], None]) -> None:
    """The panel of the live knobs. values: as in knobs.js. on_change: called with {"group", "name", "value"} after a slider was moved."""
    _knobs(key=key, data={**values, **_updated(key)}, on_changed_change=lambda: on_change(st.session_state[key]["changed"]))


def figure(figure: str, title: str, key: str, name: str, on_pick: Callable[[Any], None] | None = None) -> None:
    """A figure. A later figure with the same key updates it in place.

    figure: JSON of charts.style.json_of. title: for screen readers; default: the title of the figure. name: of downloaded files.
    on_pick: called with the customdata of a clicked point, or its index in the trace.
    """
    _figure(
        key=key,
        height=height_of(figure),
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


def figures_to_come() -> None:
    """Loads what figures need while the browser is idle, so that the first ones of this page's next run appear at once."""
    with st.container(key="figures to come"):  # hidden by page.css
        _figure(key="figures to come/library", data={"library": _library_address()}, on_picked_change=lambda: None)


def _picked(key: str) -> Any:
    return st.session_state[key]["picked"]


def text_block(key: str, values: Mapping[str, Any], clipped: bool = False, color: str = "", width: int = 0) -> None:
    """Lines of small text, optionally with a title and a progress bar.

    values: of `text_block_data`. clipped: lines do not wrap. color: of a square before the title, which the lines then follow. width:
    about how many characters a line has, 0: any number.
    """
    lines = sum(-(-len(line) // width) if width else 1 for line in values["lines"])
    high = _TITLE if color else lines * _LINE + (_TITLE if values["title"] else 0)
    _text_block(key=key, height=max(high, _LINE), data={**values, "clipped": clipped, "color": color, **_updated(key)})


def text_block_data(lines: Sequence[str], title: str = "", progress: float | None = None) -> dict[str, Any]:
    """The data of a text block that changes while the run is active. progress: length of the bar, 0 to 1; None: no bar."""
    return {"title": one_line_text(title), "lines": [one_line_text(line) for line in lines], "progress": progress}


def activity(values: Mapping[str, Any], address: str, stop: Callable[[str], None]) -> str | None:
    """The active runs, as a button in the header with a list; it asks the socket at `address` for newer values. Returns the id of a run
    that was opened, or None. values: of views.activity.collect. stop: called with the id of a run to end.
    """
    with st.container(key="activity"):  # placed by page.css
        result = _activity(
            key="activity/list",
            data={"values": values, "address": address},
            on_stopped_change=lambda: stop(st.session_state["activity/list"]["stopped"]),
            on_opened_change=lambda: None,
        )
    return result.opened


def update_socket(key: str, address: str, layout: str, milliseconds: int) -> None:
    """Connects the page to the update socket at `address`, which it asks for updates at an interval in milliseconds.

    Streamlit redraws the view when the layout version in an answer differs from `layout`.
    """
    with st.container(key=key):  # hidden by page.css
        _update_socket(
            key=f"socket of {key}",
            data={"address": address, "layout": layout, "milliseconds": milliseconds},
            on_changed_change=lambda: None,
        )
