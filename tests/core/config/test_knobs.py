"""Every knob is checked and explained; knobs can be added and removed."""

import json
import math
import os
import pickle
import subprocess
import sys

import pytest

from core.config import (
    BIT_WIDTHS,
    PRESETS,
    SECTIONS,
    EncoderTrainingConfig,
    EvaluationConfig,
    GenerationConfig,
    MachineConfig,
    PretrainConfig,
    RunConfig,
    TrainingConfig,
    add_knob,
    allowed,
    every_knob,
    find_knob,
    flag,
    has_knob,
    help_text,
    knob,
    knobs,
    label,
    live_knobs,
    remove_knob,
)
from core.errors import ConfigError, CoreError, UnknownNameError
from core.generation.methods import L_TOTAL, METHODS

CONFIGS = (RunConfig, MachineConfig, GenerationConfig, TrainingConfig, EvaluationConfig, PretrainConfig, EncoderTrainingConfig)
EVERY_KNOB = [(config, name) for config in CONFIGS for name in knobs(config)]
IDS = [f"{config.__name__}.{name}" for config, name in EVERY_KNOB]


def refused(config, name, value) -> str:
    with pytest.raises(ConfigError) as caught:
        config(**{name: value})
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{name} must ")
    assert ", got " in message
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
def test_wrong_type_is_refused_with_name_and_value(config, name):
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
        (TrainingConfig, {"weight_bits": 2, "activation_bits": 8, "steps": 0, "training_batch_size": 1, "temperature": 0.1}),
    ],
)
def test_bounds_themselves_are_allowed(config, values):
    made = config(**values)
    assert {name: getattr(made, name) for name in values} == values


def test_number_too_large_for_a_float_is_refused():
    refused(GenerationConfig, "epsilon", 10**400)


@pytest.mark.parametrize("bits", [1, 9, 0, -4, 4.0, True, "4"])
def test_bit_widths_outside_two_to_eight_are_refused(bits):
    message = refused(TrainingConfig, "weight_bits", bits)
    assert repr(bits) in message
    assert "2, 3, 4, 5, 6, 7, 8" in message
    if bits != 0:
        assert "0, 2, 3, 4, 5, 6, 7, 8" in refused(TrainingConfig, "activation_bits", bits)


def test_activations_have_the_width_of_the_weights_by_default():
    assert (TrainingConfig(weight_bits=3).input_bits, TrainingConfig(weight_bits=3).width) == (3, "W3A3")
    assert TrainingConfig(weight_bits=3, activation_bits=5).width == "W3A5"


def test_messages_name_field_value_and_range():
    with pytest.raises(ConfigError, match=r"^epsilon must be 0 to 2, got 2\.5$"):
        GenerationConfig(epsilon=2.5)
    with pytest.raises(ConfigError, match=r"^training_optimizer must be one of adam, sgd, got 'lamb'$"):
        TrainingConfig(training_optimizer="lamb")
    with pytest.raises(ConfigError, match=r"^seed must be a whole number, 0 to 2,147,483,647, got True$"):
        MachineConfig(seed=True)


def test_config_errors_are_core_errors_and_value_errors():
    with pytest.raises(ValueError):
        GenerationConfig(mu=-1)
    with pytest.raises(CoreError):
        GenerationConfig(mu=-1)


def test_help_text_line_by_line():
    assert help_text(GenerationConfig, "mu").splitlines() == [
        "μ: Momentum of MI-FGSM: the fraction of the accumulated gradient that is kept.",
        "Range: 0 to 2. Default: 0.5. Paper: not stated.",
        "Lower: 0 is plain FGSM: each step follows the current gradient, which oscillates.",
        "Higher: from 1 on, old gradients dominate and images overshoot.",
    ]
    assert "Choices: adam, sgd. Default: adam. Paper: sgd." in help_text(TrainingConfig, "training_optimizer")
    assert help_text(GenerationConfig, "flip").splitlines()[1] == "Default: off. Paper: not stated."
    assert help_text(GenerationConfig, "flip").splitlines()[2].startswith("Off: ")
    assert "Range: 1 to 1,000,000. Default: 512. Paper: 5,120 for ImageNet." in help_text(GenerationConfig, "images")
    assert help_text(MachineConfig, "seed").count("No seed is better than another") == 1


@pytest.mark.parametrize(("config", "name"), EVERY_KNOB, ids=IDS)
def test_every_knob_is_explained(config, name):
    """Symbol, text, range, default, the paper's value, and what goes wrong at either end; of a choice, each of its values."""
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
    of_the_paper = [*live_knobs(GenerationConfig, "mi-fgsm"), *live_knobs(GenerationConfig, "adam")]
    symbols = {name: knobs(GenerationConfig)[name].metadata["symbol"] for name in of_the_paper}
    assert symbols == {"epsilon": "ε", "mu": "μ", "lr": "lr", "alpha_tv": "α_TV", "alpha_l2": "α_l2", "beta": "β"}


def test_command_line_help_has_the_default_once_and_keeps_lines():
    command = [sys.executable, "-m", "core", "generate", "--help"]
    out = subprocess.run(command, capture_output=True, check=True, env={**os.environ, "COLUMNS": "100"}, encoding="utf-8").stdout
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


def test_check_value_checks_as_the_field_does():
    assert GenerationConfig.check_value("mu", 0.5) == 0.5
    with pytest.raises(ConfigError, match="^mu must be 0 to 2, got 3$"):
        GenerationConfig.check_value("mu", 3)
    with pytest.raises(UnknownNameError, match="unknown knob 'nu'"):
        GenerationConfig.check_value("nu", 3)


def test_live_knobs_of_each_method():
    live = {name: set(live_knobs(GenerationConfig, name)) for name in METHODS}
    assert live["mi-fgsm"] == {"epsilon", "mu", "alpha_tv", "alpha_l2", "beta"}
    assert live["adam"] == {"lr", "alpha_tv", "alpha_l2", "beta"}
    assert live["zeroq"] == {"zeroq_lr"}
    assert live["dsg"] == {"dsg_lr", "dsg_sci", "dsg_beta", "dsg_tv", "dsg_l2"}
    assert live["intraq"] == {"intraq_lr", "intraq_beta"}
    assert live["hast"] == {"hast_lr", "hast_beta"}
    assert live["plf"] == {"plf_lr", "plf_beta"}
    assert live["synq"] == {"synq_lr", "synq_beta"}
    assert live["gdfq"] == live["dsg-g"] == {"generator_lr", "alpha_bns", "beta"}
    assert live["qimera"] == {"generator_lr", "alpha_bns", "superposed_share", "beta"}
    assert live["adadfq"] == live["adasg"] == {"generator_lr", "adaptive_bns", "adaptive_agreement"}
    assert live["genie"] == {"genie_latent_lr", "genie_generator_lr"}
    assert live["texq"] == {"generator_lr", "alpha_bns", "beta", "texq_lr", "texq_guidance"}
    assert live["zaq"] == {"generator_lr", "alpha_activation"}
    assert set(live_knobs(GenerationConfig)) == set().union(*live.values())
    assert list(BIT_WIDTHS) == [2, 3, 4, 5, 6, 7, 8]


def test_sliders_of_live_knobs_are_within_the_range():
    for name, field in live_knobs(GenerationConfig).items():
        meta = field.metadata
        low, high = meta["slider"]
        assert meta["minimum"] <= low < high <= meta["maximum"], name
        assert low > 0 or not meta["log"], name
        assert low <= field.default <= high, name
        assert not meta["in_form"], name


def test_methods_of_knobs_exist():
    named = {method for field in every_knob().values() for method in field.metadata["of"]}
    assert named == {L_TOTAL, *(name for name in METHODS if name != "noise")}


def test_knobs_of_l_total_are_those_of_methods_with_this_loss():
    beta, epsilon, iterations = (knobs(GenerationConfig)[name] for name in ("beta", "epsilon", "iterations"))
    shares = {name for name, method in METHODS.items() if not method.own_loss}
    assert {name for name in METHODS if has_knob(beta, name)} == shares | (set(beta.metadata["of"]) & set(METHODS))
    assert [name for name in METHODS if has_knob(epsilon, name)] == ["mi-fgsm"]
    assert [name for name in METHODS if has_knob(iterations, name)] == list(METHODS)
    assert (has_knob(beta, "given"), has_knob(epsilon, "given")) == (True, False)


def test_knob_names_are_disjoint():
    names = [name for config in (RunConfig, *SECTIONS.values()) for name in knobs(config)]
    assert sorted(set(names)) == sorted(names)
    assert list(every_knob()) == names
    old = [old for field in every_knob().values() for old in field.metadata["old_names"]]
    assert not set(old) & set(names)
    assert len(set(old)) == len(old)


def test_every_knob_is_found_in_its_section():
    for section, config in [("", RunConfig), *SECTIONS.items()]:
        for name, field in knobs(config).items():
            assert find_knob(name) == (section, field)
    with pytest.raises(UnknownNameError, match=r"unknown knob 'nu': must be one of \d+, such as mu, "):
        find_knob("nu")


def test_label_and_flag():
    assert label(knobs(GenerationConfig)["batch_size"]) == "Batch size"
    assert label(knobs(GenerationConfig)["epsilon"]) == "MI-FGSM step ε"
    assert flag(knobs(GenerationConfig)["batch_size"]) == flag(knobs(TrainingConfig)["training_batch_size"]) == "--batch-size"
    assert flag(knobs(TrainingConfig)["alpha_ce"]) == "--alpha-ce"


@pytest.fixture
def sharpness():
    """A knob that exists during one test."""
    before = (list(knobs(GenerationConfig)), repr(GenerationConfig()))
    add_knob(GenerationConfig, "sharpness", knob(0.5, "How sharp.", minimum=0.0, maximum=1.0, live=True, of=("adam",)))
    yield
    remove_knob(GenerationConfig, "sharpness")
    assert (list(knobs(GenerationConfig)), repr(GenerationConfig())) == before
    with pytest.raises(TypeError, match="sharpness"):
        GenerationConfig(sharpness=0.1)


@pytest.mark.usefixtures("sharpness")
def test_added_knob_is_like_the_others():
    made = GenerationConfig(images=16, sharpness=0.25)
    assert made.noise_images == 4
    assert made != GenerationConfig(images=16)
    assert len({made, GenerationConfig(images=16, sharpness=0.25)}) == 1
    assert GenerationConfig.from_dict(made.to_dict()) == made
    assert made.to_dict()["sharpness"] == 0.25
    assert pickle.loads(pickle.dumps(made)) == made
    assert "sharpness=0.25" in repr(made)
    refused(GenerationConfig, "sharpness", 1.5)
    refused(GenerationConfig, "sharpness", "much")
    refused(GenerationConfig, "images", 0)
    assert "How sharp." in help_text(GenerationConfig, "sharpness")


@pytest.mark.usefixtures("sharpness")
def test_added_knob_is_part_of_a_run_config():
    assert find_knob("sharpness")[0] == "generation"
    assert "sharpness" in live_knobs(GenerationConfig, "adam")
    assert "sharpness" not in live_knobs(GenerationConfig, "mi-fgsm")
    run = RunConfig().with_knobs({"sharpness": 1})
    assert (run.value("sharpness"), RunConfig().value("sharpness")) == (1, 0.5)
    assert RunConfig.from_dict(run.to_dict()) == run
    # a config built before, and one stored without the knob
    assert PRESETS["quick"].value("sharpness") == 0.5
    assert RunConfig.from_dict({"generation": {"images": 8}}).generation.sharpness == 0.5


@pytest.mark.parametrize("name", ["epsilon", "images"])
def test_added_knob_must_have_a_new_name(name):
    before = knobs(GenerationConfig)[name]
    with pytest.raises(ConfigError, match=f"^knob {name} exists already"):
        add_knob(GenerationConfig, name, knob(1.0, "Another."))
    assert knobs(GenerationConfig)[name] is before


def test_config_imports_no_torch():
    code = "import sys, core.config; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_crop_padding_of_pretraining_must_be_less_than_the_image_size():
    assert PretrainConfig(image_size=8, crop_padding=7).crop_padding == 7
    with pytest.raises(ConfigError, match=r"^crop_padding must be less than image_size \(8\), .*, got 8$"):
        PretrainConfig(image_size=8, crop_padding=8)


def test_height_and_width_of_pretraining():
    config = PretrainConfig(image_size=[32, 48], crop_padding=31)
    assert config.image_size == (32, 48)
    assert PretrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert PretrainConfig(image_size=(32, 32)) == PretrainConfig()
    with pytest.raises(ConfigError, match=r"^crop_padding must be less than image_size \(32\), .*, got 32$"):
        PretrainConfig(image_size=(48, 32), crop_padding=32)
    for value, found in (((32, 7), "7"), ((2000, 32), "2000"), ((32, 48.0), "48.0"), ((32, True), "True")):
        with pytest.raises(ConfigError, match=f"^image_size must be .*8 to 1,024, got {found}$"):
            PretrainConfig(image_size=value)
    with pytest.raises(ConfigError, match=r"^image_size must be a whole number, 8 to 1,024, got \[32, 32, 32\]$"):
        PretrainConfig(image_size=[32, 32, 32])
