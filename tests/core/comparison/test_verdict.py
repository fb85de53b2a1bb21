"""Findings of stored results, against the tests they name, computed here from the same numbers by hand; and their sentences."""

import math
from statistics import mean, stdev

import numpy as np
import pytest

from core.comparison import verdict, words
from core.comparison.cells import cells
from core.comparison.table import rows
from core.config import RunConfig
from core.evaluation.answers import Answers, packed_numbers
from core.evaluation.hits import packed
from core.generation.methods import METHODS
from core.runs.records import Record

IMAGES = 400
LABELS = np.arange(IMAGES, dtype=np.int32) % 10


def title(method):
    return METHODS[method].title


def said(*findings):
    return words.sentences([found for found in findings if found], title)


def answers(wrong):
    """Packed answers that are wrong on the images with these indices."""
    classes = LABELS.copy()
    classes[list(wrong)] = (classes[list(wrong)] + 1) % 10
    return Answers(classes, np.full(IMAGES, 0.5, np.float16)).packed()


def network(method, wrong, width="W4A4", bits=4, labels=True, calibrated=range(0)):
    """The results of one network that is wrong on these images, as the stage stores them."""
    top1 = 100 * (1 - len(wrong) / IMAGES)
    networks = {"full precision": answers(range(10)), "calibrated": answers(calibrated), "trained": answers(wrong)}
    figures = {"bits": bits, "calibrated": 90.0, "trained": top1, "quantized": top1, "full_precision": 97.5, "evaluated_on": "400 images"}
    if not labels:
        figures |= dict.fromkeys(("calibrated", "trained", "quantized", "full_precision"))
        figures["held_out"] = {"trained": {"agreement": top1, "images": IMAGES}}
        return {f"accuracy/{method}/{width}": figures, f"answers/{method}/{width}": {"real": {}, "held_out": networks}}
    hits = np.ones(IMAGES, bool)
    hits[list(wrong)] = False
    return {
        f"accuracy/{method}/{width}": figures,
        f"hits/{method}/{width}": packed(hits),
        f"answers/{method}/{width}": {"real": {**networks, "labels": packed_numbers(LABELS)}, "held_out": {}},
    }


def binomial(only_one, only_other):
    total, least = only_one + only_other, min(only_one, only_other)
    return min(1.0, 2 * sum(math.comb(total, k) for k in range(least + 1)) / 2**total)


def test_networks_that_do_not_differ_measurably():
    found = verdict.of_quantization({**network("mi-fgsm", range(20)), **network("adam", range(4, 26))})
    ((only,),) = [found]
    assert (only.best, only.values) == ("mi-fgsm", {"mi-fgsm": 95.0, "adam": 94.5})
    (other,) = only.against
    assert (other.method, other.value, other.is_ahead) == ("adam", 0.5, False)
    assert other.p == pytest.approx(binomial(4, 6))
    assert said(*found) == [
        "At 4 bits (MI-FGSM 95.00 %, Adam 94.50 %; McNemar p = 0.75), the networks trained on images of MI-FGSM and Adam do not differ "
        "measurably in top-1"
    ]


def test_a_network_that_is_ahead_and_widths_with_one_outcome():
    stored = {
        **network("mi-fgsm", range(60), "W3A3", 3), **network("adam", range(20), "W3A3", 3),
        **network("mi-fgsm", range(40)), **network("adam", range(16)),
        **network("mi-fgsm", range(12), "W5A5", 5), **network("adam", range(12), "W5A5", 5),
    }  # fmt: skip
    three, four, five = verdict.of_quantization(stored)
    assert three.against[0].p == pytest.approx(binomial(40, 0))
    assert (three.best, four.best, five.against[0].p) == ("adam", "adam", 1)
    assert three.against[0].low < 10 < three.against[0].high
    first, second = said(three, four, five)
    assert first.startswith("At 3 bits (Adam 95.00 %, MI-FGSM 85.00 %; McNemar p < 0.001: difference 10.00 points, 95 % ")
    assert first.endswith(", networks trained on Adam images are better than MI-FGSM's")
    assert " and 4 bits (" in first
    assert second.startswith("At 5 bits (MI-FGSM 97.00 %, Adam 97.00 %; McNemar p = 1)")


def test_several_methods_are_corrected_for_all_pairs_and_references_do_not_compete():
    stored = {name: value for method, wrong in (
        ("mi-fgsm", range(10)), ("adam", range(14)), ("zeroq", range(100)), ("noise", range(5)),
    ) for name, value in network(method, wrong).items()}  # fmt: skip
    (found,) = verdict.of_quantization(stored)
    assert list(found.values) == ["mi-fgsm", "adam", "zeroq"]
    near, far = found.against
    assert near.p == pytest.approx(min(1, 3 * binomial(4, 0)))
    assert far.p == pytest.approx(3 * binomial(90, 0))
    assert said(found) == [
        "At 4 bits, MI-FGSM has the highest value (top-1 97.50 %); Adam 96.50 % does not differ measurably from it; ZeroQ 75.00 % is "
        "measurably behind (McNemar, p < 0.001 after correction for 3 pairs)"
    ]
    references = verdict.of_quantization(network("noise", range(5)) | network("real", range(9)))
    assert list(references[0].values) == ["noise", "real"]


def test_one_method_is_compared_with_full_precision():
    (found,) = verdict.of_quantization(network("adam", range(30)))
    assert found.below.p == pytest.approx(binomial(20, 0))
    assert said(found)[0].startswith(
        "At 4 bits, the network is measurably worse than full precision (top-1 92.50 %, difference 5.00 points, 95 % "
    )
    (found,) = verdict.of_quantization(network("adam", range(2, 14)))
    assert said(found) == [
        "At 4 bits, the network does not differ measurably from full precision (top-1 97.00 %, 0.50 points below, McNemar p = 0.69)"
    ]


def test_without_labels_networks_are_compared_by_agreement():
    stored = network("mi-fgsm", range(20), labels=False) | network("adam", range(40), labels=False)
    (found,) = verdict.of_quantization(stored)
    # full precision is wrong on the first ten as well, in the same way
    assert found.against[0].p == pytest.approx(binomial(20, 0))
    assert found.images == "400 held-out synthetic images"
    assert "networks trained on MI-FGSM images agree more with full precision than Adam's" in said(found)[0]
    (alone,) = verdict.of_quantization(network("adam", range(40), labels=False))
    assert said(alone) == ["At 4 bits, agreement with full precision 90.00 %, on 400 held-out synthetic images"]


def test_a_run_that_stored_no_hits_has_no_winner():
    stored = {name: value for name, value in (network("mi-fgsm", range(20)) | network("adam", range(90))).items() if "accuracy" in name}
    (found,) = verdict.of_quantization(stored)
    assert found.against == ()
    assert said(found) == [
        "At 4 bits: top-1 MI-FGSM 95.00 % and Adam 77.50 % (not tested: the run did not store which images each network gets right)"
    ]


def test_training_that_lowered_top1():
    stored = network("adam", range(60), calibrated=range(20))["answers/adam/W4A4"]
    before = verdict.of_training(stored)
    assert (before.value, before.p) == (10, pytest.approx(binomial(40, 0)))
    sentence = words.training_lowered("W4A4", "adam", before, title)
    assert sentence.startswith("At 4 bits, training on images of Adam lowered top-1 by 10.00 points (McNemar p < 0.001)")
    assert verdict.of_training({"real": {}, "held_out": {}}) is None


def records(**by_method):
    """Records of batches of two iterations; values of L_BNS at the second."""
    found = []
    for method, values in by_method.items():
        for batch, value in enumerate(values):
            for iteration, bns in ((1, 999.0), (2, value)):
                found.append(
                    Record(0, "generation", method.replace("_", "-"), 2 * batch + iteration, {"bns": bns, "agreement": 90.0 + bns})
                )
    return found


def test_batches_are_compared_by_a_paired_t_test():
    low, high = [3.0, 3.5, 2.9, 3.3, 9.9], [4.0, 4.7, 3.6, 4.5]  # the fifth batch is complete for one method only
    found, recognized = verdict.of_generation(records(mi_fgsm=low, adam=high), 2, ["mi-fgsm", "adam"])
    gaps = [b - a for a, b in zip(low, high)]
    reach = 3.182446305284263 * stdev(gaps) / 2  # scipy.stats.t.ppf(0.975, 3)
    (other,) = found.against
    assert (found.best, found.count, other.value) == ("mi-fgsm", 4, pytest.approx(mean(gaps)))
    assert (other.low, other.high) == (pytest.approx(mean(gaps) - reach), pytest.approx(mean(gaps) + reach))
    assert recognized.best == "adam"
    assert said(found) == [
        "MI-FGSM images match the running statistics better than Adam's (L_BNS 3.2 against 4.2; t test over 4 batches: difference 1.0, "
        f"95 % {other.low:.1f} to {other.high:.1f})"
    ]


def test_one_batch_and_one_method():
    found, _ = verdict.of_generation(records(mi_fgsm=[3.0], adam=[4.0]), 2, ["mi-fgsm", "adam"])
    assert said(found) == ["L_BNS of MI-FGSM and Adam images: 3.0 against 4.0 (not tested: a test needs two batches)"]
    found, _ = verdict.of_generation(records(adam=[3.0, 5.0]), 2, ["adam"])
    assert said(found) == ["Adam images: L_BNS 4.0 ± 1.0 (2 batches)"]
    assert verdict.of_generation(records(adam=[3.0]), 2, ["mi-fgsm", "adam"]) == []


def diversity(center, seed=0, **more):
    values = np.random.default_rng(seed).normal(center, 0.01, 200)
    return {"mean_similarity": float(values.mean()), "images": 800, "similarities": values.tolist(), **more}


def test_diversity_is_compared_over_images():
    found = verdict.of_similarity({"adam": diversity(0.39, 1), "mi-fgsm": diversity(0.35)})
    (other,) = found.against
    error = 2 * np.std(np.subtract(diversity(0.35)["similarities"], diversity(0.39, 1)["similarities"])) / 200**0.5
    assert (found.best, other.is_ahead) == ("mi-fgsm", True)
    assert (other.high - other.low) / (2 * 1.96) == pytest.approx(error, rel=0.05)
    (sentence,) = said(found)
    assert sentence.startswith("MI-FGSM images are more diverse than Adam's (CLIP similarity 0.350 against 0.389; bootstrap over images: ")
    alike = verdict.of_similarity({"adam": diversity(0.35, 3), "mi-fgsm": diversity(0.35, 4)})
    assert "do not differ measurably in diversity" in said(alike)[0]
    earlier = verdict.of_similarity({"adam": {"mean_similarity": 0.4, "images": 8}, "mi-fgsm": diversity(0.35)})
    assert said(earlier)[0].endswith("(not tested: the run did not store what a test needs)")
    assert verdict.of_similarity({}) is None


class Store:
    def __init__(self, results):
        self.results = results

    def results_of(self, runs, kinds):
        return {run: self.results[run] for run in runs}

    def result(self, run, name):
        return self.results[run].get(name)


@pytest.mark.parametrize(("seeds", "test"), [([0], "McNemar"), ([0, 1, 2], "bootstrap over images and seeds")])
def test_seeds_count_when_there_are_several(seeds, test):
    results, measured = {}, []
    for cell in cells(RunConfig(methods=("mi-fgsm", "adam"), bits=(4,)), seeds):
        run = f"{cell.method} {cell.seed}"
        wrong = range(20 + cell.seed) if cell.method == "adam" else range(50 + cell.seed)
        results[run] = {**network(cell.method, wrong), f"diversity/{cell.method}": diversity(0.3 + len(wrong) / 1000, cell.seed)}
        for figures in results[run].values():
            figures |= {"standard_error": 1.0, "training_seconds": 1.0} if "bits" in figures else {}
        measured.append((cell, run))
    store = Store(results)
    similar, top1 = verdict.of_table(store, rows(store, measured))
    assert top1.best == "adam"
    assert top1.against[0].value == pytest.approx(7.5)
    assert test in said(top1)[0]
    assert ("t test over 3 seeds" if len(seeds) > 1 else "bootstrap over images:") in said(similar)[0]
