"""Targets: the formats they read, their names on the command line, and the packages in which files are checked."""

import importlib.util

import pytest

from core.__main__ import main
from core.config import NETWORK_FORMATS
from core.errors import ConfigError, UnknownNameError
from core.export.targets import TARGETS, find_target, opener, runs_in, target_of


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_can_be_opened_here(name):
    pytest.importorskip(TARGETS[name].package.replace("-", "_"))
    target = find_target(name)
    assert target.format in NETWORK_FORMATS
    assert callable(opener(target))
    assert runs_in(target).split()[0] == (target.runtime or target.package)


def test_target_of_a_format(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: "found")
    assert {kind: target_of(kind) and target_of(kind).package for kind in NETWORK_FORMATS} == {
        "onnx": "onnxruntime", "onnx-symmetric": "onnxruntime", "onnx-exact": "onnxruntime", "packed": None, "pt2": "torch",
        "pte": "executorch",
        "tflite": "litert-torch",
    }  # fmt: skip


def test_a_target_that_is_unknown_or_not_installed_is_refused(monkeypatch):
    with pytest.raises(
        UnknownNameError, match="unknown target 'coreml': must be one of onnxruntime, openvino, tensorrt, executorch, litert, torch"
    ):
        find_target("coreml")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="^target openvino needs the package openvino: python -m pip install openvino$"):
        find_target("openvino")
    with pytest.raises(ConfigError, match="^target executorch needs the package executorch: python -m pip install executorch$"):
        target_of("pte")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "export must be given a format or a target, got neither: --format onnx, or --target onnxruntime"),
        (["--target", "tensorrt", "--format", "onnx"], "format must be onnx-symmetric for target tensorrt, got 'onnx'"),
        (["--target", "coreml"], "unknown target 'coreml': must be one of onnxruntime, openvino, tensorrt, executorch, litert, torch"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, capsys, options, message):
    assert main(["export", "20260101-000000-000000", *options, "--out", "x", "--runs", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
