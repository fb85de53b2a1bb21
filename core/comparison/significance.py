"""Tests of whether two paired measurements differ: McNemar's, Student's paired t, and a bootstrap. Imports no torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.05  # of a test
_RESAMPLES = 10_000
_ENTRIES = 1 << 22  # random numbers in memory at once
_BISECTIONS = 60


@dataclass(frozen=True)
class Gap:
    """One mean minus another, the ends of its 95 % interval, and the two-sided p of no difference."""

    value: float
    low: float
    high: float
    p: float


def mcnemar(own: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Exact two-sided p (McNemar, Psychometrika 12, 1947): of the n images that only one of two networks classifies correctly, the number
    that are one's has the binomial distribution with n and 1/2. own, other: bool `(N,)`, of the same images in the same order.
    """
    only_own, only_other = int((own & ~other).sum()), int((other & ~own).sum())
    count, least = only_own + only_other, min(only_own, only_other)
    # logarithms: with thousands of images, 2 ** n is no float
    terms = [math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) - count * math.log(2) for k in range(least + 1)]
    return min(1.0, 2 * math.fsum(map(math.exp, terms)))


def paired_t(gaps: Sequence[float]) -> Gap | None:
    """Student's t test of a mean of zero. gaps: independent differences, such as one for each batch; None for fewer than two."""
    count = len(gaps)
    if count < 2:
        return None
    mean = math.fsum(gaps) / count
    error = math.sqrt(math.fsum((gap - mean) ** 2 for gap in gaps) / (count - 1) / count)
    reach = t_quantile(count - 1) * error
    p = 1 - t_inside(abs(mean) / error, count - 1) if error else float(mean == 0)
    return Gap(mean, mean - reach, mean + reach, p)


def t_inside(t: float, freedom: int) -> float:
    """The probability that |T| is at most t, for Student's t with whole degrees of freedom (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = total = (cosine if freedom > 1 else 0.0) if odd else 1.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= (k - 1) / k * cosine**2
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def t_quantile(freedom: int) -> float:
    """The t for which `t_inside` is 95 %."""
    low, high = 0.0, 20.0  # 12.7 for one degree of freedom
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if t_inside(middle, freedom) < 1 - LEVEL else (low, middle)
    return high


def similarity_gap(own: NDArray[np.float64], other: NDArray[np.float64], seed: int = 0) -> Gap:
    """The difference of two mean pairwise similarities, by a bootstrap over noise images.

    own, other: for each noise image, the mean similarity of its snapshots to all other images of the set, `(G,)` and `(H,)`, so that the
    mean over noise images is the mean over pairs. If G = H, entry g of both is of the same noise, and both are drawn together. A mean over
    pairs varies like twice the mean of these (its Hoeffding projection: van der Vaart, Asymptotic Statistics, 1998, section 12.1).
    """
    random = np.random.default_rng(seed)
    gap = float(own.mean() - other.mean())
    if len(own) == len(other):
        moved = _resampled_means(2 * (own - other), random)
    else:
        moved = _resampled_means(2 * own, random) - _resampled_means(2 * other, random)
    values = gap + moved
    low, high = np.quantile(values, [LEVEL / 2, 1 - LEVEL / 2])
    smaller = min(int((values <= 0).sum()), int((values >= 0).sum()))
    return Gap(gap, float(low), float(high), min(1.0, 2 * (smaller + 1) / (_RESAMPLES + 1)))


def _resampled_means(values: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.float64]:
    """Means of resamples minus the mean of all values: `(_RESAMPLES,)`."""
    centered, count = values - values.mean(), len(values)
    rows = max(1, _ENTRIES // count)
    means = []
    for start in range(0, _RESAMPLES, rows):
        means.append(centered[random.integers(count, size=(min(rows, _RESAMPLES - start), count))].mean(axis=1))
    return np.concatenate(means)
