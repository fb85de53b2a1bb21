"""The drop in top-1 accuracy, predicted without a labeled image.

From how a quantized network differs from its full-precision one on held-out synthetic images, by an equation fitted to networks whose
accuracy is known: with d the drop in points and N the ratio of the amplitudes of noise and signal in the scores, 10^(-SQNR / 20),

    sqrt(d) = c N

The KL divergence and the agreement on the same images say nothing beyond N: with them in the equation, least squares without negative
constants gives them zero. benchmarks/prediction.py fits c, and measures how good predictions are for networks that were not fitted.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

COVERED = 0.9  # of the fitted points are inside the interval; of those of other networks it is fewer
LARGEST = 25.0  # points; what lies above is not fitted, and not predicted
FEWEST = 32  # held-out images; the equation was fitted to figures on 128 of them
_DECIMALS = 1


@dataclass(frozen=True)
class Constants:
    """c of the equation, and the half width of the interval of sqrt(d)."""

    noise: float
    half_width: float


# printed by benchmarks/prediction.py
CONSTANTS = Constants(noise=5.5203, half_width=0.5397)


def predict(figures: Mapping[str, Any], constants: Constants = CONSTANTS) -> dict[str, Any]:
    """The drop in points and its interval, as {"drop", "low", "high"}; or {"why_not": a clause} where it cannot be predicted.

    figures: those of core.evaluation.agreement, on held-out images.
    """
    count = figures.get("images", FEWEST)
    if count < FEWEST:
        return {"why_not": f"there are only {count} held-out images, and it takes {FEWEST}; more time makes more of them"}
    ratio = _noise_ratio(figures)
    if ratio is None:
        # equal scores have no ratio, and neither have scores that are not finite or the same for all images
        if figures.get("kl") == 0:
            return {"drop": 0.0, "low": 0.0, "high": round(constants.half_width**2, _DECIMALS)}
        return {"why_not": "its scores are not finite, or those of the original are the same for all images"}
    root = constants.noise * ratio
    if root**2 > LARGEST:
        return {
            "why_not": f"it gives the same answer as the original on only {figures['agreement']:.0f} % of unseen images, and drops above "
            f"{LARGEST:g} points are not predicted"
        }
    low, high = max(0.0, root - constants.half_width) ** 2, (root + constants.half_width) ** 2
    return {"drop": round(root**2, _DECIMALS), "low": round(low, _DECIMALS), "high": round(high, _DECIMALS)}


def fit(points: Sequence[Mapping[str, Any]]) -> Constants:
    """The constants for points that have the figures and the true `drop`, by least squares."""
    known = [(ratio, point["drop"]) for point in points if (ratio := _noise_ratio(point)) is not None and point["drop"] <= LARGEST]
    ratios, drops = np.array(known).T
    roots = np.sqrt(np.maximum(drops, 0.0))
    noise = float(ratios @ roots / (ratios @ ratios))
    half_width = float(np.quantile(np.abs(noise * ratios - roots), COVERED))
    return Constants(round(noise, 4), round(half_width, 4))


def _noise_ratio(figures: Mapping[str, Any]) -> float | None:
    """N; None where it is not known."""
    sqnr = figures.get("score_sqnr")
    return None if sqnr is None or not math.isfinite(sqnr) else 10 ** (-sqnr / 20)
