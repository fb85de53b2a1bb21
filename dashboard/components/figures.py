"""Shows figures so that all can be downloaded as PNG, SVG and CSV, and tables that are edited.

`download_buttons.js` adds buttons to the toolbar of each figure and creates the files in the browser.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import streamlit as st

from dashboard import text
from dashboard.charts import files as chart_files
from dashboard.components import elements


def offer_files() -> None:
    """Adds the download buttons to all figures of the page. To be called once per page."""
    with st.container(key="download buttons"):  # hidden by page.css
        st.html("<script>" + chart_files.script() + "</script>", unsafe_allow_javascript=True)


def show(figure: str, key: str, name: str = "", title: str = "", on_pick: Callable[[Any], None] | None = None) -> None:
    """A figure. A later figure with the same key updates it in place.

    figure: JSON of charts.style.json_of. name: of downloaded files; default: the key. title: for screen readers; default: the title of
    the figure. on_pick: called with the customdata of a clicked point, or its index in the trace.
    """
    elements.figure(figure, title, key, name or key, on_pick)


def editor(frame: pd.DataFrame, key: str, **options: Any) -> pd.DataFrame:
    """A table with cells that can be edited, and whose CSV contains no formulas. Returns the edited cells. options: of st.data_editor.

    Tables that are only read: `tables.table`.
    """
    return st.data_editor(frame.map(text.cell).rename(columns=text.cell), hide_index=True, key=key, **options)
