import gc
import weakref
from collections import deque

import pytest

from dashboard import state


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
    state._collect_garbage_often()
    shown: deque[Circle] = deque(maxlen=5000)  # too long for the young generations
    circles = []
    for _ in range(60_000):
        circle = Circle()
        circles.append(weakref.ref(circle))
        shown.append(circle)
    assert sum(circle() is not None for circle in circles) < 30_000
