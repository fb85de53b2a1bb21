"""Whether one method is better than another on the same evaluation images: a paired bootstrap over images and seeds. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.comparison.significance import mcnemar

_RESAMPLES = 10_000
_COVERED = 0.95


@dataclass(frozen=True)
class Difference:
    """Top-1 of one method minus that of another, in points.

    low, high: ends of the 95 % interval of the bootstrap. p: two-sided; of several seeds, the smallest that can be told is 2 / 10,001.
    """

    points: float
    low: float
    high: float
    p: float

    @property
    def is_significant(self) -> bool:
        """Whether zero is outside the interval."""
        return not self.low <= 0 <= self.high


def difference(own: Sequence[NDArray[np.bool_]], other: Sequence[NDArray[np.bool_]], seed: int = 0) -> Difference:
    """The paired difference of two methods (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 13 and 15).

    own, other: for each seed, whether each evaluation image is classified correctly, bool `(N,)`: the same seeds and images in the same
    order. Each resample draws images and seeds with replacement, so that the interval covers both the choice of the evaluation images and
    the variation between seeds; with one seed, it covers the images only, and p is that of McNemar's exact test. Raises ValueError where
    the images differ.
    """
    if len(own) != len(other) or len({len(hits) for hits in (*own, *other)}) != 1:
        raise ValueError("own and other must be of the same seeds and images")
    gaps = np.stack([mine.astype(np.float64) - theirs for mine, theirs in zip(own, other)])  # seeds x images
    seeds, images = gaps.shape
    random = np.random.default_rng(seed)
    # images with equal gaps are alike: drawing images is drawing the numbers of each of these few kinds
    kinds, counts = np.unique(gaps, axis=1, return_counts=True)
    drawn = random.multinomial(images, counts / images, size=_RESAMPLES)
    means = drawn @ kinds.T / images  # resamples x seeds
    chosen = random.integers(seeds, size=(_RESAMPLES, seeds))
    values = 100 * np.take_along_axis(means, chosen, axis=1).mean(axis=1)
    tail = (1 - _COVERED) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    smaller = min(int((values <= 0).sum()), int((values >= 0).sum()))
    p = mcnemar(own[0], other[0]) if seeds == 1 else round(min(1.0, 2 * (smaller + 1) / (_RESAMPLES + 1)), 5)
    return Difference(round(100 * float(gaps.mean()), 3), round(float(low), 3), round(float(high), 3), p)
