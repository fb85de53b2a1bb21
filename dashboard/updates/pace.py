"""How often a page shows what is new: as often as leaves the jobs their speed."""

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
CHART_SECONDS = 2.0  # curves move slowly, and a browser spends most on them and on redrawn regions
CORES_BESIDE_A_BROWSER = 6  # for jobs and a browser to run at full pace together, because a job waits for its slowest thread
PAGES_PER_CORE = 4  # refreshed at full pace: each takes two hundredths of a core from the jobs
_SECONDS_FOLLOWED = 30.0  # longer than any page waits before it asks again


class Watcher(NamedTuple):
    """A page that follows a run."""

    session: str
    is_here: bool  # its browser is on this machine


_watching: dict[str, float] = {}
_watching_lock = threading.Lock()
_asking: ContextVar[Watcher | None] = ContextVar("asking", default=None)


def watcher() -> Watcher:
    """The page that is served: the one that asks through the socket, or whose script runs."""
    return _asking.get() or Watcher(st.session_state.setdefault("session", uuid.uuid4().hex), st.context.ip_address is None)


@contextmanager
def asked_by(page: Watcher) -> Iterator[None]:
    """While the block runs, `watcher` is this page."""
    token = _asking.set(page)
    try:
        yield
    finally:
        _asking.reset(token)


def slowness() -> int:
    """How many times slower than usual the page refreshes: 1 with enough cores, so that the job keeps its pace.

    With more than PAGES_PER_CORE pages per core that follow a run, all are slower; the one that asks counts as following for some seconds
    more. And a browser on this machine takes from the job what it needs to draw.
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
    """Seconds between two drawings of curves, or of a region that is redrawn."""
    return CHART_SECONDS * slowness()


def in_words() -> str:
    """How often the page shows what is new."""
    return f"pictures every {stream_seconds():g} s, curves every {chart_seconds():g} s"


def chart_version(at_rest: bool, records: int) -> tuple[bool, int]:
    """A cache key that changes when curves are to be drawn again, the same for all viewers. at_rest: the run has paused or ended."""
    return at_rest, records if at_rest else int(time.monotonic() / chart_seconds())
