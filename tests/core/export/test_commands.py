import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from core.cli.commands import run_config
from core.cli.parser import build_parser, main
from core.config import PRESETS, EvaluationConfig, GenerationConfig, MachineConfig, RunConfig, TrainingConfig, knobs
from core.export.commands import bare_name, commands
from core.pipeline import execute
from core.reporting import NoControl, NullReporter

QUICK = PRESETS["quick"]


def parsed(line):
    words = shlex.split(line)
    assert words[:3] == ["python", "-m", "core"]
    return build_parser().parse_args(words[3:])


@pytest.mark.parametrize(
    "config",
    [
        QUICK,
        PRESETS["paper"],
        replace(QUICK, bits=(2, 8), methods=("adam",)).with_knobs({"encoder": "ViT-B-32:laion2b_s34b_b79k"}),
        QUICK.with_knobs({"encoder": ""}),
        QUICK.with_knobs({"layer_bits": {"output": 8, "a=b c": 2}, "activation_bits": 8}),
        QUICK.with_knobs({"layer_weight_bits": {"output": 8, "a=b c": 2}, "size": 150.5}),
        QUICK.with_knobs({"seed": 3, "threads": 1, "device": "cpu", "model": "timm:resnet10t", "data": "my images; rm -r ."}),
        PRESETS["imagenet"].with_knobs({"images": 40, "iterations": 7, "alpha_l2": 3e-08, "flip": False, "compile": True}),
        QUICK.with_knobs({"range": "mse", "training_flip": False, "first_last_8bit": True, "batch_size": 16, "training_batch_size": 8}),
        replace(QUICK, steps_by_bits={}, lr_by_bits={}).with_knobs({"steps": 7, "training_lr": 0.25}),
        RunConfig(methods=("adam",), bits=(4,)),
    ],
)
def test_preset_is_one_command(config):
    (line,) = commands(config)
    assert run_config(parsed(line)).to_dict() == config.to_dict()


def test_command_of_a_preset_is_short():
    config = replace(QUICK, bits=(4,)).with_knobs({"threads": 1})
    assert commands(config) == ["python -m core run --preset quick --bits 4 --threads 1"]
    config = PRESETS["paper"].with_knobs({"images": 512, "flip": False})
    assert commands(config) == ["python -m core run --preset paper --images 512 --no-flip"]


def parts(one, *sections):
    """The sections with the options of a command line, in the order of `sections`."""
    return tuple(section(**{name: getattr(one, name) for name in knobs(section) if name in one}) for section in sections)


def test_commands_have_the_plan_of_a_budget_not_the_budget():
    config = QUICK.with_knobs({"budget": 10.0, "images": 640, "steps": 70})
    (line,) = commands(replace(config, steps_by_bits={}, lr_by_bits={}))
    assert "--budget" not in line
    assert (parsed(line).images, parsed(line).steps) == (640, 70)


@pytest.mark.parametrize("training_seed", [None, 6])
def test_other_settings_have_a_command_for_each_stage(training_seed):
    config = replace(QUICK, bits=(3, 8), steps_by_bits={3: 7}, training_seed=training_seed).with_knobs(
        {
            "seed": 5,
            "images": 40,
            "iterations": 7,
            "alpha_l2": 3e-08,
            "flip": False,
            "range": "mse",
            "training_flip": False,
            "first_last_8bit": True,
            "training_optimizer": "sgd",
            "training_batch_size": 8,
            "layer_bits": {"conv": 8},
            "activation_bits": 8,
            "accuracy_checks": 2,
        }
    )
    options = [parsed(line) for line in commands(config)]
    assert [one.command for one in options] == ["generate", "generate", "diversity", *["quantize"] * 4]
    for one, method in zip(options[:2], config.methods):
        assert one.method == method
        assert parts(one, MachineConfig, GenerationConfig) == (config.machine, config.generation)
    assert (options[2].sets, options[2].encoder) == ([one.out.as_posix() for one in options[:2]], "embedded")
    for one, (method, bits) in zip(options[3:], [(method, bits) for method in config.methods for bits in config.bits]):
        training, evaluation = parts(one, TrainingConfig, EvaluationConfig)
        assert (training, evaluation) == (config.training_for(bits), config.evaluation)
        assert one.seed == config.seed_of_training
        assert one.images_from == f"images/{method}"


def test_commands_contain_no_paths_and_no_device(tmp_path):
    (tmp_path / "mine").mkdir()
    named = {"model": str(tmp_path / "net.safetensors"), "device": "cuda", "real_images": str(tmp_path / "train")}
    config = RunConfig(
        methods=("given",),
        bits=(4,),
        images_from=str(tmp_path / "mine"),
        evaluation=EvaluationConfig(encoder="", data=str(tmp_path / "photographs")),
    ).with_knobs(named)
    for own in (
        config,
        replace(config, images_from="", methods=("adam",), training_seed=3),
        replace(config, images_from="", methods=("adam",)),
    ):
        lines = commands(own)
        assert str(tmp_path) not in " ".join(lines)
        assert "cuda" not in " ".join(lines)
    (line,) = commands(config)
    options = parsed(line)
    assert (options.images_from, options.model, options.data) == ("mine", "net.safetensors", "photographs")


@pytest.mark.parametrize("methods", [("mi-fgsm",), ("mi-fgsm", "adam")])
def test_sets_in_one_folder_have_a_command_each(tmp_path, methods):
    for method in methods:
        (tmp_path / "images" / method).mkdir(parents=True)
    config = replace(QUICK, images_from=str(tmp_path / "images"), methods=methods, bits=(4,)).with_knobs({"encoder": ""})
    assert [parsed(line).images_from for line in commands(config)] == [f"images/{method}" for method in methods]


@pytest.mark.parametrize("training_seed", [None, 6])
def test_commands_give_the_bits_of_the_run(tmp_path, monkeypatch, training_seed):
    """One `run` command, or one command for each stage, gives the same bits as the run."""
    config = RunConfig(
        machine=MachineConfig(device="cpu", threads=1),
        generation=GenerationConfig(images=16, iterations=3, batch_size=8, snapshots=2),
        training=TrainingConfig(range="minmax", steps=2, training_batch_size=8, calibration_images=8),
        methods=("adam",),
        bits=(3,),
        evaluation=EvaluationConfig(data="none", encoder=""),
        training_seed=training_seed,
    )
    (tmp_path / "whole").mkdir()
    execute(config, tmp_path / "whole", NullReporter(), NoControl())
    (tmp_path / "steps").mkdir()
    lines = commands(config)
    assert len(lines) == (1 if training_seed is None else 2)
    for line in lines:
        out = ["--out", str(tmp_path / "steps")] if "--out" not in line else []
        monkeypatch.chdir(tmp_path if out else tmp_path / "steps")
        assert main([*shlex.split(line)[3:], *out, "--runs", str(tmp_path / "runs")]) == 0
    monkeypatch.chdir(tmp_path / "steps")
    for name in ("images/adam/images.safetensors", "quantized/adam/W3A3/quantized.safetensors"):
        own, whole = load_file(Path(name)), load_file(tmp_path / "whole" / name)
        assert own.keys() == whole.keys()
        assert all(bool((own[key] == whole[key]).all()) for key in own)


def test_files_are_named_as_their_user_named_them(tmp_path):
    network = tmp_path / f"{'0a' * 32}.safetensors"
    network.with_suffix(".json").write_text('{"label": "net (10 classes), imported from my net.pth"}', encoding="utf-8")
    (line,) = commands(QUICK.with_knobs({"model": str(network), "encoder": f"ViT-B-32:{tmp_path / 'clip.pt'}"}))
    options = parsed(line)
    # with the ending of the stored file, because --model takes no .pth
    assert (options.model, options.encoder) == ("my net.safetensors", "ViT-B-32:clip.pt")


@pytest.mark.parametrize(
    ("name", "bare"),
    [
        ("/data/photographs", "photographs"),
        ("/data/a:b/c", "c"),
        ("ViT-B-32:/data/clip.pt", "ViT-B-32:clip.pt"),
        ("ViT-B-32:laion2b_s34b_b79k", "ViT-B-32:laion2b_s34b_b79k"),
        ("embedded", "embedded"),
    ],
)
def test_folders_above_a_file_are_left_out(name, bare):
    assert bare_name(name) == bare
