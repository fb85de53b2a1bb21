"""What a page without content says: what will be here, with the button that makes it."""

from __future__ import annotations

import streamlit as st

from dashboard.pages import PAGES


def empty(sentence: str, button: str = "Start a run", page: str = "studio") -> None:
    """A sentence that says what will be here, and a button that opens a page of PAGES, where it is made."""
    st.info(sentence, icon=":material/lightbulb:")
    if st.button(button, type="primary", icon=":material/arrow_forward:", key=f"empty {page}"):
        st.switch_page(next(one.path for one in PAGES if one.name == page))
