from types import SimpleNamespace

import numpy as np
import pytest

from core.config import GenerationConfig, RunConfig
from core.reporting import Frame
from core.runs.records import Record
from dashboard.tables import iterations
from dashboard.tables.terms import loss_terms


def test_iterations_stored_by_every_method():
    assert iterations.common([[1, 5, 9], [1, 9, 10]]) == [1, 9]
    assert iterations.common([[1, 5], []]) == []
    assert iterations.common([]) == []


@pytest.mark.parametrize(("step", "shown"), [(None, None), (5, 5), (7, 5), (1, 5), (9, 5), (10, 10), (11, 10), (12, None), (99, None)])
def test_nearest_stored_iteration_and_none_for_the_newest(step, shown):
    assert iterations.nearest(step, [5, 10, 12], 12) == shown


def test_only_the_newest_iteration_if_none_was_stored():
    assert iterations.nearest(3, [], 8) is None
    assert iterations.nearest(3, [8], 8) is None


@pytest.mark.parametrize("text", ["abc", "-1", "0", "1.5", "", "٣"])
def test_an_invalid_iteration_in_the_address_is_named(text):
    step, problem = iterations.from_address(text)
    assert step is None
    assert repr(text) in problem
    assert "must be the number of an iteration" in problem


def test_an_iteration_in_the_address():
    assert iterations.from_address("12") == (12, "")
    assert iterations.from_address(None) == (None, "")
    assert iterations.from_address("9" * 400)[0] == 999_999_999_999


def test_history_stays_in_the_batch():
    kept = [1, 4, 8, 9, 12, 16, 17]
    assert iterations.history(12, kept, 8) == [9, 12, 16]
    assert iterations.history(11, kept, 8) == [9, 11, 12, 16]


@pytest.mark.parametrize("step", [1, 2, 50, 57, 99, 100])
def test_long_history_is_spread_evenly_and_has_the_shown_iteration(step):
    chosen = iterations.history(step, range(1, 101), 100)
    assert len(chosen) == iterations.STRIP
    assert step in chosen
    assert (chosen[0], chosen[-1]) == (1, 100)
    assert max(after - before for before, after in zip(chosen, chosen[1:])) <= 18


def test_values_at_an_iteration_are_those_of_the_recorded_terms():
    records = {"adam": Record(1, "generation", "adam", 3, {"total": 12.3456, "bns": 7.0})}
    assert iterations.values(records, "iteration 3 of 9") == ["Adam, iteration 3 of 9: total loss 12.35, L_BNS 7"]
    agreeing = {"adam": Record(1, "generation", "adam", 3, {"total": 12.3456, "agreement": 76.5625})}
    assert iterations.values(agreeing, "it") == ["Adam, it: total loss 12.35, teacher agreement 76.6 %"]
    recorded = loss_terms({"terms": [{"name": "bns", "symbol": "", "title": "statistics", "log": True}]})
    assert iterations.values(records, "it", recorded) == ["Adam, it: total loss 12.35, statistics 7"]
    assert iterations.summary(Frame(1, np.zeros((1, 3, 1, 1), np.uint8), np.zeros(1)), records["adam"]) == "L_BNS 7"


def test_summary_shows_what_was_recorded():
    frame = Frame(1, np.zeros((2, 3, 1, 1), np.uint8), np.zeros(2), np.zeros(2), np.float32([0.5, 1]))
    record = Record(1, "generation", "adam", 1, {"bns": 9.0, "agreement": 50.0})
    assert iterations.summary(frame, record) == "L_BNS 9 · teacher agrees on 50 % · confidence 75 %"
    assert iterations.summary(Frame(1, frame.images, frame.labels), None) == ""


@pytest.mark.parametrize(("methods", "word"), [(("gdfq", "zaq"), "epoch"), (("adam", "gdfq"), "batch"), (("mi-fgsm",), "batch")])
def test_runs_of_generators_alone_have_epochs(methods, word):
    config = RunConfig(methods=methods, generation=GenerationConfig(images=16, iterations=5, batch_size=4, snapshots=1))
    run = SimpleNamespace(config=config)
    assert iterations.iteration_label(8, run) == f"iteration 3 of 5, {word} 2 of 4"
