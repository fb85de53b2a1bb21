"""What a form refuses: shown beside each field, and its button is disabled as long as there is anything."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

import streamlit as st

from core.errors import CoreError
from dashboard.components import problems


class Refusals:
    """The refused fields of one form, in the order in which they are drawn.

    A value is refused by a check that takes no time, whenever the page is drawn; or by one that takes seconds, when the button was
    pressed, and then until the value changes. key: of the form.
    """

    def __init__(self, key: str) -> None:
        # field -> the value that was refused when the button was pressed, and why
        self._late: dict[str, tuple[Hashable, CoreError]] = st.session_state.setdefault(f"{key}/refused", {})
        self._found: list[str] = []

    def field(self, name: str, value: Hashable, check: Callable[[], object] | None = None) -> None:
        """Shows at this place why the value of a field is refused, if it is.

        name: for people. check: raises CoreError for a value that is refused.
        """
        try:
            if check is not None:
                check()
            refused, reason = self._late.get(name, (None, None))
            if reason is not None and refused == value:
                raise reason
        except CoreError as error:
            self._found.append(name)
            problems.show(error)

    def missing(self, name: str, sentence: str) -> None:
        """Shows at this place what a field still needs."""
        self._found.append(name)
        st.caption(sentence)

    def button(self, label: str, key: str) -> bool:
        """The button of the form, below all of its fields; whether it was pressed and may be."""
        pressed = st.button(label, type="primary", icon=":material/play_arrow:", key=key, disabled=bool(self._found))
        if self._found:
            # a field may be in a tab that is not in sight
            st.caption(f"{label} is disabled: see {' and '.join(self._found)} above.")
        return pressed and not self._found

    @contextmanager
    def late(self, name: str, value: Hashable) -> Iterator[None]:
        """A CoreError of the block refuses the value of a field, and draws the page again with the reason beside the field."""
        try:
            yield
        except CoreError as error:
            self._late[name] = (value, error)
            st.rerun()
