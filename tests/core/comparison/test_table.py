"""Rows of the table, from results as runs store them."""

import numpy as np
import pytest

from core.comparison.cells import cells
from core.comparison.table import rows
from core.config import RunConfig
from core.evaluation.hits import packed

IMAGES = 2000


class Store:
    """results: run -> name -> result."""

    def __init__(self, results):
        self.results = results

    def results_of(self, runs, kinds):
        return {run: self.results[run] for run in runs}

    def result(self, run, name):
        return self.results[run].get(name)


def measured(calibrated, trained, kept):
    """What a run stores of noise at W3A3."""
    figures = {
        "calibrated": calibrated,
        "trained": trained,
        "kept": kept,
        "quantized": {"calibrated": calibrated, "trained": trained}[kept],
        "standard_error": 0.99,
        "real": {"calibrated": {"images": IMAGES}},
        "full_precision": 92.1,
        "training_seconds": 60.0,
        "evaluated_on": "2,000 images",
    }
    hits = np.arange(IMAGES) < IMAGES * trained / 100
    return {"accuracy/noise/W3A3": figures, "hits/noise/W3A3": packed(hits)}


@pytest.mark.parametrize("kept", ["calibrated", "trained"])
def test_accuracy_is_that_of_the_last_step_whichever_network_a_run_keeps(kept):
    (cell,) = cells(RunConfig(methods=("noise",), bits=(3,)), [0])
    (row,) = rows(Store({"run": measured(73.25, 43.85, kept)}), [(cell, "run")])
    assert row.top1 == (43.85,)
    assert row.drop == pytest.approx(48.25)
    assert row.standard_error == pytest.approx(100 * (0.4385 * 0.5615 / IMAGES) ** 0.5, abs=1e-3)


def test_without_a_training_it_is_that_of_the_calibrated_network():
    (cell,) = cells(RunConfig(methods=("noise",), bits=(3,)), [0])
    stored = measured(73.25, 73.25, "calibrated")
    del stored["accuracy/noise/W3A3"]["trained"], stored["accuracy/noise/W3A3"]["real"]
    (row,) = rows(Store({"run": stored}), [(cell, "run")])
    assert (row.top1, row.standard_error) == ((73.25,), 0.99)
