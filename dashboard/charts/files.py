"""What the files are called that charts are taken along in, and the script that makes them in a browser. No streamlit in here."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from dashboard import text

_SCRIPT = Path(__file__).parents[1] / "components" / "download_buttons.js"


def config(name: str) -> dict[str, Any]:
    """Plotly's config of a figure whose files are called `name`."""
    return {
        "displaylogo": False,
        "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d", "zoomIn2d", "zoomOut2d"],
        "toImageButtonOptions": {"format": "png", "filename": file_name(name)},
    }


def file_name(name: str) -> str:
    """Name of a file, without an ending, that every system takes: letters and digits of any script, and dashes.

    Of a long one the middle is left out: a run's name stands first and what is shown of it last.
    """
    whole = re.sub(r"[\W_]+", "-", text.one_line_text(name)).strip("-").lower() or "chart"
    return whole if len(whole) <= 80 else f"{whole[:40].strip('-')}-{whole[-39:].strip('-')}"


@cache
def script() -> str:
    """What adds the buttons to the figures of a document."""
    return _SCRIPT.read_text(encoding="utf-8")
