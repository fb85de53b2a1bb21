"""What the files are called that charts are taken along in, and the script that makes them in a browser. No streamlit in here."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from dashboard import text

_SCRIPT = Path(__file__).with_name("take_along.js")


def config(name: str) -> dict[str, Any]:
    """Plotly's config of a figure whose files are called `name`."""
    return {
        "displaylogo": False,
        "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d", "zoomIn2d", "zoomOut2d"],
        "toImageButtonOptions": {"format": "png", "filename": file_name(name)},
    }


def file_name(name: str) -> str:
    """Name of a file, without an ending, that every system takes: letters and digits of any script, and dashes."""
    return re.sub(r"[\W_]+", "-", text.shown(name, 80)).strip("-").lower() or "chart"


@cache
def script() -> str:
    """What adds the buttons to the figures of a document."""
    return _SCRIPT.read_text(encoding="utf-8")
