"""Configs stored by version 1 are read in the current form, value by value."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from core.config import (
    EvaluationConfig,
    GenerationConfig,
    MachineConfig,
    RunConfig,
    TrainingConfig,
    every_knob,
    upgrade,
    upgrade_generation,
    upgrade_training,
)
from core.errors import ConfigError, UnknownNameError
from core.generation.methods import L_TOTAL

EVALUATION = EvaluationConfig(data="embedded")  # the default of version 1
STORED = sorted((Path(__file__).parents[2] / "data" / "runs_of_version_1" / "configs").glob("*.json"))
GENERATION = {
    "model": "net",
    "optimizer": "adam",
    "images": 8,
    "snapshots": 2,
    "batch_size": 4,
    "half_resolution": 0.1,
    "lr": 0.25,
    "seed": 5,
    "compile": True,
    "threads": 3,
    "device": "cpu",
}
QUANTIZATION = {
    "model": "net",
    "weight_bits": 3,
    "activation_bits": 3,
    "steps": 7,
    "batch_size": 16,
    "averaging": 0.5,
    "layer_bits": {"output": 8},
    "evaluations": 9,
    "data": "cifar10",
    "quantization_seed": 5,
    "threads": 1,
    "device": "auto",
}


def version_1(**changes) -> dict:
    """A complete config as version 1 stored it."""
    values = {
        "generation": dict(GENERATION),
        "quantization": dict(QUANTIZATION),
        "optimizers": ["adam"],
        "bits": [3, 4],
        "steps_by_bits": {"3": 70},
        "lr_by_bits": {"4": 0.01},
        "activation_bits": 0,
        "encoder": "",
        "images_from": "",
    }
    return {**values, **changes}


# what QUANTIZATION says today
TRAINING = TrainingConfig(
    weight_bits=3,
    steps=7,
    training_batch_size=16,
    ema_decay=0.5,
    layer_bits={"output": 8},
    keep="trained",
    correct_statistics=False,
)


def test_complete_config():
    config = RunConfig.from_dict(version_1())
    assert config == RunConfig(
        model="net",
        machine=MachineConfig(seed=5, device="cpu", threads=3, compile=True),
        generation=GenerationConfig(images=8, snapshots=2, batch_size=4, half_resolution_fraction=0.1, lr=0.25),
        training=TRAINING,
        evaluation=EvaluationConfig(data="cifar10", accuracy_checks=9, encoder=""),
        methods=("adam",),
        bits=(3, 4),
        steps_by_bits={3: 70},
        lr_by_bits={4: 0.01},
    )
    assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_stored_configs(path):
    """Every value is in the section that has the knob now, under its current name."""
    stored = json.loads(path.read_text(encoding="utf-8"))
    config = RunConfig.from_dict(stored)
    generation, quantization = stored["generation"], stored["quantization"]
    renamed = {"batch_size": "training_batch_size", "averaging": "ema_decay"}
    expected = {renamed.get(name, name): value for name, value in quantization.items()}
    expected |= {name: value for name, value in generation.items() if name in every_knob()}
    expected |= {
        "half_resolution_fraction": generation["half_resolution"],
        "accuracy_checks": quantization["evaluations"],
        "encoder": stored["encoder"],
        "activation_bits": stored["activation_bits"],
        "layer_bits": tuple(sorted(quantization["layer_bits"].items())),
        "keep": "trained",  # all that version 1 could do
        "correct_statistics": False,
        "bns_form": "norms",
    }
    left_out = {"evaluations", "quantization_seed", "weight_bits"}
    for name in expected.keys() - left_out:
        assert config.value(name) == expected[name], name
    of_later_methods = {
        name for name, knob in every_knob().items() if not {"", "mi-fgsm", "adam", L_TOTAL} & set(knob.metadata["of"] or ("",))
    }
    later = {
        "strict",
        "budget",
        "patience",
        "training_weight_decay",
        "flip_share",
        "cutmix",
        "symmetric_weights",
        "size",
        "layer_weight_bits",
        "gpu_share",
        "shard_size",
    } | of_later_methods
    assert {name for name in every_knob() if name not in expected} == later
    assert list(config.methods) == stored["optimizers"]
    assert list(config.bits) == stored["bits"]
    assert config.seed_of_training == quantization["quantization_seed"]
    assert config.training_seed is None
    for bits in config.bits:
        assert config.training_for(bits).steps == stored["steps_by_bits"].get(str(bits), quantization["steps"])
        assert config.training_for(bits).input_bits == (stored["activation_bits"] or bits)


def test_stored_configs_exist():
    assert len(STORED) >= 15


def test_current_form_is_unchanged():
    values = RunConfig(methods=("adam",), steps_by_bits={3: 7}).to_dict()
    assert upgrade(values) == values
    assert upgrade({}) == {}
    assert upgrade({"generation": {"images": 8}}) == {"generation": {"images": 8}}


@pytest.mark.parametrize(("images_from", "seed", "training_seed"), [("", 5, 2), ("/images", 2, None)])
def test_differing_seeds(images_from, seed, training_seed):
    """Each stage keeps its seed; with given images, the seed of the run is that of the training."""
    stored = version_1(quantization={**QUANTIZATION, "quantization_seed": 2}, images_from=images_from)
    config = RunConfig.from_dict(stored)
    assert (config.machine.seed, config.training_seed, config.seed_of_training) == (seed, training_seed, 2)
    assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_training_seed_of_zero_is_kept():
    config = RunConfig.from_dict(version_1(quantization={**QUANTIZATION, "quantization_seed": 0}))
    assert (config.machine.seed, config.seed_of_training) == (5, 0)


def test_activation_width_is_that_of_the_run():
    """The value in the section never applied."""
    assert RunConfig.from_dict(version_1(activation_bits=8)).training_for(3).width == "W3A8"
    assert RunConfig.from_dict(version_1()).training_for(4).width == "W4A4"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"optimizers": ["adam"]}, RunConfig(methods=("adam",))),
        ({"optimizers": ["given"], "images_from": "/x"}, RunConfig(methods=("given",), images_from="/x")),
        ({"encoder": ""}, RunConfig(evaluation=replace(EVALUATION, encoder=""))),
        ({"activation_bits": 8}, RunConfig(training=TrainingConfig(activation_bits=8), evaluation=EVALUATION)),
        ({"generation": {"seed": 5}}, RunConfig(machine=MachineConfig(seed=5), evaluation=EVALUATION)),
        ({"generation": {"model": "net"}}, RunConfig(model="net", evaluation=EVALUATION)),
        ({"generation": {"half_resolution": 0.1}}, RunConfig(generation=GenerationConfig(half_resolution_fraction=0.1))),
        ({"quantization": {"model": "net"}}, RunConfig(model="net", evaluation=EVALUATION)),
        ({"quantization": {"averaging": 0.5}}, RunConfig(training=TrainingConfig(ema_decay=0.5), evaluation=EVALUATION)),
        ({"quantization": {"batch_size": 8}}, RunConfig(training=TrainingConfig(training_batch_size=8), evaluation=EVALUATION)),
        ({"quantization": {"evaluations": 0}}, RunConfig(evaluation=replace(EVALUATION, accuracy_checks=0))),
        ({"quantization": {}}, RunConfig(evaluation=EVALUATION)),
        ({"generation": {}, "quantization": {"data": "cifar10"}}, RunConfig(evaluation=EvaluationConfig(data="cifar10"))),
    ],
)
def test_partial_config(values, expected):
    assert RunConfig.from_dict(values) == expected


def test_two_networks_are_refused():
    stored = version_1(quantization={**QUANTIZATION, "model": "other"})
    with pytest.raises(ConfigError, match="^model must be one network for the whole run, got 'net' and 'other'$"):
        RunConfig.from_dict(stored)


@pytest.mark.parametrize("values", [{"quantization": 4}, {"quantization": []}, {"generation": 3, "quantization": {}}])
def test_invalid_sections_are_refused(values):
    with pytest.raises(ConfigError, match=r"unknown knob 'quantization'|must be a mapping of knobs to values, got "):
        RunConfig.from_dict(values)


@pytest.mark.parametrize("section", ["generation", "quantization"])
def test_unknown_knobs_are_refused(section):
    stored = version_1()
    stored[section]["epsilom"] = 1
    with pytest.raises(UnknownNameError, match="unknown knob 'epsilom'"):
        RunConfig.from_dict(stored)


def test_bad_values_are_refused_under_the_current_name():
    with pytest.raises(ConfigError, match="^ema_decay must be .*, got 3$"):
        RunConfig.from_dict({"quantization": {"averaging": 3}})
    with pytest.raises(ConfigError, match="^seed must be .*, got -1$"):
        RunConfig.from_dict({"generation": {"seed": -1}})


def test_training_config_in_a_saved_network():
    config = TrainingConfig.from_dict(upgrade_training(QUANTIZATION))
    assert config == replace(TRAINING, activation_bits=3)
    assert upgrade_training(config.to_dict()) == config.to_dict()


def test_generation_config_in_a_manifest():
    config = GenerationConfig.from_dict(upgrade_generation(GENERATION))
    assert config == GenerationConfig(images=8, snapshots=2, batch_size=4, half_resolution_fraction=0.1, lr=0.25)
    assert upgrade_generation(config.to_dict()) == config.to_dict()


def test_input_is_not_modified():
    stored = version_1()
    upgrade(stored)
    upgrade_generation(stored["generation"])
    upgrade_training(stored["quantization"])
    assert stored == version_1()
