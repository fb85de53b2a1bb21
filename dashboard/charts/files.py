"""Names of downloaded chart files, and the script that makes them in a browser. No streamlit in here."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from dashboard import text

_SCRIPT = Path(__file__).parents[1] / "components" / "download_buttons.js"


def config(name: str) -> dict[str, Any]:
    """Plotly's config of a figure. name: of its files, see `file_name`."""
    return {
        "displaylogo": False,
        "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d", "zoomIn2d", "zoomOut2d"],
        "toImageButtonOptions": {"format": "png", "filename": file_name(name)},
    }


def file_name(name: str) -> str:
    """File name without a suffix that is valid on every system: letters and digits of any script, and dashes.

    Long names lose their middle, because they start with the run's name and end with what the chart shows.
    """
    whole = re.sub(r"[\W_]+", "-", text.one_line_text(name)).strip("-").lower() or "chart"
    return whole if len(whole) <= 80 else f"{whole[:40].strip('-')}-{whole[-39:].strip('-')}"


@cache
def script() -> str:
    """JavaScript that adds the download buttons to the figures of a document."""
    rules = {"FORMULA": text.FORMULA, "NUMBER": text.NUMBER}
    given = "".join(f"const {name} = {json.dumps(pattern)};\n" for name, pattern in rules.items())
    return _SCRIPT.read_text(encoding="utf-8").replace("// FORMULA and NUMBER\n", given)
