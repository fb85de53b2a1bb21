"""The benchmark of trainings on the small network."""

from dataclasses import replace

import pytest

from benchmarks.training import QUICK, WAYS, Measured, scores_of, trained


def test_each_way_changes_what_it_says():
    changed = {way: change(QUICK) for way, change in WAYS.items()}
    assert changed["quick"] == QUICK
    assert len({repr(config) for config in changed.values()}) == len(WAYS)
    assert changed["three times the steps"].training_for(4).steps == 3 * QUICK.training_for(4).steps
    assert changed["half the step size"].training_for(4).training_lr == QUICK.training_for(4).training_lr / 2


@pytest.mark.parametrize("way", ["quick", "CutMix"])
def test_figures_of_one_training(small, small_images, way):
    few = QUICK.with_knobs({"device": "cpu", "training_batch_size": 16, "crop_padding": 1})
    config = WAYS[way](replace(few, lr_by_bits={}))
    config = config.with_steps({4: 12}).with_knobs({"training_lr": 1e-3, "ema_decay": 0.0})
    pixels, labels = small_images.images, small_images.labels
    on = Measured(pixels, labels, scores_of(small, small.network, pixels))
    found = trained(small, small_images, config, 4, on)
    assert found["steps"] == 12
    expected = scores_of(small, small.network, pixels).argmax(dim=1) == labels
    for state in ("calibrated", "trained"):
        assert found[state]["kl"] > 0
        assert abs(found[state]["top1"] - 100 * float(expected.double().mean())) < 30
    assert found["calibrated"] != found["trained"]
