"""Single sections: batches, snapshots and their iterations; bit widths of single layers; accuracy checks."""

import json

import pytest

from core.config import EvaluationConfig, GenerationConfig, RunConfig, TrainingConfig
from core.errors import ConfigError


@pytest.mark.parametrize(
    ("images", "snapshots", "saved"), [(7, 4, 8), (12, 4, 12), (1, 4, 8), (1, 1, 2), (4, 4, 8), (1_000_000, 3, 1_000_002)]
)
def test_images_are_rounded_up_to_two_noise_images_with_all_snapshots(images, snapshots, saved):
    config = GenerationConfig(images=images, snapshots=snapshots)
    assert (config.images, config.saved_images, config.noise_images) == (images, saved, saved // snapshots)
    assert len(config.starts) == saved
    assert min(config.batches) >= 2
    assert GenerationConfig.from_dict(config.to_dict()) == config


def test_more_snapshots_than_iterations_after_the_burn_in_are_refused():
    with pytest.raises(ConfigError, match="^snapshots must be at most 3, .*, got 4$"):
        GenerationConfig(images=8, iterations=5, snapshots=4, burn_in=0.4)
    assert GenerationConfig(images=9, iterations=5, snapshots=3, burn_in=0.4).snapshot_iterations == (3, 4, 5)


def test_snapshots_have_full_size():
    words = "^half_resolution_fraction must end before the first snapshot, at iteration 20 with burn_in 0.2, got 0.4, which is 20 of 50"
    with pytest.raises(ConfigError, match=words):
        GenerationConfig(half_resolution_fraction=0.4)
    assert GenerationConfig(half_resolution_fraction=0.38).half_iterations == 19
    assert GenerationConfig(half_resolution_fraction=0.5, burn_in=0.5).half_iterations == 25
    assert GenerationConfig().half_iterations == 0


@pytest.mark.parametrize(
    ("iterations", "burn_in", "snapshots", "expected"),
    [
        (50, 0.2, 4, (20, 30, 40, 50)),
        (50, 0.2, 1, (50,)),
        (50, 0.0, 5, (10, 20, 30, 40, 50)),
        (10, 0.5, 5, (6, 7, 8, 9, 10)),
        (10, 0.25, 3, (5, 8, 10)),  # burn-in of 2, 8 left: after 8/3, 16/3 and 8, rounded up
        (1, 0.95, 1, (1,)),
    ],
)
def test_snapshot_iterations_by_hand(iterations, burn_in, snapshots, expected):
    config = GenerationConfig(images=4 * snapshots, iterations=iterations, burn_in=burn_in, snapshots=snapshots)
    assert config.snapshot_iterations == expected


def test_snapshots_are_distinct_and_include_the_last_iteration():
    for iterations in range(1, 40):
        for burn_in in (0.0, 0.1, 0.2, 0.55, 0.95):
            for snapshots in (1, 2, 3, 7):
                try:
                    config = GenerationConfig(images=2 * snapshots, iterations=iterations, burn_in=burn_in, snapshots=snapshots)
                except ConfigError:
                    continue
                taken = config.snapshot_iterations
                assert len(set(taken)) == snapshots
                assert list(taken) == sorted(taken)
                assert taken[-1] == iterations
                assert taken[0] > burn_in * iterations - 1e-9


@pytest.mark.parametrize(
    ("images", "batch_size", "expected"),
    [(512, 128, [128] * 4), (129, 128, [129]), (257, 128, [128, 129]), (130, 128, [128, 2]), (3, 2, [3]), (2, 128, [2]), (5, 2, [2, 3])],
)
def test_batches_by_hand(images, batch_size, expected):
    assert GenerationConfig(images=images, snapshots=1, batch_size=batch_size).batches == expected


def test_batches_have_at_least_two_images_and_cover_all():
    for images in range(2, 60):
        for batch_size in range(2, 20):
            batches = GenerationConfig(images=images, snapshots=1, batch_size=batch_size).batches
            assert min(batches) >= 2
            assert max(batches) <= batch_size + 1
            assert sum(batches) == images


@pytest.mark.parametrize("given", [{"b": 8, "a": 2}, (("b", 8), ("a", 2)), [["b", 8], ["a", 2]]])
def test_layer_bits_from_a_mapping_or_pairs(given):
    made = TrainingConfig(layer_bits=given)
    assert made.layer_bits == (("a", 2), ("b", 8))
    assert made.to_dict()["layer_bits"] == {"a": 2, "b": 8}
    assert TrainingConfig.from_dict(json.loads(json.dumps(made.to_dict()))) == made
    assert RunConfig(training=made).training_for(3).layer_bits == made.layer_bits
    hash(made)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"a": 9}, "^layer_bits must be one of 2, 3, 4, 5, 6, 7, 8 for 'a', got 9$"),
        ({"a": True}, "^layer_bits must be one of .* for 'a', got True$"),
        ({"a": 4.0}, "^layer_bits must be one of .* for 'a', got 4.0$"),
        ({"a": None}, "^layer_bits must be one of .* for 'a', got None$"),
        ({3: 4}, "^layer_bits must name layers, got 3$"),
        ({"": 4}, "^layer_bits must name layers, got ''$"),
        ({"a\0": 4}, "^layer_bits must be UTF-8 text without NUL"),
        ([("a", 4), ("a", 5)], "^layer_bits must name each layer once, got 'a' twice$"),
        ("a=4", "^layer_bits must be a mapping of layer names to bit widths, got 'a=4'$"),
        (7, "^layer_bits must be a mapping .*, got 7$"),
        (["ab"], "^layer_bits must be a mapping "),
        ([("a", 4, 5)], "^layer_bits must be a mapping "),
        (None, "^layer_bits must be a mapping .*, got None$"),
    ],
)
def test_invalid_layer_bits_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        TrainingConfig(layer_bits=given)


@pytest.mark.parametrize(
    ("steps", "checks", "after"),
    [(150, 4, (30, 60, 90, 120)), (10, 0, ()), (0, 4, ()), (1, 4, ()), (2, 4, (1,)), (3, 100, (1, 2)), (7, 2, (2, 5))],
)
def test_steps_of_accuracy_checks(steps, checks, after):
    """Never before the first step or after the last, which is always measured; no step twice."""
    assert EvaluationConfig(accuracy_checks=checks).check_steps(steps) == after
