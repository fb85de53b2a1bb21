"""How often pages are updated: as often as possible without slowing down jobs."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import streamlit as st

REFRESH_SECONDS = 1.0
CHART_SECONDS = 2.0  # curves change slowly, and they and redrawn regions cost a browser most
CORES_BESIDE_A_BROWSER = 6  # enough for a job and a browser at full pace; with fewer, the job waits for its slowest thread
PAGES_PER_CORE = 4  # updated at full pace; each takes 2 % of a core from the jobs
_SECONDS_FOLLOWED = 30.0  # longer than the time between two questions of any page


class Watcher(NamedTuple):
    """A page that follows a run."""

    session: str
    is_here: bool  # whether its browser runs on this machine


_watching: dict[str, float] = {}
_watching_lock = threading.Lock()
_asking: ContextVar[Watcher | None] = ContextVar("asking", default=None)


def watcher() -> Watcher:
    """The current page: the one that asks through the socket, or the one whose script runs."""
    return _asking.get() or Watcher(st.session_state.setdefault("session", uuid.uuid4().hex), st.context.ip_address is None)


@contextmanager
def asked_by(page: Watcher) -> Iterator[None]:
    """`watcher` returns this page while the block runs."""
    token = _asking.set(page)
    try:
        yield
    finally:
        _asking.reset(token)


def slowness() -> int:
    """Factor by which the current page is updated less often than usual; 1 if there are enough cores.

    All pages slow down if more than PAGES_PER_CORE pages per core follow runs; a page counts for 30 seconds after it last asked. A page
    also slows down if its browser runs on this machine, because the browser takes processor time from the job.
    """
    page, now = watcher(), time.monotonic()
    with _watching_lock:
        _watching[page.session] = now
        for other in [other for other, last in _watching.items() if now - last > _SECONDS_FOLLOWED]:
            del _watching[other]
        pages = len(_watching)
    cores = os.cpu_count() or 1
    return max(-(-pages // (PAGES_PER_CORE * cores)), -(-CORES_BESIDE_A_BROWSER // cores) if page.is_here else 1)


def stream_seconds() -> float:
    """Seconds between two updates of a page."""
    return REFRESH_SECONDS * slowness()


def chart_seconds() -> float:
    """Seconds between two drawings of curves, or of a redrawn region."""
    return CHART_SECONDS * slowness()


def in_words() -> str:
    """How often the page is updated, as text."""
    return f"images every {stream_seconds():g} s, curves every {chart_seconds():g} s"


def chart_version(at_rest: bool, records: int) -> tuple[bool, int]:
    """Cache key that changes when curves should be redrawn, the same for all viewers. at_rest: whether the run is paused or finished."""
    return at_rest, records if at_rest else int(time.monotonic() / chart_seconds())
