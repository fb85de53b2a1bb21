"""Helpers for the tests of the commands: calling them and reading their output."""

import json
from pathlib import Path

from core.__main__ import main

ROOT = Path(__file__).parents[3]
TINY = ["--images", "8", "--iterations", "3", "--snapshots", "2", "--batch-size", "4", "--threads", "1", "--device", "cpu"]
QUANTIZE = ["--steps", "2", "--batch-size", "4", "--calibration-images", "8", "--range", "minmax", "--threads", "1", "--device", "cpu"]
QUANTIZE_KEYS = {"full_precision", "calibrated", "quantized", "standard_error", "evaluated_on", "seconds", "weight_bits", "activation_bits"}
GENERATE_KEYS = {"images", "image_iterations", "seconds", "bns_loss_first", "bns_loss_last", "teacher_agreement", "layers"}


def call(*arguments) -> int:
    """The exit code, returned or raised."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as end:
        code = end.code
    assert isinstance(code, int)
    return code


def last_json(capsys) -> dict:
    lines = capsys.readouterr().out.splitlines()
    return json.loads(lines[-1])


def tree(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def refused(capsys, out, *arguments) -> str:
    """Calls a command that must fail without writing anything at or beside `out`. Returns the only line on stderr."""
    parent = next(path for path in out.parents if path.exists())
    before = tree(parent)
    capsys.readouterr()
    code = call(*arguments, "--out", out)
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert code == 2, captured.err
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("python -m core")
    assert captured.out == ""
    assert tree(parent) == before
    return lines[0]


def listed(capsys) -> list[dict]:
    capsys.readouterr()
    assert call("runs", "--json") == 0
    return last_json(capsys)["runs"]
