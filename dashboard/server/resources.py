"""Memory and processor time of the server, which shares the machine with the jobs."""

from __future__ import annotations

import gc
import os
import sys
import threading

from core import memory

ARENAS = 2  # memory arenas of the allocator
PAGE_NICENESS = 10  # leaves a page a tenth of a core's time beside a job that wants all of it


def collect_garbage_often() -> None:
    """Takes everything that was imported out of the garbage collector's sight.

    Figures and messages of a refresh refer to each other in cycles. Python looks for old cycles only when a quarter of all live objects is
    new, and beside half a million objects of libraries that is tens of megabytes. Without those, each collection is short.
    """
    gc.collect()
    gc.freeze()
    gc.collect()  # restarts the counting of live objects


def share_memory() -> None:
    """Makes the threads of all sessions allocate from the same few arenas; to be called before there are any threads.

    Each arena grows to the largest page that was drawn in it: with twenty sessions the server grew from 208 to 270 MB in seven minutes, and
    with two arenas from 201 to 210.
    """
    memory.limit_arenas(ARENAS)


def lower_priority() -> None:
    """Lowers this thread's priority, so that background refreshes do not slow down jobs.

    A job with a thread on every core waits for the slowest of them: the time that a page takes from one, it loses on all.
    """
    if sys.platform == "linux":  # elsewhere threads of one process have one priority
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), PAGE_NICENESS)
