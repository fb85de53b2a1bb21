"""Tests of significance against SciPy 1.17.1, whose values are quoted with the expression that printed them, and against simulations."""

import math

import numpy as np
import pytest

from core.comparison.significance import mcnemar, paired_t, similarity_gap, t_inside, t_quantile


def hits(right, count=1000):
    made = np.zeros(count, bool)
    made[list(right)] = True
    return made


def test_mcnemar_is_the_binomial_test():
    # scipy.stats.binomtest(15, 55).pvalue
    assert mcnemar(hits(range(40)), hits(range(40, 55))) == pytest.approx(0.0010158471941252854, rel=1e-9)
    # scipy.stats.binomtest(9_900, 20_000).pvalue: 2 ** 20000 is no float
    assert mcnemar(hits(range(10_100), 30_000), hits(range(10_100, 20_000), 30_000)) == pytest.approx(0.15938343598473417, rel=1e-8)
    assert mcnemar(hits(range(7)), hits(range(7, 12))) == pytest.approx(2 * sum(math.comb(12, k) for k in range(6)) / 2**12)


def test_mcnemar_of_equal_networks_is_one():
    assert mcnemar(hits(range(900)), hits(range(900))) == 1
    assert mcnemar(hits(range(5)), hits(range(5, 10))) == 1


@pytest.mark.parametrize(
    ("freedom", "expected"), [(1, 12.706204736174694), (2, 4.302652729749462), (9, 2.2621571627982053), (30, 2.0422725)]
)
def test_quantiles_of_t(freedom, expected):
    """scipy.stats.t.ppf(0.975, freedom)"""
    assert t_quantile(freedom) == pytest.approx(expected, rel=1e-7)


def test_probabilities_of_t():
    # 1 - 2 * scipy.stats.t.sf(2.5, freedom)
    assert t_inside(2.5, 7) == pytest.approx(0.9590077814142471)
    assert t_inside(2.5, 8) == pytest.approx(0.9630579622863759)
    assert t_inside(1.0, 1) == pytest.approx(0.5)  # of Cauchy's distribution


def test_paired_t():
    # scipy.stats.ttest_1samp([1.2, 0.9, 1.5, 1.1], 0) and its confidence_interval()
    found = paired_t([1.2, 0.9, 1.5, 1.1])
    assert (found.value, found.p) == (pytest.approx(1.175), pytest.approx(0.002550763027704284))
    assert (found.low, found.high) == (pytest.approx(0.7771942118395366), pytest.approx(1.5728057881604633))
    assert paired_t([1.2]) is None
    assert paired_t([2.0, 2.0]).p == 0
    assert paired_t([0.0, 0.0]).p == 1


def unit_vectors(count, seed, toward=0.5):
    vectors = np.random.default_rng(seed).normal(size=(count, 8))
    vectors[:, 0] += toward
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def of_images(vectors):
    return (vectors @ vectors.sum(axis=0) - 1) / (len(vectors) - 1)


def test_similarity_varies_as_over_new_sets_of_images():
    """The interval is as wide as the spread of the difference of mean pairwise similarities over many pairs of sets."""
    gaps = [of_images(unit_vectors(200, 2 * seed)).mean() - of_images(unit_vectors(200, 2 * seed + 1)).mean() for seed in range(400)]
    widths = []
    for seed in range(5):
        found = similarity_gap(of_images(unit_vectors(200, 1000 + 2 * seed)), of_images(unit_vectors(200, 1001 + 2 * seed)))
        widths.append((found.high - found.low) / (2 * 1.96))
    assert np.mean(widths) == pytest.approx(np.std(gaps), rel=0.15)


def test_similarity_is_that_of_a_bootstrap_of_all_pairs():
    """Against resampled pairs, without those of an image with itself."""
    own, other, random = unit_vectors(150, 1, 0.9), unit_vectors(150, 2, 0.5), np.random.default_rng(3)

    def resampled(vectors, counts):
        total = counts @ vectors
        return (total @ total - (counts**2).sum()) / (counts.sum() ** 2 - (counts**2).sum())

    draws = [np.bincount(random.integers(150, size=150), minlength=150) for _ in range(2000)]
    low, high = np.quantile([resampled(own, counts) - resampled(other, counts) for counts in draws], [0.025, 0.975])
    found = similarity_gap(of_images(own), of_images(other))
    assert (found.low, found.high) == (pytest.approx(low, abs=0.1 * (high - low)), pytest.approx(high, abs=0.1 * (high - low)))


def test_sets_of_other_sizes_are_drawn_apart():
    own, other = np.random.default_rng(0).normal(0.3, 0.02, (2, 400))
    apart = similarity_gap(own, other[:399])
    error = 2 * math.hypot(own.std() / 20, other[:399].std() / 399**0.5)
    assert (apart.high - apart.low) / (2 * 1.96) == pytest.approx(error, rel=0.05)
    together = similarity_gap(own, own + 0.001)
    assert (together.value, together.low, together.high) == (pytest.approx(-0.001),) * 3
    assert together.p < 0.001
