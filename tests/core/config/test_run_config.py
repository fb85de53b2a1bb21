"""RunConfig: refusals, round trips, and what stages and comparisons read from it."""

import copy
import json
import pickle
from dataclasses import FrozenInstanceError, replace

import pytest

from core.config import (
    SECTIONS,
    EncoderTrainingConfig,
    EvaluationConfig,
    GenerationConfig,
    MachineConfig,
    PretrainConfig,
    RunConfig,
    TrainingConfig,
    knobs,
    settings,
)
from core.errors import ConfigError, UnknownNameError
from core.generation.methods import METHODS

CONFIGS = (*SECTIONS.values(), PretrainConfig, EncoderTrainingConfig)


def test_config_is_frozen():
    with pytest.raises(FrozenInstanceError):
        GenerationConfig().epsilon = 0.5
    run = RunConfig(steps_by_bits={4: 10})
    with pytest.raises(TypeError):
        run.steps_by_bits[4] = 20
    for values in (run.bits, run.methods):
        assert isinstance(values, tuple)


@pytest.mark.parametrize("config", CONFIGS)
def test_round_trip_of_one_config(config):
    changed = {"seed": 7, "beta": 2.5, "training_lr": 0.25, "data": "folder/é", "label_smoothing": 0.5}
    made = config(**{name: value for name, value in changed.items() if name in knobs(config)})
    assert made != config()
    assert config.from_dict(json.loads(json.dumps(made.to_dict()))) == made


@pytest.mark.parametrize("config", CONFIGS)
def test_unknown_key_is_refused_with_the_known_ones(config):
    """Of many, with the most similar ones."""
    known = list(knobs(config))
    names = ", ".join(known) if len(known) <= 40 else f"{len(known)}, such as epsilon, .*"
    with pytest.raises(UnknownNameError, match=f"unknown knob 'epsilom': must be one of {names}$"):
        config.from_dict({"epsilom": 0.1})


def test_run_config_round_trip():
    made = RunConfig(
        generation=GenerationConfig(images=24, snapshots=3, epsilon=0.25, flip=False),
        training=TrainingConfig(range="mse", first_last_8bit=True),
        methods=("adam",),
        bits=(2, 8),
        steps_by_bits={2: 0, 8: 7},
        images_from="/somewhere",
        evaluation=EvaluationConfig(encoder="", data="folder/é"),
    )
    back = RunConfig.from_dict(json.loads(json.dumps(made.to_dict())))
    assert back == made
    assert back.steps_by_bits[8] == 7
    assert back.training_for(8).steps == 7
    assert RunConfig.from_dict({}) == RunConfig()
    assert "training_seed" not in made.to_dict()
    seeded = replace(made, training_seed=5)
    assert RunConfig.from_dict(json.loads(json.dumps(seeded.to_dict()))) == seeded


@pytest.mark.parametrize(
    "values", [{"bit": [4]}, {"generation": {"epsilom": 1}}, {"training": {"weight_bit": 4}}, {"quantization": {"weight_bit": 4}}]
)
def test_run_config_refuses_unknown_keys(values):
    with pytest.raises(UnknownNameError, match="unknown knob"):
        RunConfig.from_dict(values)


def test_run_config_refuses_bad_values_in_its_sections():
    with pytest.raises(ConfigError, match="^epsilon must be 0 to 2, got 9$"):
        RunConfig.from_dict({"generation": {"epsilon": 9}})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bits": (1,)}, "^bits must be one of 2, 3, 4, 5, 6, 7, 8, got 1$"),
        ({"bits": (4, 9)}, "^bits must be one of 2, 3, 4, 5, 6, 7, 8, got 9$"),
        ({"bits": (4, 4)}, "^bits must have each value once, got 4, 4$"),
        ({"bits": (4.0,)}, "^bits must be one of .*, got 4.0$"),
        ({"bits": (True,)}, "^bits must be one of .*, got True$"),
        ({"methods": ()}, "^methods must name at least one of mi-fgsm, adam"),
        ({"methods": ("sgd",)}, "^unknown method 'sgd': must be one of mi-fgsm, adam"),
        ({"methods": ("..",), "images_from": "/x"}, r"^unknown method '\.\.'"),
        ({"methods": ("a/b",), "images_from": "/x"}, "^unknown method 'a/b'"),
        ({"methods": ("adam", "adam")}, "^methods must have each value once, got adam, adam$"),
        ({"steps_by_bits": {9: 10}}, "^weight_bits must be one of 2, .*, got 9$"),
        ({"steps_by_bits": {4: -1}}, "^steps must be .*, got -1$"),
        ({"lr_by_bits": {4: 2.0}}, "^training_lr must be 0 to 1, got 2.0$"),
        ({"training_seed": -1}, "^seed must be .*, got -1$"),
        ({"training_seed": True}, "^seed must be a whole number, .*, got True$"),
        ({"model": 3}, "^model must be text, got 3$"),
        ({"machine": GenerationConfig()}, "^machine must be a MachineConfig, got GenerationCon"),
    ],
)
def test_run_config_refusals(values, message):
    with pytest.raises(ConfigError, match=message):
        RunConfig(**values)


@pytest.mark.parametrize("values", [{"steps_by_bits": {"four": 10}}, {"steps_by_bits": {4: 1.7}}, {"steps_by_bits": {4: "many"}}])
def test_steps_by_bits_must_be_whole_numbers(values):
    with pytest.raises(ConfigError, match="whole number"):
        RunConfig(**values)


@pytest.mark.parametrize("values", [{"images_from": None}, {"bits": None}, {"bits": 4}, {"model": None}])
def test_fields_of_the_wrong_type_are_refused(values):
    with pytest.raises(ConfigError, match=f"^{next(iter(values))} must be "):
        RunConfig(**values)


def test_training_config_at_a_bit_width():
    run = RunConfig(training=TrainingConfig(steps=11, range="mse"), steps_by_bits={3: 99})
    three, five = run.training_for(3), run.training_for(5)
    assert (three.weight_bits, three.activation_bits, three.steps, three.range, three.width) == (3, 3, 99, "mse", "W3A3")
    assert (five.weight_bits, five.activation_bits, five.steps) == (5, 5, 11)
    assert replace(run, training=replace(run.training, activation_bits=8)).training_for(3).width == "W3A8"


@pytest.mark.parametrize(
    "values",
    [
        {"generation": None},
        {"training": {}},
        {"evaluation": {"data": "embedded"}},
        {"methods": "adam"},
        {"methods": [3], "images_from": "/somewhere"},
        {"bits": "345"},
        {"steps_by_bits": None},
        {"steps_by_bits": [3]},
    ],
)
def test_sections_and_sequences_of_the_wrong_type_are_refused(values):
    with pytest.raises(ConfigError, match=f"^{next(iter(values))} must be .*, got "):
        RunConfig(**values)


@pytest.mark.parametrize("values", [None, [], {"generation": None}, {"training": 4}, {"machine": []}])
def test_values_other_than_mappings_are_refused(values):
    with pytest.raises(ConfigError, match="^[A-Za-z]+Config must be a mapping of knobs to values, got "):
        RunConfig.from_dict(values)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda config: pickle.loads(pickle.dumps(config))])
def test_run_config_can_be_copied(copied):
    run = RunConfig(methods=("adam",), steps_by_bits={3: 7}, evaluation=EvaluationConfig(encoder=""))
    assert copied(run) == run
    with pytest.raises(TypeError):
        copied(run).steps_by_bits[4] = 20


def test_training_seed_is_the_seed_of_the_run_by_default():
    run = RunConfig(machine=MachineConfig(seed=3))
    assert (run.seed_of_training, replace(run, training_seed=0).seed_of_training) == (3, 0)


def test_with_knobs_changes_knobs_of_every_section():
    start = RunConfig(methods=("adam",), steps_by_bits={3: 7})
    given = {"model": "x", "seed": 4, "images": 8, "epsilon": 0.5, "steps": 3, "layer_bits": {"a": 3}, "data": "cifar10", "encoder": ""}
    run = start.with_knobs(given)
    assert {name: run.value(name) for name in given} == {**given, "layer_bits": (("a", 3),)}
    assert (run.machine.seed, run.generation.images, run.training.steps, run.evaluation.data) == (4, 8, 3, "cifar10")
    assert (run.methods, run.steps_by_bits) == (start.methods, start.steps_by_bits)
    assert start == RunConfig(methods=("adam",), steps_by_bits={3: 7})
    assert start.with_knobs({}) == start


def test_with_knobs_refuses_unknown_names_and_bad_values():
    with pytest.raises(UnknownNameError, match="unknown knob 'nu'"):
        RunConfig().with_knobs({"nu": 1})
    with pytest.raises(UnknownNameError, match="unknown knob 'methods'"):  # a field of RunConfig, but not a knob
        RunConfig().with_knobs({"methods": ("adam",)})
    with pytest.raises(ConfigError, match="^mu must be 0 to 2, got 3$"):
        RunConfig().with_knobs({"mu": 3})
    with pytest.raises(UnknownNameError, match="unknown knob 'nu'"):
        RunConfig().value("nu")


def test_knobs_that_depend_on_each_other_are_changed_together():
    run = RunConfig(generation=GenerationConfig(images=8, snapshots=4)).with_knobs({"images": 9, "snapshots": 3})
    assert run.generation.noise_images == 3


def test_settings_are_the_knobs_that_affect_the_result():
    found = settings(RunConfig(methods=tuple(METHODS)))
    without = {
        "model",
        "device",
        "threads",
        "gpu_share",
        "shard_size",
        "budget",
        "compile",
        "data",
        "accuracy_checks",
        "encoder",
        "strict",
        "weight_bits",
    }
    every = {name for section in SECTIONS.values() for name in knobs(section)}
    assert found.keys() == (every - without) | {"steps_by_bits", "lr_by_bits"}
    changed = {
        "device": "cpu",
        "threads": 3,
        "gpu_share": 0.5,
        "shard_size": 1000,
        "budget": 5.0,
        "compile": True,
        "data": "cifar10",
        "accuracy_checks": 9,
        "encoder": "",
        "model": "x",
    }
    assert settings(RunConfig(methods=tuple(METHODS)).with_knobs(changed)) == found
    for name, value in {"seed": 1, "beta": 2.0, "ema_decay": 0.5, "layer_bits": {"a": 3}, "activation_bits": 8}.items():
        assert {
            key for key, other in settings(RunConfig(methods=tuple(METHODS)).with_knobs({name: value})).items() if other != found[key]
        } == {name}


def test_settings_leave_out_knobs_of_other_methods():
    own = {"mi-fgsm": {"epsilon", "mu"}, "adam": {"lr"}}
    whole = settings(RunConfig()).keys()
    assert settings(RunConfig(), "mi-fgsm").keys() == whole - own["adam"]
    assert settings(RunConfig(), "adam").keys() == whole - own["mi-fgsm"]
    assert settings(RunConfig(methods=("adam",))).keys() == whole - own["mi-fgsm"]
    assert settings(RunConfig(methods=("given",), images_from="/x")).keys() == whole - own["mi-fgsm"] - own["adam"]
    assert settings(RunConfig(methods=("zaq",))).keys() & {"protocol", "student_steps", "alpha_bns", "epsilon"} == {
        "protocol",
        "student_steps",
    }


def test_settings_at_one_bit_width():
    run = RunConfig(steps_by_bits={3: 7}, lr_by_bits={3: 0.25}, training=TrainingConfig(steps=11, training_lr=0.5))
    three, four = settings(run, bits=3), settings(run, bits=4)
    assert (three["steps"], three["training_lr"], three["activation_bits"]) == (7, 0.25, 0)
    assert (four["steps"], four["training_lr"], four["activation_bits"]) == (11, 0.5, 0)
    assert not three.keys() & {"steps_by_bits", "lr_by_bits"}
    assert settings(run)["steps_by_bits"] == {3: 7}
    # given or not, activations of the width of the weights are the same setting
    said = run.with_knobs({"activation_bits": 3})
    assert settings(said, bits=3) == three
    assert settings(said, bits=4)["activation_bits"] == 3
