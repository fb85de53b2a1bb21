"""Entry point of the dashboard: `streamlit run` finds it by its name. Routes to PAGES."""

import base64
from pathlib import Path
from typing import Any

import streamlit as st
from starlette.middleware import Middleware

from dashboard import session
from dashboard.components import elements, figures, problems
from dashboard.pages import PAGES, Page
from dashboard.server import access, gate, head, resources
from dashboard.updates import socket
from dashboard.views import activity


def as_streamlit_page(page: Page) -> Any:
    """The page as `st.navigation` expects it; the first of PAGES is the start page."""
    script = page.script or page.path
    return st.Page(script, title=page.title, icon=page.icon, url_path=page.name if page.script else None, default=page is PAGES[0])


if __name__ == "__main__":  # run as a script for each session and after each interaction
    # in the page itself, because a media file would not be sent before the login
    icon = "data:image/png;base64," + base64.b64encode((Path(__file__).parent / "assets" / "icon.png").read_bytes()).decode()
    st.set_page_config(page_title="Data-free quantization", page_icon=icon, layout="wide")

    access.admit()
    figures.offer_files()
    with problems.shown():  # for example a database of a newer version
        session.manager()
        session.remember_run()
        shown = st.navigation([as_streamlit_page(page) for page in PAGES], position="top")
        activity.draw()
        shown.run()
else:  # imported once by the server, before it serves anything
    access.refuse_to_start()
    resources.share_memory()

    def collect(view: str, run_id: str, query: str) -> dict[str, Any]:
        # imported here because the views import plotly, which would delay the start of the server
        from dashboard.updates.live_view import collect_updates, find_view

        if view == activity.SOCKET:
            return activity.answer(query)
        return collect_updates(find_view(view), run_id, query)

    app = st.App(
        __file__,
        routes=[*access.routes(), *elements.routes(), *socket.routes(collect)],
        middleware=[Middleware(gate.Gate), Middleware(head.Head)],
    )
