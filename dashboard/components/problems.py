"""What a page shows when something cannot be done: one sentence instead of a traceback, and the rest of the page as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import streamlit as st

from core.errors import CoreError
from core.runs.store import default_folder
from core.runs.store_errors import store_error
from dashboard import text


def show(error: CoreError, element: Callable[..., Any] | None = None) -> None:
    """The message of the error, by default as an error box at this place, with the lines to paste below. element: st.error or st.toast."""
    (element or st.error)(text.error(error), icon=":material/error:")
    if error.paste and element is None:
        st.code("\n".join(error.paste), language="python", wrap_lines=True)


@contextmanager
def shown(element: Callable[..., Any] | None = None) -> Iterator[None]:
    """Shows a CoreError of the block, and a full disk or another fault of the runs folder; what follows the block is drawn as usual.

    element: see `show`. Other exceptions are bugs, and are raised.
    """
    try:
        yield
    except Exception as error:
        known = error if isinstance(error, CoreError) else store_error(error, default_folder().absolute())
        if known is None:
            raise
        show(known, element)
