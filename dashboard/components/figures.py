"""How every page shows a figure and a table, so that all of them can be taken along: a figure as PNG, SVG and CSV, a table as CSV.

The buttons of a figure stand in its bar, which appears over it; `download_buttons.js` puts them there and makes the files in the browser.
Those of a table are Streamlit's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
import streamlit as st

from dashboard import text
from dashboard.charts import files as chart_files
from dashboard.components import elements


def offer_files() -> None:
    """Adds the buttons to all figures of the page, once for all that it shows."""
    with st.container(key="take along"):
        st.html(
            "<style>.st-key-take-along { display: none }</style><script>" + chart_files.script() + "</script>", unsafe_allow_javascript=True
        )


def show(figure: str, key: str, name: str = "", title: str = "", on_pick: Callable[[Any], None] | None = None) -> None:
    """A figure on the page; its files are called `name`, or as its key. One that comes again under the same key is changed in place.

    figure: JSON as chart_style.json_of makes it. title: for screen readers, its own without one. on_pick: called with the customdata of
    a point that was pressed, or its number in its trace.
    """
    elements.figure(figure, title, key, name or key, on_pick)


def table(rows: Sequence[Mapping[str, Any]] | pd.DataFrame, key: str, **options: Any) -> Any:
    """A table on the page, without an index. Its CSV, which its own bar offers, computes nothing in a spreadsheet.

    rows: a mapping from title to value for each line, or a data frame. options: of st.dataframe. Returns what that returns.
    """
    frame = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows))
    return st.dataframe(frame.map(text.cell).rename(columns=text.cell), hide_index=True, key=key, **options)
