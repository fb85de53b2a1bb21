"""Pages that are opened by their own address, such as a copied /quantize?run=...: without requests that fail.

Streamlit's page looks for its server below its own address first (/quantize/_stcore/health), hears 404 twice, which the browser's console
shows as errors, and then looks above. Told where the server is, by a setting its page reads for being hosted elsewhere, it does not guess.
Where a later Streamlit no longer reads it, the two requests are back and nothing else happens.
"""

from __future__ import annotations

import json
from pathlib import Path

from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import BaseRoute, Route
from streamlit.file_util import get_static_dir

from dashboard.pages import PAGES
from dashboard.server import access


def routes() -> list[BaseRoute]:
    """The address of each page."""
    document = told((Path(get_static_dir()) / "index.html").read_text(encoding="utf-8"), access.path())

    async def page(_: Request) -> HTMLResponse:
        return HTMLResponse(document, headers={"Cache-Control": "no-cache"})

    return [Route(access.path(each.name), page) for each in PAGES]


def told(document: str, root: str) -> str:
    """Streamlit's HTML document with the place of its server in it, `root` (ends in /) on the host it came from."""
    script = f"<script>window.__streamlit = {{BACKEND_BASE_URL: location.origin + {json.dumps(root)}}}</script>"
    return document.replace("<head>", f"<head>{script}", 1)
