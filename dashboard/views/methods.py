"""The table of a comparison of methods: chart, figures, what they mean, and files of them."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from core.comparison import figure, table
from core.comparison.kept import Comparison
from core.comparison.table import Row
from dashboard import text
from dashboard.charts import methods as charts
from dashboard.charts.style import json_of
from dashboard.components import figures, tables
from dashboard.tables.columns import Column

_COLUMNS = {
    **dict.fromkeys(("drop", "spread", "behind the best", "drop in the paper"), Column(digits=2)),
    "p": Column(digits=4),
    "CLIP similarity": Column(digits=3),
}
# "CSV" alone is in the toolbars of the table, which saves what it shows, and of the chart
_FILES = (
    ("All columns (CSV)", table.as_csv, "methods.csv"),
    ("Table (LaTeX)", table.as_latex, "methods.tex"),
    ("Figure (SVG)", figure.as_svg, "drops.svg"),
)


def draw_rows(rows: Sequence[Row], name: str, key: str) -> None:
    """All of a comparison. name: of its files; key: of its elements, unique on the page."""
    figures.show(json_of(charts.drops_figure(rows)), f"{key} drops", f"{name} drops")
    tables.table([_line(row) for row in rows], key, _COLUMNS, alt=f"Methods: {name}", all_rows=True)
    for sentence in table.explained(rows):
        st.caption(text.plain(sentence))
    with st.container(horizontal=True):
        for kind, made, file in _FILES:
            st.download_button(kind, made(rows), file, icon=":material/download:", key=f"download {key} {file}", on_click="ignore")


def draw_kept(comparisons: Sequence[Comparison]) -> None:
    """Comparisons that came with the program, one at a time."""
    chosen = comparisons[0]
    if len(comparisons) > 1:
        chosen = st.selectbox("Comparison", comparisons, format_func=lambda one: one.title, key="kept comparison")
    st.caption(text.plain(f"{chosen.title}. Measured on {chosen.date} on one machine ({chosen.processor}) with:"))
    st.code(chosen.command, language="sh", wrap_lines=True)
    draw_rows(chosen.rows, chosen.title, "kept")


def _line(row: Row) -> dict[str, object]:
    return {
        "width": row.width,
        "method": row.title,
        "seeds": ", ".join(map(str, row.seeds)),
        "drop": row.drop,
        "spread": row.spread,
        "behind the best": None if row.behind is None else row.behind.points,
        "p": None if row.behind is None else row.behind.p,
        "generation (s)": row.generation_seconds,
        "training (s)": row.training_seconds,
        "CLIP similarity": row.similarity,
        "drop in the paper": row.paper_drop,
    }
