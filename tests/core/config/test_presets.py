"""The presets, and the preset nearest to a config."""

import json
from dataclasses import replace

import pytest

from core import config as module
from core.config import PRESETS, RunConfig, nearest_preset, preset
from core.errors import UnknownNameError
from core.generation.methods import METHODS


def test_presets():
    assert list(PRESETS)[:4] == ["quick", "instant", "imagenet", "paper"]
    assert set(list(PRESETS)[4:]) <= METHODS.keys()  # of authors
    for name, config in PRESETS.items():
        assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
        assert config.bits == {"zaq": (6,), "instant": (4, 8)}.get(name, (3, 4, 5))
        if name in METHODS:  # the schedule of its authors
            assert name in config.methods
            assert (config.training.protocol == "authors") == METHODS[name].has_protocols
        else:
            assert config.methods == (("mi-fgsm",) if name == "instant" else ("mi-fgsm", "adam"))
    assert preset("paper").training.range == "minmax"
    # so that each is for a network of any classes
    assert {config.evaluation.data for config in PRESETS.values()} == {"auto"}
    with pytest.raises(
        UnknownNameError,
        match=f"unknown preset 'slow': must be one of {', '.join(PRESETS)}",
    ):
        preset("slow")
    with pytest.raises(TypeError):
        module.PRESETS["quick"] = None


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("bits", [0, 3, 4, 5])
def test_preset_is_nearest_to_itself(name, bits):
    assert nearest_preset(PRESETS[name], bits) == (name, {})


def test_schedules_of_the_authors_of_generators():
    """Epochs of 200 iterations, 4 for the generator alone and 400 in all; ZAQ: 300 epochs of 60 iterations with 5 steps of the student."""
    generation, training = PRESETS["gdfq"].generation, PRESETS["gdfq"].training
    assert (generation.iterations, len(generation.batches), training.steps) == (200, 4, 79_200)
    assert (generation.generator_lr, generation.alpha_bns, generation.beta) == (1e-3, 0.1, 1.0)
    assert (training.training_lr, training.training_weight_decay, training.training_optimizer) == (1e-4, 1e-4, "sgd")
    generation, training = PRESETS["zaq"].generation, PRESETS["zaq"].training
    assert (training.steps / generation.student_steps, training.training_batch_size) == (300 * 60, 256)
    assert PRESETS["zaq"].training_for(6).width == "W6A8"
    generation, training = PRESETS["adadfq"].generation, PRESETS["adadfq"].training
    assert (generation.iterations * len(generation.batches) + training.steps) == 400 * 200
    assert generation.generator_batch_size == training.training_batch_size == 16
    generation, training = PRESETS["texq"].generation, PRESETS["texq"].training
    centers = generation.texq_share * generation.iterations * len(generation.batches)
    assert (centers, generation.iterations * len(generation.batches) - centers + training.steps) == (1500, 400 * 200)


def test_nearest_preset_with_what_differs():
    changed = {"epsilon": 0.2, "seed": 3, "steps": 7}
    assert nearest_preset(PRESETS["paper"].with_knobs(changed)) == ("paper", changed)
    assert nearest_preset(PRESETS["imagenet"].with_knobs({"beta": 50.0, "model": "x", "threads": 2})) == ("imagenet", {"beta": 50.0})
    # Genie's authors' preset has the default training, but is for Genie
    assert nearest_preset(PRESETS["genie"])[0] == "genie"
    assert nearest_preset(replace(PRESETS["genie"], methods=("adam",)))[0] != "genie"


def test_a_run_that_trains_is_not_near_a_preset_that_does_not():
    small = PRESETS["quick"].with_knobs({"images": 256, "steps": 3})
    assert nearest_preset(small) == ("quick", {"images": 256, "steps": 3})
    assert nearest_preset(replace(PRESETS["instant"], bits=(4,)).with_knobs({"images": 128})) == ("instant", {"images": 128})


def test_nearest_preset_at_a_bit_width_counts_its_steps():
    quick = PRESETS["quick"].with_knobs({"steps": 9, "training_lr": 0.5})
    assert nearest_preset(quick, 3) == ("quick", {})  # the preset's steps at 3 bits apply
    assert nearest_preset(quick, 8) == ("quick", {"steps": 9, "training_lr": 0.5})


def test_nearest_preset_of_given_images_and_of_one_method():
    start = PRESETS["quick"].with_knobs({"epsilon": 0.3, "lr": 0.3})
    given = RunConfig.from_dict({**start.to_dict(), "methods": ["given"], "images_from": "/x"})
    assert nearest_preset(given) == ("quick", {})
    adam = RunConfig.from_dict({**start.to_dict(), "methods": ["adam"]})
    assert nearest_preset(adam) == ("quick", {"lr": 0.3})
