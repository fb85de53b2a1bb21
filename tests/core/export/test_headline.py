"""The headline of a run, its recommendation, and what it says where figures are missing: values by hand."""

import pytest

from core.export.headline import (
    choice,
    headline,
    is_within,
    made_networks,
    recommended,
    reservation,
    size_in_words,
    subject,
)
from core.models.registry import ASSETS


def outcome(bits, **figures):
    """What a run without evaluation images reports for a network of 100,000 weights and 5,000 other bytes."""
    held_out = {"calibrated": {"agreement": 90.0}, "trained": {"agreement": 96.84}}
    known = {"bits": bits, "weight_size": 100_000 * bits, "bytes": 12_500 * bits + 5_000, "float32_bytes": 410_000}
    unlabeled = {"full_precision": None, "quantized": None, "drop_error": None, "kept": "trained", "held_out": held_out}
    return {**known, **unlabeled, **figures}


def networks(*outcomes):
    return made_networks({f"accuracy/adam/W{one['bits']}A{one['bits']}": one for one in outcomes})


def made(bits=4, **figures):
    return networks(outcome(bits, **figures))[0]


PREDICTED = {"drop": 0.94, "low": 0.4, "high": 1.61}
START = "Your network in 4 bits: 55 kB instead of 410 kB (7.5 times smaller)"
ANSWERS = "gives the same answer as the original on 96.8 % of unseen images"


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        ({"predicted": PREDICTED}, f"{START}, predicted top-1 drop 0.9 (0.4 to 1.6), {ANSWERS}"),
        ({}, f"{START}, {ANSWERS}"),
        ({"predicted": {"why_not": "The images are poor."}}, f"{START}, {ANSWERS}"),
        (
            {"full_precision": 92.1, "quantized": 91.7, "drop_error": 0.31, "predicted": PREDICTED},
            f"{START}, measured top-1 drop 0.4 ± 0.3, {ANSWERS}",
        ),
        # not "-0.0"
        ({"full_precision": 92.1, "quantized": 92.12, "held_out": {}}, f"{START}, measured top-1 drop 0.0"),
        ({"full_precision": 92.1, "quantized": 92.4, "held_out": {}}, f"{START}, measured top-1 drop -0.3"),
        ({"kept": "calibrated", "bytes": None}, f"Your network in 4 bits, {ANSWERS.replace('96.8', '90.0')}"),
        ({"bytes": 420_000, "held_out": {}}, "Your network in 4 bits: 420 kB instead of 410 kB"),
    ],
)
def test_headline(figures, expected):
    assert headline(made(**figures), "Your network") == expected


def test_a_drop_that_cannot_be_predicted_is_explained():
    assert reservation(made(predicted={"why_not": "the images are poor"})) == "No prediction of its accuracy: the images are poor."
    assert reservation(made(predicted=PREDICTED)) == ""
    assert reservation(made()) == ""
    assert reservation(made(predicted={"why_not": "the images are poor"}, full_precision=92.0, quantized=91.0)) == ""


def test_the_smallest_network_within_the_limit_is_recommended():
    found = networks(*(outcome(bits, full_precision=92.0, quantized=92.0 - drop) for bits, drop in ((3, 2.5), (4, 0.9), (5, 0.2))))
    assert [recommended(found, limit).bits for limit in (0.1, 0.2, 0.89, 1.0, 2.4, 2.6)] == [5, 5, 5, 4, 4, 3]
    assert choice(found) == "The smallest of 3 networks whose measured drop is at most 1 point."
    assert choice(found, 0.1) == "No network stays within 0.1 points: this one has the smallest measured drop, 0.2."
    assert choice(found[:1]) == ""


def test_a_prediction_counts_where_nothing_was_measured():
    found = networks(outcome(3, predicted={"drop": 1.5, "low": 1, "high": 2}), outcome(4, predicted=PREDICTED))
    assert recommended(found).bits == 4
    assert recommended(found, 1.5).bits == 3
    assert choice(found) == "The smallest of 2 networks whose predicted drop is at most 1 point."


def test_without_a_prediction_the_share_of_changed_answers_bounds_the_drop():
    poor = {"predicted": {"why_not": "the images are poor"}}
    changed = {3: 6.0, 4: 0.8, 5: 0.5}
    found = networks(*(outcome(bits, held_out={"trained": {"agreement": 100 - share}}, **poor) for bits, share in changed.items()))
    assert [recommended(found, limit).bits for limit in (0.6, 1.0, 6.5)] == [5, 4, 3]
    assert choice(found) == "The smallest of 3 networks whose share of changed answers is at most 1 point."


def test_of_equally_small_networks_the_better_one_is_recommended():
    results = {
        f"accuracy/{method}/W4A4": outcome(4, predicted=PREDICTED | {"drop": drop}) for method, drop in (("adam", 0.2), ("given", 0.1))
    }
    assert recommended(made_networks(results)).method == "given"


def test_a_network_of_which_nothing_is_known_is_never_within_a_limit():
    unknown = outcome(2, held_out={})
    found = networks(unknown, outcome(4))
    assert not is_within(found[0], 1e9)
    assert recommended(found).bits == 4
    assert choice(networks(unknown, {**unknown, "bits": 3})) == "The drop of none of the networks is known."


def test_only_finished_networks_are_found_by_method_and_width():
    results = {
        "accuracy/given/W4A4": outcome(4),
        "accuracy/adam/W4A4": outcome(4),
        "accuracy/adam/W3A3": outcome(3),
        "accuracy/adam/W5A5": {"calibrated": None, "held_out": {}, "bits": 5},  # in training
        "full_precision": {"top1": 92.0},
    }
    assert [(one.method, one.width) for one in made_networks(results)] == [("adam", "W3A3"), ("adam", "W4A4"), ("given", "W4A4")]


@pytest.mark.parametrize(
    ("size", "words"),
    [(177_849, "178 kB"), (999_499, "999 kB"), (999_500, "1.0 MB"), (1_089_896, "1.1 MB"), (99_949_999, "99.9 MB"), (1.2e9, "1,200 MB")],
)
def test_sizes_in_words(size, words):
    assert size_in_words(size) == words


def test_a_file_is_called_your_network():
    assert subject(str(ASSETS / "mine.safetensors")) == "Your network"
    assert subject("folder/mine.pt2") == "Your network"
    assert subject("resnet20_cifar10") == "resnet20_cifar10"


def test_headline_of_bits_by_layer_has_the_smallest_and_the_largest():
    by_layer = made(layer_weight_bits={"stem": 7, "middle": 3, "output": 5})
    assert headline(by_layer, "Your network").startswith("Your network in 3 to 7 bits: ")
