import math

import pytest

from core.schedules import cosine_after_warm_up, cosine_below_warm_up


def test_cosine_after_warm_up_by_hand():
    assert [cosine_after_warm_up(step, 14, 4) for step in range(5)] == [0.25, 0.5, 0.75, 1, 1]
    assert cosine_after_warm_up(9, 14, 4) == pytest.approx(0.5)
    assert cosine_after_warm_up(13, 14, 4) == pytest.approx(0.5 * (1 + math.cos(0.9 * math.pi)))
    assert cosine_after_warm_up(0, 1, 0) == 1


def test_cosine_below_warm_up_by_hand():
    assert [cosine_below_warm_up(step, 100, 4) for step in range(3)] == [0.25, 0.5, 0.75]
    assert cosine_below_warm_up(50, 100, 4) == pytest.approx(0.5)
    assert cosine_below_warm_up(100, 100, 4) == pytest.approx(0)
