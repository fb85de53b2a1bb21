"""Commands and flags: help, `list`, flags of earlier versions, and errors in one line on stderr."""

import json
import os
import subprocess
import sys

import pytest
from command_line import ROOT, TINY, call, tree

from core.cli.parser import build_parser
from core.config import PRESETS
from core.generation.methods import METHODS


def test_closed_pipe_is_not_an_error():
    with subprocess.Popen(
        [sys.executable, "-m", "core", "list"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
    ) as command:
        command.stdout.close()  # before the command prints anything
        assert command.stderr.read() == ""
    assert command.returncode == 0


def test_list_in_a_process():
    done = subprocess.run([sys.executable, "-m", "core", "list", "--json"], cwd=ROOT, capture_output=True, check=False, encoding="utf-8")
    assert done.returncode == 0
    assert done.stderr == ""
    names = json.loads(done.stdout.splitlines()[-1])
    assert "resnet20_cifar10" in names["models"]
    assert {"pytorchcv", "torchvision", "timm"} <= {name.partition(":")[0] for name in names["models"]}
    assert "resnet20_cifar10" in names["offline"]
    assert names["methods"] == list(METHODS)
    assert names["optimizers"] == names["methods"]  # their name in version 1
    assert names["ranges"] == ["minmax", "mse", "lsq"]
    assert names["bits"] == [2, 3, 4, 5, 6, 7, 8]
    assert names["presets"] == list(PRESETS)
    assert "embedded" in names["encoders"]
    assert {"embedded", "cifar10"} <= set(names["data"])


@pytest.mark.parametrize(
    "arguments",
    [["list"], ["table"], ["--help"], ["generate", "--help"], ["generate", "--epsilon", "9", "--out", "x"], ["export", "--help"]],
)
def test_commands_that_compute_nothing_do_not_import_torch(arguments, tmp_path):
    code = f"""
import sys
from core.__main__ import main
try:
    main({arguments!r})
except SystemExit:
    pass
sys.exit(10 if "torch" in sys.modules else 0)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr


def test_list_prints_all_names(capsys):
    assert call("list") == 0
    out = capsys.readouterr().out
    for name in ("resnet20_cifar10", "mi-fgsm", "lsq", "quick", "2, 3, 4, 5, 6, 7, 8"):
        assert name in out


@pytest.mark.parametrize("command", ["generate", "quantize", "diversity", "run", "export", "pretrain", "pretrain-encoder", "list", "table"])
def test_every_command_has_help(capsys, command):
    assert call(command, "--help") == 0
    assert "--json" in capsys.readouterr().out


def test_flags_of_generate_and_quantize_exist(capsys):
    call("generate", "--help")
    text = capsys.readouterr().out
    flags = "model method images iterations batch-size snapshots epsilon mu lr alpha-tv alpha-l2 beta seed threads out"
    for flag in flags.split():
        assert f"--{flag} " in text
    call("quantize", "--help")
    text = capsys.readouterr().out
    for flag in ["model", "images", "weight-bits", "activation-bits", "range", "steps", "batch-size", "data", "out"]:
        assert f"--{flag} " in text


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        ([], "COMMAND"),
        (["frobnicate"], "frobnicate"),
        (["generate", "--out", "x", "--nonsense", "3"], "--nonsense"),
        (["pretrain"], "--out"),
        (["quantize", "--out", "x"], "--images"),
        (["diversity"], "PATH"),
        (["generate", "--out"], "--out"),
    ],
)
def test_wrong_command_line_is_refused_in_one_line(capsys, arguments, value):
    assert call(*arguments) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert value in line
    assert captured.out == ""


def test_bad_value_exits_with_code_two(tmp_path):
    command = [sys.executable, "-m", "core", "quantize", "--images", "/nowhere", "--weight-bits", "1", "--out", str(tmp_path / "x")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False, encoding="utf-8")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "python -m core quantize: weight_bits must be one of 2, 3, 4, 5, 6, 7, 8, got 1\n"
    assert tree(tmp_path) == []


def test_current_folder_is_refused_as_output_path(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("core.stages.generation.GenerationLoop", lambda *_: pytest.fail("computed for nothing"))
    capsys.readouterr()
    assert call("generate", *TINY, "--out", ".") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "output path must be new or an empty folder, '.' is the current folder" in line


# flags of earlier versions


@pytest.mark.parametrize(
    ("command", "old", "new"),
    [
        ("generate", ["--optimizer", "adam"], ["--method", "adam"]),
        ("generate", ["--checkpoint", "a.pt"], ["--weights", "a.pt"]),
        ("generate", ["--half-resolution", "0.1"], ["--half-resolution-fraction", "0.1"]),
        ("quantize --images x", ["--averaging", "0.5"], ["--ema-decay", "0.5"]),
        ("quantize --images x", ["--evaluations", "3"], ["--accuracy-checks", "3"]),
        ("quantize --images x", ["--checkpoint", "a.pt"], ["--weights", "a.pt"]),
        ("run", ["--optimizers", "adam", "mi-fgsm"], ["--methods", "adam", "mi-fgsm"]),
        ("run", ["--checkpoint", "a.pt"], ["--weights", "a.pt"]),
        ("run", ["--averaging", "0.5"], ["--ema-decay", "0.5"]),
        ("run", ["--evaluations", "3"], ["--accuracy-checks", "3"]),
        ("run", ["--half-resolution", "0.1"], ["--half-resolution-fraction", "0.1"]),
        ("export x --format card --out y", ["--lane", "adam"], ["--method", "adam"]),
    ],
)
def test_flags_of_earlier_versions(command, old, new):
    parser = build_parser()
    before, plain = parser.parse_args([*command.split(), *old]), parser.parse_args(command.split())
    assert before == parser.parse_args([*command.split(), *new])
    assert before != plain
