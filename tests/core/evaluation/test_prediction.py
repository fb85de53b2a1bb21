import json
import math

import pytest

from benchmarks.machine import RESULTS
from core.evaluation.prediction import CONSTANTS, LARGEST, Constants, fit, predict


def test_equation_by_hand():
    root = 9.0 * 0.1  # 20 dB: a tenth
    predicted = predict({"agreement": 96.0, "kl": 0.04, "score_sqnr": 20.0}, Constants(noise=9.0, half_width=0.5))
    assert predicted == {"drop": round(root**2, 1), "low": round((root - 0.5) ** 2, 1), "high": round((root + 0.5) ** 2, 1)}


def test_interval_begins_at_zero():
    assert predict({"agreement": 100.0, "kl": 0.0, "score_sqnr": 60.0}, Constants(6.0, 0.5)) == {"drop": 0.0, "low": 0.0, "high": 0.3}


def test_equal_networks_lose_nothing():
    assert predict({"agreement": 100.0, "kl": 0.0, "score_sqnr": None})["drop"] == 0.0


def test_large_drop_is_not_predicted():
    root = math.sqrt(LARGEST) + 0.1
    found = predict({"agreement": 41.0, "kl": 1.0, "score_sqnr": 0.0}, Constants(root, 0.5))
    assert set(found) == {"why_not"}
    assert "on only 41 % of unseen images" in found["why_not"]


@pytest.mark.parametrize(("kl", "sqnr"), [(0.5, None), (float("nan"), None), (float("inf"), float("nan"))])
def test_scores_without_a_ratio_are_not_predicted(kl, sqnr):
    assert "scores are not finite" in predict({"agreement": 96.0, "kl": kl, "score_sqnr": sqnr})["why_not"]


def test_fit_recovers_the_constants():
    ratios = [0.01 * step for step in range(1, 80)]
    points = [
        # off by 0.3, above and below in turn
        {"score_sqnr": -20 * math.log10(ratio), "drop": (6 * ratio + 0.3 * (1 if step % 2 else -1)) ** 2}
        for step, ratio in enumerate(ratios)
        if 6 * ratio > 0.3
    ]
    found = fit([*points, {"score_sqnr": 0.0, "drop": 80.0}, {"score_sqnr": None, "drop": 1.0}])
    assert found.noise == pytest.approx(6.0, abs=0.05)
    assert found.half_width == pytest.approx(0.3, abs=0.05)


def test_constants_are_those_of_the_benchmark():
    stored = json.loads((RESULTS / "prediction.json").read_text(encoding="utf-8"))
    assert Constants(**stored["constants"]) == CONSTANTS
    assert len([point for point in stored["points"] if "predicted" in point]) >= 40


def test_few_images_predict_nothing():
    figures = {"agreement": 96.0, "kl": 0.01, "score_sqnr": 25.0}
    assert "drop" in predict({**figures, "images": 32})
    assert predict({**figures, "images": 31}) == {
        "why_not": "there are only 31 held-out images, and it takes 32; more time makes more of them"
    }
