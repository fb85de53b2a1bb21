"""Every knob refuses what it must, in words; presets and round trips."""

import copy
import json
import math
import os
import pickle
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace

import pytest

from core import config as module
from core.config import (
    BIT_WIDTHS,
    LIVE_KNOBS,
    PRESETS,
    EncoderTrainingConfig,
    EvaluationConfig,
    GenerationConfig,
    MachineConfig,
    PretrainConfig,
    RunConfig,
    TrainingConfig,
    allowed,
    help_text,
    knobs,
    preset,
)
from core.errors import ConfigError, CoreError, UnknownNameError

CONFIGS = (GenerationConfig, TrainingConfig, PretrainConfig, EncoderTrainingConfig)
EVERY_KNOB = [(config, name) for config in CONFIGS for name in knobs(config)]
IDS = [f"{config.__name__}.{name}" for config, name in EVERY_KNOB]


def refused(config, name, value) -> str:
    with pytest.raises(ConfigError) as caught:
        config(**{name: value})
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{name} is ")
    assert "allowed" in message
    return message


def wrong_types(kind: type) -> list:
    wrong = {
        int: [1.0, 2.5, "4", None, True, False, [4], math.nan],
        float: ["0.1", None, True, False, [0.1], math.nan, math.inf, -math.inf, 1j],
        str: [None, 4, 0.1, True, b"adam", ["adam"]],
        bool: [0, 1, None, "true", 1.0],
        tuple: [0, None, "output=8", True, ["output"], [("output", 8, 9)]],
    }
    return wrong[kind]


@pytest.mark.parametrize(("config", "name"), EVERY_KNOB, ids=IDS)
def test_wrong_type_is_refused_by_name_and_value(config, name):
    default = knobs(config)[name].default
    for value in wrong_types(type(default)):
        assert repr(value) in refused(config, name, value)


@pytest.mark.parametrize(("config", "name"), EVERY_KNOB, ids=IDS)
def test_values_just_outside_the_range_are_refused(config, name):
    meta, kind = knobs(config)[name].metadata, type(knobs(config)[name].default)
    for bound, outward in ((meta["minimum"], -1), (meta["maximum"], 1)):
        if bound is None:
            continue
        step = 1 if kind is int else max(abs(bound) * 1e-6, 1e-9)
        message = refused(config, name, kind(bound) + outward * step)
        assert (f"{bound:,}" if kind is int else f"{bound:g}") in message
    if meta["choices"] is not None:
        outside = "nonsense" if kind is str else max(meta["choices"]) + 1
        message = refused(config, name, outside)
        assert repr(outside) in message
        for choice in meta["choices"]:
            assert str(choice) in message


def test_every_number_has_a_range_or_choices():
    for config, name in EVERY_KNOB:
        field = knobs(config)[name]
        if type(field.default) in (int, float):
            meta = field.metadata
            assert meta["choices"] is not None or None not in (meta["minimum"], meta["maximum"]), name


@pytest.mark.parametrize(
    ("config", "values"),
    [
        (GenerationConfig, {"epsilon": 0.0, "mu": 0, "lr": 2.0, "beta": 100}),
        (GenerationConfig, {"images": 2, "snapshots": 1, "iterations": 1, "batch_size": 2, "burn_in": 0.0}),
        (TrainingConfig, {"weight_bits": 2, "activation_bits": 8, "steps": 0, "batch_size": 1, "temperature": 0.1}),
    ],
)
def test_bounds_themselves_are_allowed(config, values):
    made = config(**values)
    assert {name: getattr(made, name) for name in values} == values


def test_number_too_large_for_a_float_is_refused_as_any_other():
    refused(GenerationConfig, "epsilon", 10**400)


@pytest.mark.parametrize("bits", [1, 9, 0, -4, 4.0, True, "4"])
def test_bit_widths_outside_two_to_eight(bits):
    message = refused(TrainingConfig, "weight_bits", bits)
    assert repr(bits) in message
    assert "2, 3, 4, 5, 6, 7, 8" in message
    refused(TrainingConfig, "activation_bits", bits)


def test_messages_say_field_value_and_range():
    with pytest.raises(ConfigError, match=r"^epsilon is 2\.5: allowed is 0 to 2$"):
        GenerationConfig(epsilon=2.5)
    with pytest.raises(ConfigError, match=r"^optimizer is 'sgd': allowed are mi-fgsm, adam$"):
        GenerationConfig()
    with pytest.raises(ConfigError, match=r"^seed is True: allowed is a whole number, 0 to "):
        GenerationConfig()


def test_errors_are_of_one_tree_and_value_errors():
    with pytest.raises(ValueError):
        GenerationConfig(mu=-1)
    with pytest.raises(CoreError):
        GenerationConfig(mu=-1)


def test_images_must_be_a_multiple_of_snapshots():
    with pytest.raises(ConfigError, match=r"images is 10.*multiple of snapshots \(4\)"):
        GenerationConfig(images=10, snapshots=4)
    assert GenerationConfig(images=12, snapshots=4).noise_images == 3


def test_one_noise_image_is_refused():
    with pytest.raises(ConfigError, match="images is 4.*at least 8"):
        GenerationConfig(images=4, snapshots=4)


def test_more_snapshots_than_iterations_after_the_burn_in():
    with pytest.raises(ConfigError, match="snapshots is 4.*at most 3"):
        GenerationConfig(images=8, iterations=5, snapshots=4, burn_in=0.4)
    assert GenerationConfig(images=9, iterations=5, snapshots=3, burn_in=0.4).snapshot_iterations == (3, 4, 5)


def test_snapshots_are_of_full_size():
    with pytest.raises(
        ConfigError, match=r"^half_resolution is 0.4, which is 20 of 50 iterations: allowed are fewer than 20, .*burn_in is 0.2"
    ):
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


def test_snapshots_are_distinct_after_the_burn_in_and_end_with_the_last():
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


def test_no_batch_is_one_image_and_none_is_lost():
    for images in range(2, 60):
        for batch_size in range(2, 20):
            batches = GenerationConfig(images=images, snapshots=1, batch_size=batch_size).batches
            assert min(batches) >= 2
            assert max(batches) <= batch_size + 1
            assert sum(batches) == images


def test_config_is_frozen():
    with pytest.raises(FrozenInstanceError):
        GenerationConfig().epsilon = 0.5
    run = RunConfig(steps_by_bits={4: 10})
    with pytest.raises(TypeError):
        run.steps_by_bits[4] = 20
    for values in (run.bits, run.optimizers):
        assert isinstance(values, tuple)


@pytest.mark.parametrize("config", CONFIGS)
def test_round_trip_of_one_config(config):
    made = replace(config(), seed=7) if "seed" in knobs(config) else replace(config(), quantization_seed=7)
    assert config.from_dict(json.loads(json.dumps(made.to_dict()))) == made


@pytest.mark.parametrize("config", CONFIGS)
def test_unknown_key_is_refused_with_those_that_exist(config):
    with pytest.raises(UnknownNameError, match="unknown knob 'epsilom'.*threads"):
        config.from_dict({"epsilom": 0.1})


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
        ({"a": 9}, "^layer_bits is 9 for 'a': allowed are 2, 3, 4, 5, 6, 7, 8$"),
        ({"a": True}, "^layer_bits is True for 'a'"),
        ({"a": 4.0}, "^layer_bits is 4.0 for 'a'"),
        ({"a": None}, "^layer_bits is None for 'a'"),
        ({3: 4}, "^layer_bits is for 3: allowed are names"),
        ({"": 4}, "^layer_bits is for ''"),
        ({"a\0": 4}, "UTF-8 without NUL"),
        ([("a", 4), ("a", 5)], "^layer_bits is given for 'a' twice: allowed is each layer once$"),
        ("a=4", "^layer_bits is 'a=4': allowed is a mapping"),
        (7, "^layer_bits is 7: allowed is a mapping"),
        (["ab"], "allowed is a mapping"),
        ([("a", 4, 5)], "allowed is a mapping"),
        (None, "^layer_bits is None"),
    ],
)
def test_layer_bits_that_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        TrainingConfig(layer_bits=given)


@pytest.mark.parametrize(
    ("steps", "evaluations", "after"),
    [(150, 4, (30, 60, 90, 120)), (10, 0, ()), (0, 4, ()), (1, 4, ()), (2, 4, (1,)), (3, 100, (1, 2)), (7, 2, (2, 5))],
)
def test_steps_after_which_the_accuracy_is_measured(steps, evaluations, after):
    """Never before the first step or after the last, which is measured anyway; none twice."""
    assert TrainingConfig(steps=steps).evaluation_steps == after


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


@pytest.mark.parametrize("values", [{"bit": [4]}, {"generation": {"epsilom": 1}}, {"quantization": {"weight_bit": 4}}])
def test_run_config_refuses_unknown_keys(values):
    with pytest.raises(UnknownNameError, match="unknown knob"):
        RunConfig.from_dict(values)


def test_run_config_refuses_bad_values_of_its_parts():
    with pytest.raises(ConfigError, match="^epsilon is 9"):
        RunConfig.from_dict({"generation": {"epsilon": 9}})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bits": (1,)}, "^weight_bits is 1: allowed are 2, 3, 4, 5, 6, 7, 8$"),
        ({"bits": (4, 9)}, "is 9: allowed are 2, 3"),
        ({"bits": (4, 4)}, "^bits is 4, 4: allowed is each value once"),
        ({"bits": (4.0,)}, "is 4.0: allowed is a whole number"),
        ({"optimizers": ()}, "^optimizers is empty: allowed are mi-fgsm, adam"),
        ({"optimizers": ("sgd",)}, "^unknown optimizer 'sgd': allowed are mi-fgsm, adam"),
        ({"optimizers": ("adam", "adam")}, "^optimizers is adam, adam: allowed is each value once"),
        ({"steps_by_bits": {9: 10}}, "is 9: allowed are 2"),
        ({"steps_by_bits": {4: -1}}, "^steps is -1"),
        ({"generation": GenerationConfig()}, "^model is 'other' for generation and 'resnet20_cifar10'"),
    ],
)
def test_run_config_refusals(values, message):
    with pytest.raises(ConfigError, match=message):
        RunConfig(**values)


@pytest.mark.parametrize("values", [{"steps_by_bits": {"four": 10}}, {"steps_by_bits": {4: 1.7}}, {"steps_by_bits": {4: "many"}}])
def test_steps_by_bits_must_be_whole_numbers(values):
    with pytest.raises(ConfigError, match="whole number"):
        RunConfig(**values)


@pytest.mark.parametrize("values", [{"encoder": 3}, {"images_from": None}, {"bits": None}, {"bits": 4}])
def test_fields_of_a_run_have_their_type(values):
    with pytest.raises(ConfigError, match=next(iter(values))):
        RunConfig(**values)


def test_parts_of_a_run():
    run = RunConfig(training=TrainingConfig(steps=11, range="mse"), steps_by_bits={3: 99})
    three, five = run.training_for(3), run.training_for(5)
    assert (three.weight_bits, three.activation_bits, three.steps, three.range, three.width) == (3, 3, 99, "mse", "W3A3")
    assert (five.weight_bits, five.activation_bits, five.steps) == (5, 5, 11)
    assert run.generation_for("adam") == replace(run.generation, optimizer="adam")


def test_presets():
    assert set(PRESETS) == {"quick", "imagenet", "paper"}
    for config in PRESETS.values():
        assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
        assert config.bits == (3, 4, 5)
        assert set(config.methods) == {"mi-fgsm", "adam"}
    assert preset("paper").training.range == "minmax"
    assert preset("quick").evaluation.data == "embedded"
    with pytest.raises(UnknownNameError, match="unknown preset 'slow': allowed are quick, imagenet, paper"):
        preset("slow")
    with pytest.raises(TypeError):
        module.PRESETS["quick"] = None


def test_help_text_says_all_of_a_knob_line_by_line():
    assert help_text(GenerationConfig, "mu").splitlines() == [
        "μ: Momentum of MI-FGSM: how much of the accumulated gradient stays.",
        "Range: 0 to 2. Default: 0.9. Paper: not stated.",
        "Lower: 0 is plain FGSM: each step follows the gradient of the moment, which turns back and forth.",
        "Higher: the past outweighs the present from 1 on: images overshoot and go on in old directions.",
    ]
    assert "Choices: mi-fgsm, adam. Default: mi-fgsm. Paper: mi-fgsm, and adam for comparison." in help_text(GenerationConfig, "optimizer")
    assert help_text(GenerationConfig, "flip").splitlines()[1] == "Default: on. Paper: not stated."
    assert help_text(GenerationConfig, "flip").splitlines()[2].startswith("Off: ")
    assert "Range: 1 to 1,000,000. Default: 512. Paper: 5,120 for ImageNet." in help_text(GenerationConfig, "images")
    assert help_text(TrainingConfig, "quantization_seed").count("No seed is better than another") == 1


@pytest.mark.parametrize(("config", "name"), EVERY_KNOB, ids=IDS)
def test_every_knob_is_explained(config, name):
    """Symbol, text, range, default, the paper, and what goes wrong at either end; of a choice, each that there is."""
    field = knobs(config)[name]
    meta = field.metadata
    text = help_text(config, name)
    assert meta["help"] in text
    assert meta["help"].endswith(".")
    assert f"Paper: {meta['paper']}." in text
    assert meta["paper"]
    assert "Default: " in text
    assert (f"{meta['symbol']}: " if meta["symbol"] else meta["help"]) in text.splitlines()[0]
    assert "Range: " in text or "Choices: " in text or type(field.default) not in (int, float)
    if type(field.default) in (int, float, bool):
        for end in (meta["low"], meta["high"]):
            assert end.endswith("."), f"what goes wrong at either end of {name} is not told: knob(..., low=..., high=...)"
            assert end in text
    elif meta["choices"] is not None:
        for choice in meta["choices"]:
            assert str(choice).lower() in meta["help"].lower()


def test_symbols_are_those_of_the_paper():
    symbols = {name: knobs(GenerationConfig)[name].metadata["symbol"] for name in LIVE_KNOBS}
    assert symbols == {"epsilon": "ε", "mu": "μ", "lr": "lr", "alpha_tv": "α_TV", "alpha_l2": "α_l2", "beta": "β"}


def test_help_of_the_command_line_says_the_default_once_and_in_lines():
    command = [sys.executable, "-m", "core", "generate", "--help"]
    out = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "100"}).stdout
    knob_help = out[out.index("  --epsilon EPSILON ") : out.index("  --mu MU ")]
    lines = [line.strip() for line in knob_help.splitlines()]
    assert knob_help.count("Default:") == 1
    assert "Range: 0 to 2. Default: 0.1. Paper: not stated." in lines
    assert any(line.startswith("Lower: ") for line in lines)
    assert any(line.startswith("Higher: ") for line in lines)


def test_allowed_in_words():
    bounds = {"choices": None, "minimum": None, "maximum": None}
    assert allowed({**bounds, "minimum": 2, "maximum": 5.5}) == "2 to 5.5"
    assert allowed({**bounds, "minimum": 2}) == "2 or more"
    assert allowed({**bounds, "maximum": 2}) == "at most 2"
    assert allowed({**bounds, "choices": range(2, 4)}) == "2, 3"


def test_check_value_checks_like_the_field():
    assert GenerationConfig.check_value("mu", 0.5) == 0.5
    with pytest.raises(ConfigError, match="^mu is 3: allowed is 0 to 2"):
        GenerationConfig.check_value("mu", 3)
    with pytest.raises(UnknownNameError, match="unknown knob 'nu'"):
        GenerationConfig.check_value("nu", 3)


def test_live_knobs_are_knobs_of_the_generation():
    assert set(LIVE_KNOBS) >= {"epsilon", "mu", "alpha_tv", "alpha_l2", "beta"}
    assert set(LIVE_KNOBS) <= set(knobs(GenerationConfig))
    assert list(BIT_WIDTHS) == [2, 3, 4, 5, 6, 7, 8]


def test_config_imports_no_torch():
    code = "import sys, core.config; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "values",
    [
        {"generation": None},
        {"quantization": {}},
        {"optimizers": "adam"},
        {"optimizers": [3], "images_from": "/somewhere"},
        {"bits": "345"},
        {"steps_by_bits": None},
        {"steps_by_bits": [3]},
    ],
)
def test_parts_of_a_run_have_their_type(values):
    with pytest.raises(ConfigError, match=f"^{next(iter(values))}.*allowed"):
        RunConfig(**values)


@pytest.mark.parametrize("values", [None, [], {"generation": None}, {"quantization": 4}])
def test_dictionary_that_is_none(values):
    with pytest.raises(ConfigError, match="Config is .*allowed is a mapping"):
        RunConfig.from_dict(values)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda config: pickle.loads(pickle.dumps(config))])
def test_run_config_can_be_copied(copied):
    run = RunConfig(methods=("adam",), steps_by_bits={3: 7}, evaluation=EvaluationConfig(encoder=""))
    assert copied(run) == run
    with pytest.raises(TypeError):
        copied(run).steps_by_bits[4] = 20


def test_threads_and_device_of_a_run_are_those_of_the_generation():
    run = RunConfig(machine=MachineConfig(device="cpu", threads=3))
    assert (run.training_for(4).threads, run.training_for(4).device) == (3, "cpu")


def test_padding_of_the_pretraining_is_less_than_the_image():
    assert PretrainConfig(image_size=8, crop_padding=7).crop_padding == 7
    with pytest.raises(ConfigError, match=r"^crop_padding is 8: allowed is less than image_size \(8\)"):
        PretrainConfig(image_size=8, crop_padding=8)
