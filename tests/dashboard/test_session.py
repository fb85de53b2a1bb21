import gc
import platform
import subprocess
import sys
import weakref
from collections import deque

import pytest

from dashboard import session


class Circle:
    def __init__(self):
        self.itself = self


@pytest.fixture
def many_objects():
    """What a server has imported, about."""
    yield [[index] for index in range(400_000)]
    gc.unfreeze()


def test_circles_that_outlive_a_refresh_are_found_soon(many_objects):
    """As long as all the old objects count, those that grew old wait until they are a quarter of their number."""
    gc.collect()
    session._collect_garbage_often()
    shown: deque[Circle] = deque(maxlen=5000)  # too long for the young generations
    circles = []
    for _ in range(60_000):
        circle = Circle()
        circles.append(weakref.ref(circle))
        shown.append(circle)
    assert sum(circle() is not None for circle in circles) < 30_000


_THREADS = """
import ctypes, sys, threading
from dashboard import state
if sys.argv[1] == "shared":
    state.share_memory()
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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives threads places of their own")
def test_threads_share_the_places_that_they_take_memory_from():
    def places(how):
        return subprocess.run([sys.executable, "-c", _THREADS, how], capture_output=True, text=True, check=True).stdout.count("<heap ")

    assert places("own") >= 8
    assert places("shared") <= session.ARENAS + 1  # one more where a thread of a library came before
