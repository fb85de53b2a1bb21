"""Tables that are sorted, filtered and selected in the same way on all pages: `table`. What is chosen is in the address (table.js).

Text from outside is passed as data. The CSV file is made in the browser, and no cell of it is a formula (download_buttons.js).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import streamlit as st

from dashboard import session
from dashboard.charts.files import file_name
from dashboard.components.elements import component
from dashboard.tables.columns import AUTOMATIC, Column, shown

_table = component("table")
_ROWS_TO_FILTER = 6  # with fewer rows, all are seen at a glance
MOST_HEIGHT = 430  # pixels: twelve rows
_BAR, _ROW = 32, 35  # pixels: what is above the table, and a row (table.css)


class Picked(NamedTuple):
    """What a user did in a table. rows: ids of the selected rows, in the order of the table. opened: id of the row whose link was clicked,
    or None.
    """

    rows: list[str]
    opened: str | None


def table(
    rows: Sequence[Mapping[str, Any]],
    key: str,
    columns: Mapping[str, Column] | None = None,
    *,
    alt: str = "",
    ids: Sequence[str] | None = None,
    select: str = "",
    links: Callable[[str], str | None] | None = None,
    find: bool = True,
    all_rows: bool = False,
    best: Sequence[str] = (),
) -> Picked:
    """A table with a row for each mapping from column to value; None is shown as a dash.

    key: of the element, and the beginning of its parameters in the address; unique on the page. columns: how columns are shown that need
    more than the default. alt: for screen readers; default: the key. ids: of the rows; default: their numbers. select: "", "one" or
    "many". links: address of a row by its id, of columns of the kind "link". find: whether rows can be filtered here. all_rows: no limit
    on the height. best: columns of which the highest value in each row is bold.
    """
    ids = [str(number) for number in range(len(rows))] if ids is None else ids
    known = {name: (columns or {}).get(name, AUTOMATIC) for row in rows for name in row}
    wanted = selected(key)
    chosen = [one for one in ids if one in wanted] if select else []
    lines = shown(rows, known, best)
    whole = _ROW * (len(rows) + 1) + 1
    result = _table(
        key=f"table/{key}",
        height=_BAR + (whole if all_rows else min(whole, MOST_HEIGHT)),
        data={
            "name": key,
            "alt": alt or key,
            "columns": [column.described(name, [row.get(name) for row in rows]) for name, column in known.items()],
            "rows": [{"id": one, "href": links(one) if links else None, "cells": line} for one, line in zip(ids, lines, strict=True)],
            "select": select,
            "selected": chosen,
            "find": find and len(rows) >= _ROWS_TO_FILTER,
            "height": 0 if all_rows else MOST_HEIGHT,
            "file": f"{file_name(alt or key)}.csv",
        },
        on_changed_change=lambda: None,
        on_opened_change=lambda: None,
    )
    return Picked(chosen, result.opened)


def selected(key: str) -> list[str]:
    """Ids of the rows that the address selects in a table."""
    return [one for one in st.query_params.get(f"{key}.rows", "").split(",") if one]


def select(key: str, ids: Sequence[str]) -> None:
    """Selects these rows of a table."""
    session.put_into_address(f"{key}.rows", ",".join(ids) or None)
