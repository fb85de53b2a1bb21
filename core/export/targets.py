"""The programs that networks are exported for: the format that each reads, and where the file is checked. Imports none of them.

To add one: a row in TARGETS, and a function that opens its files, as `core.export.verify.open_onnx` does.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from types import MappingProxyType
from typing import Any

from core.errors import ConfigError, UnknownNameError
from core.export.formats import ONNX_FORMATS


@dataclass(frozen=True)
class Target:
    """A program that runs exported files.

    title: its name in texts. format: of its files. package: of PyPI, in which files are checked. opener: "module:function" of a function
    that takes a file and a number of threads, and returns a function from images to scores. note: what the file is like, for --help.
    runtime: the package that runs the files, if another one is needed to write them.
    """

    title: str
    format: str
    package: str
    opener: str
    note: str
    runtime: str = ""


_ONNXRUNTIME = "core.export.verify:open_onnx"
TARGETS: Mapping[str, Target] = MappingProxyType(
    {
        "onnxruntime": Target("ONNX Runtime", "onnx", "onnxruntime", _ONNXRUNTIME, "integer kernels, checked there"),
        "openvino": Target("OpenVINO", "onnx", "openvino", "core.export.openvino:open_openvino", "integer kernels, checked there"),
        "tensorrt": Target("TensorRT", "onnx-symmetric", "onnxruntime", _ONNXRUNTIME, "INT8 around zero, checked in ONNX Runtime"),
        "executorch": Target("ExecuTorch", "pte", "executorch", "core.export.executorch:open_executorch", "int8 kernels, checked there"),
        "litert": Target(
            "LiteRT", "tflite", "litert-torch", "core.export.litert:open_litert", "int8 kernels, checked there", "ai-edge-litert"
        ),
        "torch": Target("PyTorch", "pt2", "torch", "core.export.verify:open_program", "a torch.export program, checked there"),
    }
)


def find_target(name: str) -> Target:
    """The target of that name. Raises UnknownNameError, and ConfigError if the package in which its files are checked is not installed."""
    if name not in TARGETS:
        raise UnknownNameError("target", name, TARGETS)
    target = TARGETS[name]
    if importlib.util.find_spec(target.package.replace("-", "_")) is None:
        raise ConfigError(f"target {name} needs the package {target.package}: python -m pip install {target.package}")
    return target


def target_of(kind: str) -> Target | None:
    """The target in which files of a format are checked unless another one is named; None for a format of this program alone.

    Raises ConfigError if its package is not installed.
    """
    if kind in ONNX_FORMATS:
        return TARGETS["onnxruntime"]
    return next((find_target(name) for name, target in TARGETS.items() if target.format == kind), None)


def opener(target: Target) -> Callable[..., Any]:
    """The function that opens files of the target. Imports its package."""
    module, _, name = target.opener.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found


def runs_in(target: Target) -> str:
    """The package that runs the files, with its version."""
    package = target.runtime or target.package
    return f"{package} {version(package)}"
