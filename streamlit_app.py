"""The router: `streamlit run` finds this file by its name."""

from pathlib import Path
from typing import Any

import streamlit as st

from core.errors import CoreError
from dashboard import session, text
from dashboard.components import elements, figures
from dashboard.server import access, deep_links
from dashboard.updates import socket

if __name__ == "__main__":  # as a script, once for each session and whenever something was pressed
    st.set_page_config(page_title="Data-free quantization", page_icon=str(Path(__file__).parent / "assets" / "icon.png"), layout="wide")
    st.html(Path(__file__).parent / "dashboard" / "page.css")

    access.admit()
    figures.offer_files()
    try:
        session.manager()
        session.remember_run()
    except CoreError as error:  # such as a database of a newer version
        st.error(text.error(error), icon=":material/error:")
        st.stop()
    st.navigation(
        [
            st.Page("dashboard/pages/studio.py", title="Studio", icon=":material/blur_on:", default=True),
            st.Page("dashboard/pages/quantize.py", title="Quantize", icon=":material/compress:"),
            st.Page("dashboard/pages/diversity.py", title="Diversity", icon=":material/scatter_plot:"),
            st.Page("dashboard/pages/paper.py", title="Paper", icon=":material/table_chart:"),
            st.Page("dashboard/pages/export.py", title="Export", icon=":material/file_export:"),
            st.Page("dashboard/pages/compare.py", title="Compare", icon=":material/compare_arrows:"),
            st.Page("dashboard/pages/runs.py", title="Runs", icon=":material/list_alt:"),
        ],
        position="top",
    ).run()
else:  # imported by the server, once, before it serves anything
    access.refuse_to_start()
    session.share_memory()

    def news(part: str, run_id: str, watcher: session.Watcher, query: str) -> dict[str, Any]:
        # and plotly with them: a server that starts has better things to do
        from dashboard.updates import live_view
        from dashboard.views import diversity, generation, training

        parts = {known.name: known for known in (live_view.STATUS, generation.GENERATION, training.TRAINING, diversity.DIVERSITY)}
        return live_view.news(parts[part], run_id, watcher, query)

    app = st.App(__file__, routes=[*access.routes(), *elements.routes(), *deep_links.routes(), *socket.routes(news)])
