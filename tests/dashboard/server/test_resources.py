"""Garbage collection and memory arenas of the server."""

import gc
import platform
import subprocess
import sys
import weakref
from collections import deque

import pytest

from dashboard.server import resources


class Cycle:
    def __init__(self):
        self.itself = self


@pytest.fixture
def many_objects():
    """About as many objects as a server has after its imports."""
    yield [[index] for index in range(400_000)]
    gc.unfreeze()


def test_cycles_that_outlive_a_refresh_are_collected_early(many_objects):
    """Without freezing, old cycles would be collected only once they are a quarter of all old objects."""
    gc.collect()
    resources.collect_garbage_often()
    shown: deque[Cycle] = deque(maxlen=5000)  # outlives the young generations
    cycles = []
    for _ in range(60_000):
        cycle = Cycle()
        cycles.append(weakref.ref(cycle))
        shown.append(cycle)
    assert sum(cycle() is not None for cycle in cycles) < 30_000


_THREADS = """
import ctypes, sys, threading
from dashboard.server import resources
if sys.argv[1] == "shared":
    resources.share_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fdopen.restype = ctypes.c_void_p
all_here = threading.Barrier(8)
def work():
    libc.malloc(ctypes.c_size_t(1000))
    all_here.wait()
threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
file = ctypes.c_void_p(libc.fdopen(1, b"w"))
libc.malloc_info(0, file)
libc.fflush(file)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has an arena for each thread")
def test_threads_share_memory_arenas():
    def arenas(mode):
        return subprocess.run([sys.executable, "-c", _THREADS, mode], capture_output=True, check=True, encoding="utf-8").stdout.count(
            "<heap "
        )

    assert arenas("separate") >= 8
    assert arenas("shared") <= resources.ARENAS + 1  # one more if a library has started a thread
