"""A run with a budget of time gives all figures that benchmarks/budget.py reports."""

import pytest

from benchmarks import budget


@pytest.mark.slow
def test_figures_of_a_run_that_chose_its_settings():
    small = ["--images", "64", "--iterations", "20", "--batch-size", "32", "--data", "none", "--encoder", ""]
    measured = budget.measure(0.05, small)
    assert measured["ratio"] == pytest.approx(measured["minutes"] / 0.05, rel=0.2)
    assert measured["steps"] == {"3": 20, "4": 20}  # the fewest, in three seconds
    assert measured["images"] >= 64
    assert measured["top1"].keys() == {"3", "4"}


def test_ratio_is_that_of_the_whole_program():
    printed = {
        "full_precision": 92.1,
        "plan": {"images": 640, "iterations": 30, "steps": {"3": 90}, "costs": {}},
        "methods": {"mi-fgsm": {"accuracy": {"3": {"quantized": 88.0, "standard_error": 0.7}}}},
    }
    figures = budget.figures(3.0, 198.0, printed)
    assert figures["ratio"] == 1.1
    assert figures["minutes"] == 3.3
    assert figures["top1"] == {"3": 88.0}
    assert "costs" not in figures
