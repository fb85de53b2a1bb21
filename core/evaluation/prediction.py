"""The drop in top-1 accuracy, predicted without a labeled image.

From how a quantized network differs from its full-precision one on held-out synthetic images, by an equation fitted to networks whose
accuracy is known: with d the drop in points,

    sqrt(d) = a sqrt(KL) + b sqrt(D) + c N

KL the mean divergence between the softmax of the scores in nats, D the images with another class in percent, and N the ratio of the
amplitudes of noise and signal in the scores. All three are zero where the networks are equal, and so is the prediction.
benchmarks/prediction.py fits the constants, and measures how good predictions are for networks that were not fitted.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

COVERED = 0.85  # of the fitted points are inside the interval, so that at least 80 % of those of other networks are
LARGEST = 25.0  # points; what lies above is not fitted, and not predicted
_DECIMALS = 1


@dataclass(frozen=True)
class Constants:
    """a, b and c of the equation, and the half width of the interval of sqrt(d)."""

    divergence: float
    disagreement: float
    noise: float
    half_width: float


# printed by benchmarks/prediction.py
CONSTANTS = Constants(divergence=0.0, disagreement=0.0, noise=5.0, half_width=0.5)


def predict(figures: Mapping[str, Any], constants: Constants = CONSTANTS) -> dict[str, Any]:
    """The drop in points and its interval, as {"drop", "low", "high"}; or {"why_not": a clause} where it cannot be predicted.

    figures: those of core.evaluation.agreement, on held-out images.
    """
    features = _features(figures)
    if features is None:
        return {"why_not": "its scores are not finite, or those of the original are the same for all images"}
    root = float(features @ np.array([constants.divergence, constants.disagreement, constants.noise]))
    if root**2 > LARGEST:
        return {
            "why_not": f"it gives the same answer as the original on only {figures['agreement']:.0f} % of unseen images, and drops above "
            f"{LARGEST:g} points are not predicted"
        }
    low, high = max(0.0, root - constants.half_width) ** 2, (root + constants.half_width) ** 2
    return {"drop": round(root**2, _DECIMALS), "low": round(low, _DECIMALS), "high": round(high, _DECIMALS)}


def fit(points: Sequence[Mapping[str, Any]]) -> Constants:
    """The constants for points that have the figures and the true `drop`, by least squares without negative constants."""
    known = [point for point in points if point["drop"] <= LARGEST and _features(point) is not None]
    inputs = np.array([_features(point) for point in known])
    roots = np.array([math.sqrt(max(0.0, point["drop"])) for point in known])
    used = list(range(inputs.shape[1]))
    while True:
        weights, *_ = np.linalg.lstsq(inputs[:, used], roots, rcond=None)
        if weights.min() >= 0:
            break
        del used[int(weights.argmin())]
    constants = np.zeros(inputs.shape[1])
    constants[used] = weights
    half_width = float(np.quantile(np.abs(inputs @ constants - roots), COVERED))
    return Constants(*(round(float(value), 4) for value in (*constants, half_width)))


def _features(figures: Mapping[str, Any]) -> np.ndarray | None:
    """sqrt(KL), sqrt(D) and N; None where one of them is not known."""
    kl, agreement, sqnr = (figures.get(name) for name in ("kl", "agreement", "score_sqnr"))
    if kl is None or agreement is None or sqnr is None or not math.isfinite(kl):
        return None
    return np.array([math.sqrt(max(0.0, kl)), math.sqrt(100 - agreement), 10 ** (-sqnr / 20)])
