"""`run` and `table`: output, files, and refusals."""

import json
import os
from dataclasses import replace

import pytest
from command_line import GENERATE_KEYS, QUANTIZE_KEYS, call, last_json, listed, refused

from core.cli import commands
from core.cli.parser import build_parser
from core.config import PRESETS, RunConfig, every_knob
from core.data.image_sets import load_image_set


def test_run(tiny_preset, tmp_path, capsys):
    out = tmp_path / "run"
    assert call("run", "--preset", "quick", "--bits", 4, 8, "--methods", "mi-fgsm", "adam", "--seed", 3, "--json", "--out", out) == 0
    result = last_json(capsys)
    assert result.keys() >= {"full_precision", "methods", "seconds"}
    assert list(result["methods"]) == ["mi-fgsm", "adam"]
    assert result["optimizers"] == result["methods"]  # their name in version 1
    for figures in result["methods"].values():
        assert figures.keys() >= {"generation", "diversity", "accuracy"}
        assert figures["generation"].keys() >= GENERATE_KEYS
        assert list(figures["accuracy"]) == ["4", "8"]
        assert all(accuracy.keys() >= QUANTIZE_KEYS for accuracy in figures["accuracy"].values())
    written = json.loads((out / "result.json").read_text(encoding="utf-8"))
    assert {**written, "optimizers": written["methods"], "run": result["run"]} == result
    assert os.listdir(tmp_path) == ["run"]
    manifest = load_image_set(out / "images" / "adam").manifest
    assert manifest["seed"] == 3


def test_flags_override_the_preset(tiny_preset, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("core.pipeline.execute", lambda config, *_: seen.append(config) or {})
    monkeypatch.setattr("core.pipeline.prepare", lambda *_: None)
    flags = ["--bits", 2, "--methods", "adam", "--encoder", "embedded", "--data", "cifar10", "--seed", 9, "--threads", 2]
    assert call("run", *flags, "--device", "auto", "--out", tmp_path / "run") == 0
    (config,) = seen
    assert (config.bits, config.methods, config.evaluation.encoder) == ((2,), ("adam",), "embedded")
    assert (config.machine.seed, config.seed_of_training) == (9, 9)
    assert (config.machine.threads, config.machine.device, config.evaluation.data) == (2, "auto", "cifar10")
    assert config.generation.images == 8  # the preset's


@pytest.mark.parametrize(
    ("arguments", "value", "allowed"),
    [
        (["--preset", "slow"], "slow", "quick"),
        (["--bits", "1"], "1", "2, 3, 4, 5, 6, 7, 8"),
        (["--bits", "4", "9"], "9", "2, 3, 4, 5, 6, 7, 8"),
        (["--bits", "four"], "four", "whole number"),
        (["--methods", "sgd"], "sgd", "mi-fgsm, adam"),
        (["--model", "resnet2000"], "resnet2000", "resnet20_cifar10"),
        (["--data", "/nowhere"], "/nowhere", "one folder of images per class"),
        (["--encoder", "nonsense"], "nonsense", "embedded"),
        (["--device", "tpu"], "tpu", "auto, cpu"),
        (["--threads", "-1"], "-1", "0 to"),
    ],
)
def test_run_refuses(tiny_preset, tmp_path, capsys, arguments, value, allowed):
    line = refused(capsys, tmp_path / "deeper" / "run", "run", *arguments)
    assert value in line
    assert allowed in line


def run_config(*flags) -> RunConfig:
    return commands.run_config(build_parser().parse_args(["run", *map(str, flags)]))


def other_value(name, field):
    """A valid value of the knob that the preset `quick` does not have, and the arguments that set it."""
    flag = "--" + name.replace("_", "-")
    if name in ("layer_bits", "layer_weight_bits"):
        return (("a=b", 3), ("output", 8)), [flag, "output=8", "a=b=3"]
    if isinstance(field.default, bool):
        return not field.default, [f"--no-{flag[2:]}" if field.default else flag]
    special = {"images": 64, "snapshots": 2, "half_resolution_fraction": 0.05, "device": "cpu"}
    if name in special:
        value = special[name]
    elif field.metadata["choices"] is not None:
        value = next(choice for choice in field.metadata["choices"] if choice != field.default)
    elif isinstance(field.default, str):
        value = "something else"
    else:
        value = field.default + 1 if isinstance(field.default, int) else (field.default or min(1.0, field.metadata["maximum"])) * 0.75
    return value, [flag, str(value)]


@pytest.mark.parametrize("name", [name for name in every_knob() if name != "weight_bits"])
def test_run_has_a_flag_for_every_knob(name):
    """A flag changes only its knob; those of steps and learning rate also clear the values for single bit widths."""
    start = PRESETS["quick"]
    value, words = other_value(name, every_knob()[name])
    assert start.value(name) != value
    config = run_config(*words)
    own = {"steps": {"steps_by_bits": {}}, "training_lr": {"lr_by_bits": {}}}.get(name, {})
    assert config == replace(start, **own).with_knobs({name: value})


def test_run_starts_from_the_given_preset():
    for name, start in PRESETS.items():
        assert run_config("--preset", name) == start
    config = run_config("--preset", "paper", "--images", 40, "--batch-size", 8, "--training-batch-size", 9, "--range", "mse")
    assert config == PRESETS["paper"].with_knobs({"images": 40, "batch_size": 8, "training_batch_size": 9, "range": "mse"})


def test_run_refuses_a_network_without_batch_norm(tiny_preset, tmp_path, capsys, without_batch_norm):
    assert "must have at least one BatchNorm layer" in refused(capsys, tmp_path / "run", "run", "--model", without_batch_norm)


def test_output_files_have_default_permissions(tiny_preset, tmp_path):
    out = tmp_path / "run"
    assert call("run", "--bits", 4, "--methods", "adam", "--encoder", "", "--out", out) == 0
    (tmp_path / "plain").write_text("1", encoding="utf-8")
    plain = (tmp_path / "plain").stat().st_mode
    assert {path.stat().st_mode for path in out.rglob("*") if path.is_file()} == {plain}


def test_table_without_measurements(capsys, monkeypatch, tmp_path):
    (tmp_path / "measured.json").write_text('{"runs": [], "comparisons": []}', encoding="utf-8")
    monkeypatch.setattr("core.runs.paper_table.MEASURED", tmp_path / "measured.json")
    assert call("table", "--json") == 0
    rows = last_json(capsys)["rows"]
    assert [row["row"] for row in rows][:2] == ["cifar10/resnet20/3", "cifar10/resnet20/4"]
    assert len(rows) == 12
    assert all(row["measured"] == [] for row in rows)
    assert call("table") == 0
    out = capsys.readouterr().out
    assert out.count("not measured") == 12
    assert max(map(len, out.splitlines())) <= 140


def test_table_measures_a_row_and_stores_the_run(capsys, tiny_preset, pictures):
    row = ["table", "--run", "cifar10/resnet20/4", "--model", "resnet20_cifar10"]
    assert call(*row, "--seed", 3, "--json") == 0
    result = last_json(capsys)
    (line,) = result["rows"]
    newest = line["measured"][0]
    assert (line["row"], newest["run"], newest["model"]) == ("cifar10/resnet20/4", result["run"], "resnet20_cifar10")
    assert newest["evaluated_on"] == f"20 images of {pictures}"
    assert set(newest["top1"]) == {"mi-fgsm", "adam"}
    (run,) = listed(capsys)
    assert (run["id"], run["state"]) == (result["run"], "complete")
    assert call(*row[:1]) == 0
    out = capsys.readouterr().out
    assert f"(drop {newest['drop']['adam']:.2f}), from" in out
    assert result["run"] in out.replace("\n        ", " ")


@pytest.mark.parametrize(
    ("arguments", "value", "allowed"),
    [
        (["--run", "cifar10/resnet20/6"], "cifar10/resnet20/6", "cifar10/resnet20/5"),
        (["--run", "imagenet/resnet18/4"], "imagenet/resnet18/4", "data must be a folder of imagenet images"),
        (["--run", "cifar10/resnet20/4", "--model", "pytorchcv:resnet18"], "pytorchcv:resnet18", "resnet20_cifar10"),
        (["--run", "cifar10/resnet20/4", "--preset", "slow"], "slow", "quick, instant, imagenet, paper"),
        (["--run", "cifar10/resnet20/4", "--model", "resnet20_cifar10", "--data", "/nowhere"], "/nowhere", "embedded, cifar10"),
        (["--model", "resnet20_cifar10"], "resnet20_cifar10", "must come with --run"),
        (["--seed", "0"], "0", "must come with --run"),
    ],
)
def test_table_refuses(capsys, runs, arguments, value, allowed):
    assert call("table", *arguments) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert value in line
    assert allowed in line
    assert captured.out == ""
    assert not runs.exists()
