import json
import math

import pytest

from benchmarks.machine import RESULTS
from core.evaluation.prediction import CONSTANTS, LARGEST, Constants, fit, predict

EXACT = {"agreement": 100.0, "kl": 0.0, "score_sqnr": 200.0}
FOUR_BITS = {"agreement": 96.0, "kl": 0.04, "score_sqnr": 20.0}


def test_equation_by_hand():
    constants = Constants(divergence=2.0, disagreement=0.1, noise=3.0, half_width=0.5)
    root = 2 * 0.2 + 0.1 * 2 + 3 * 0.1  # 0.9
    predicted = predict(FOUR_BITS, constants)
    assert predicted == {"drop": round(root**2, 1), "low": round((root - 0.5) ** 2, 1), "high": round((root + 0.5) ** 2, 1)}


def test_equal_networks_lose_nothing():
    assert predict(EXACT)["drop"] == 0.0
    assert predict(EXACT)["low"] == 0.0


def test_large_drop_is_not_predicted():
    root = math.sqrt(LARGEST) + 0.1
    found = predict({"agreement": 41.0, "kl": 1.0, "score_sqnr": 3.0}, Constants(root, 0.0, 0.0, 0.5))
    assert set(found) == {"why_not"}
    assert "on only 41 % of unseen images" in found["why_not"]


@pytest.mark.parametrize("unknown", [{"score_sqnr": None}, {"kl": float("nan")}, {"kl": float("inf")}])
def test_scores_that_are_not_finite_are_not_predicted(unknown):
    assert "scores are not finite" in predict({**FOUR_BITS, **unknown})["why_not"]


def test_fit_recovers_the_constants():
    constants = Constants(divergence=1.5, disagreement=0.2, noise=4.0, half_width=0.0)
    points = []
    for kl in (0.0, 0.01, 0.1, 0.3):
        for agreement in (100.0, 97.0, 90.0):
            for sqnr in (10.0, 20.0, 30.0):
                root = 1.5 * math.sqrt(kl) + 0.2 * math.sqrt(100 - agreement) + 4 * 10 ** (-sqnr / 20)
                points.append({"kl": kl, "agreement": agreement, "score_sqnr": sqnr, "drop": root**2})
    found = fit(points)
    assert found.divergence == pytest.approx(constants.divergence, abs=1e-3)
    assert found.disagreement == pytest.approx(constants.disagreement, abs=1e-3)
    assert found.noise == pytest.approx(constants.noise, abs=1e-3)
    assert found.half_width == pytest.approx(0.0, abs=1e-3)


def test_no_constant_is_negative():
    points = [{"kl": kl, "agreement": 100 - 100 * kl, "score_sqnr": 30.0 - 60 * kl, "drop": 20 * kl} for kl in (0.0, 0.05, 0.1, 0.2)]
    found = fit(points)
    assert min(found.divergence, found.disagreement, found.noise) >= 0


def test_constants_are_those_of_the_benchmark():
    stored = json.loads((RESULTS / "prediction.json").read_text(encoding="utf-8"))
    assert Constants(**stored["constants"]) == CONSTANTS
    known = [point for point in stored["points"] if "predicted" in point]
    assert len(known) >= 40
