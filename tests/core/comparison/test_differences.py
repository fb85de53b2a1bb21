"""The paired bootstrap against the formula of the standard error of a paired difference, and against the binomial distribution."""

import math

import numpy as np
import pytest

from core.comparison.differences import difference


def hits(right, count=1000):
    made = np.zeros(count, bool)
    made[list(right)] = True
    return made


def test_one_seed_has_the_interval_of_the_normal_approximation():
    own, other = hits(range(100, 960)), hits(range(0, 830))  # 130 images only the first, 100 only the second
    found = difference([own], [other])
    error = 100 * math.sqrt((130 + 100) / 1000 - 0.03**2) / math.sqrt(1000)
    assert found.points == pytest.approx(3.0)
    assert found.low == pytest.approx(3 - 1.96 * error, abs=0.15)
    assert found.high == pytest.approx(3 + 1.96 * error, abs=0.15)


@pytest.mark.parametrize(("only_own", "only_other"), [(130, 100), (40, 15), (60, 58)])
def test_p_of_one_seed_is_that_of_mcnemar(only_own, only_other):
    """McNemar's test: of the images that only one method classifies correctly, half are each one's."""
    own = hits(range(only_own))
    other = hits(range(only_own, only_own + only_other))
    total, most = only_own + only_other, max(only_own, only_other)
    exact = min(1.0, 2 * sum(math.comb(total, k) for k in range(most, total + 1)) / 2**total)
    assert difference([own], [other]).p == pytest.approx(exact, abs=1e-5)
    assert difference([own] * 2, [other] * 2).p == pytest.approx(exact, abs=0.06)  # the bootstrap


def test_methods_that_agree_everywhere_do_not_differ():
    found = difference([hits(range(900))], [hits(range(900))])
    assert (found.points, found.low, found.high, found.p) == (0, 0, 0, 1)
    assert not found.is_significant


def test_seeds_that_disagree_widen_the_interval():
    better, worse = [hits(range(900)), hits(range(840))], [hits(range(870)), hits(range(870))]
    apart, alike = difference(better, worse), difference([hits(range(900))] * 2, [hits(range(870))] * 2)
    assert apart.points == pytest.approx(0.0)
    assert not apart.is_significant
    assert apart.high - apart.low > 2 * (alike.high - alike.low)
    assert alike.is_significant


def test_signs_are_of_the_first_method():
    worse = difference([hits(range(800))], [hits(range(900))])
    assert worse.points == pytest.approx(-10)
    assert worse.high < 0
    assert worse.p < 0.001


def test_other_images_are_refused():
    with pytest.raises(ValueError, match="same seeds and images"):
        difference([hits(range(5), 10)], [hits(range(5), 11)])
    with pytest.raises(ValueError, match="same seeds and images"):
        difference([hits(range(5))], [hits(range(5))] * 2)
