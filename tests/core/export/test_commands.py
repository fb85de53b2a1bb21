import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from core.__main__ import _build_parser, _config, _run_config, main
from core.config import PRESETS, EvaluationConfig, GenerationConfig, MachineConfig, RunConfig, TrainingConfig
from core.evaluation.accuracy import Accuracy
from core.export.commands import commands
from core.pipeline import execute
from core.reporting import NoControl, NullReporter

QUICK = PRESETS["quick"]


def parsed(line):
    words = shlex.split(line)
    assert words[:3] == ["python", "-m", "core"]
    return _build_parser().parse_args(words[3:])


@pytest.mark.parametrize(
    "config",
    [
        QUICK,
        PRESETS["paper"],
        replace(QUICK, bits=(2, 8), methods=("adam",)).with_knobs({"encoder": "ViT-B-32:laion2b_s34b_b79k"}),
        QUICK.with_knobs({"encoder": ""}),
        replace(QUICK, training=replace(QUICK.training, layer_bits={"output": 8, "a=b c": 2})),
        replace(
            QUICK,
            generation=replace(QUICK.generation, seed=3, threads=1, device="cpu", model="timm:resnet10t"),
            training=replace(
                QUICK.training, quantization_seed=3, threads=1, device="cpu", model="timm:resnet10t", data="my images; rm -r ."
            ),
        ),
    ],
)
def test_a_preset_is_one_command(config):
    (line,) = commands(config)
    assert _run_config(parsed(line)).to_dict() == config.to_dict()


def test_the_quick_preset_reads_as_a_person_would_write_it():
    config = replace(QUICK, generation=replace(QUICK.generation, threads=1), bits=(4,))
    assert commands(config) == ["python -m core run --preset quick --bits 4 --threads 1"]


def test_other_settings_are_a_command_for_each_stage():
    config = replace(
        QUICK,
        generation=GenerationConfig(images=40, iterations=7, alpha_l2=3e-08, flip=False),
        training=TrainingConfig(range="mse", training_flip=False, first_last_8bit=True, training_optimizer="sgd", layer_bits={"conv": 8}),
        bits=(3, 8),
    ).with_knobs({"activation_bits": 8})
    options = [parsed(line) for line in commands(config)]
    assert [one.command for one in options] == ["generate", "generate", "diversity", *["quantize"] * 4]
    assert [_config(GenerationConfig, one) for one in options[:2]] == [config.generation_for(method) for method in config.methods]
    assert (options[2].sets, options[2].encoder) == ([one.out.as_posix() for one in options[:2]], "embedded")
    for one, (method, bits) in zip(options[3:], [(method, bits) for method in config.methods for bits in config.bits]):
        assert _config(TrainingConfig, one) == config.training_for(bits)
        assert one.images == f"images/{method}"


def test_nothing_of_the_machine_is_told(tmp_path):
    (tmp_path / "mine").mkdir()
    named = {"model": str(tmp_path / "net.safetensors"), "device": "cuda"}
    config = RunConfig(
        generation=GenerationConfig(**named),
        training=TrainingConfig(**named),
        methods=("given",),
        bits=(4,),
        images_from=str(tmp_path / "mine"),
        evaluation=EvaluationConfig(encoder="", data=str(tmp_path / "photographs")),
    )
    for own in (config, replace(config, images_from="", methods=("adam",))):
        lines = commands(own)
        assert str(tmp_path) not in " ".join(lines)
        assert "cuda" not in " ".join(lines)
    (line,) = commands(config)
    options = parsed(line)
    assert (options.images, options.model, options.data) == ("mine", "net.safetensors", "photographs")


@pytest.mark.parametrize("methods", [("mi-fgsm",), ("mi-fgsm", "adam")])
def test_sets_in_one_folder_are_named_one_by_one(tmp_path, methods):
    for method in methods:
        (tmp_path / "images" / method).mkdir(parents=True)
    config = replace(QUICK, images_from=str(tmp_path / "images"), methods=methods, bits=(4,)).with_knobs({"encoder": ""})
    assert [parsed(line).images for line in commands(config)] == [f"images/{method}" for method in methods]


def test_commands_give_the_bits_of_the_run(tmp_path, monkeypatch):
    """Each stage on its own computes what the whole run did."""
    monkeypatch.setattr("core.pipeline.evaluate", lambda *_, **__: Accuracy(50.0, 1.0, 2, "two images"))
    monkeypatch.setattr("core.pipeline.correct", lambda _network, _model, images, **_: torch.ones(len(images), dtype=torch.bool))
    config = RunConfig(
        machine=MachineConfig(device="cpu", threads=1),
        generation=GenerationConfig(images=16, iterations=3, batch_size=8, snapshots=2),
        training=TrainingConfig(range="minmax", steps=2, training_batch_size=8, calibration_images=8),
        methods=("adam",),
        bits=(3,),
        evaluation=EvaluationConfig(encoder=""),
    )
    (tmp_path / "whole").mkdir()
    execute(config, tmp_path / "whole", NullReporter(), NoControl())
    (tmp_path / "steps").mkdir()
    monkeypatch.chdir(tmp_path / "steps")
    for line in commands(config):
        assert main([*shlex.split(line)[3:], "--runs", str(tmp_path / "runs")]) == 0
    for name in ("images/adam/images.safetensors", "quantized/adam/W3A3/quantized.safetensors"):
        own, whole = load_file(Path(name)), load_file(tmp_path / "whole" / name)
        assert own.keys() == whole.keys()
        assert all(bool((own[key] == whole[key]).all()) for key in own)
