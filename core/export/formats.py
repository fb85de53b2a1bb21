"""The file formats of quantized networks: endings, and what is refused before one is written. Imports no torch."""

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from core.config import NETWORK_FORMATS
from core.errors import ConfigError, DataError, UnknownNameError
from core.files import check_parents, named_as

SUFFIXES: Mapping[str, str] = MappingProxyType(
    {"onnx": ".onnx", "onnx-symmetric": ".onnx", "onnx-exact": ".onnx", "packed": ".safetensors"}
    | {"pt2": ".pt2", "pte": ".pte", "tflite": ".tflite"}
)
STANDARD_FORMATS = ("onnx", "onnx-symmetric", "pte", "tflite")  # in which runtimes recognize quantized layers
PHONE_FORMATS = ("pte", "tflite")  # of programs for phones, written with packages that may not be installed
ONNX_FORMATS = tuple(kind for kind, suffix in SUFFIXES.items() if suffix == ".onnx")


def can_preprocess(kind: str) -> bool:
    """Whether networks in a format can take pixels and normalize them; a packed file has no graph to do it."""
    return kind in SUFFIXES and kind != "packed"


def kind_of(out: Path, name: str = "out") -> str:
    """The format that the ending of `out` names; "onnx" for a name without an ending. Raises ConfigError, with `name`, for another one."""
    for kind, suffix in SUFFIXES.items():
        if out.suffix.lower() == suffix:
            return kind
    try:
        named_as(out, SUFFIXES["onnx"])
    except ConfigError:
        *others, last = dict.fromkeys(SUFFIXES.values())
        raise ConfigError(f"{name} must end in {', '.join(others)} or {last}, got {str(out)!r}") from None
    return "onnx"


def new_file(kind: str, out: Path) -> Path:
    """`out` with the ending of the format. Raises ConfigError or DataError unless it can be written there as a new file."""
    if kind not in NETWORK_FORMATS:
        raise UnknownNameError("format", kind, NETWORK_FORMATS)
    out = named_as(out, SUFFIXES[kind])
    if os.path.lexists(out):
        raise DataError(f"out must be a new file, and {str(out)!r} exists already")
    check_parents(out)
    return out
