"""Programs of other precisions, as programs that compute in float32."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.errors import quoted
from core.models.programs.archive import ProgramArchive, refuse
from core.models.weights import notes_of_conversion

FLOAT32 = 7  # number of torch.float32 in a program
_CONVERTED = {6: torch.float16, 8: torch.float64, 13: torch.bfloat16}
_LARGEST = torch.finfo(torch.float32).max
# they only accept float16 when they are to return float32
_WITH_HALF_TO_FLOAT = ("torch.ops.aten._softmax.default", "torch.ops.aten._log_softmax.default")


def in_float32(archive: ProgramArchive, path: Path) -> tuple[ProgramArchive, list[str]]:
    """The program with its tensors, images and casts in float32 instead of float16, bfloat16 or float64; and a note that says so, if any.

    Changes the graph of `archive` in place. Raises ModelError for what float32 cannot represent: a finite number or value of a tensor
    beyond its range, and bits that are read as another type.
    """
    found = {tensor.dtype for tensor in archive.tensors.values()}
    tensors = {name: _converted(tensor, name, path) for name, tensor in archive.tensors.items()}
    graph = archive.graph["graph_module"]["graph"]
    for meta in graph["tensor_values"].values():
        if meta["dtype"] in _CONVERTED:
            found.add(_CONVERTED[meta["dtype"]])
            meta["dtype"] = FLOAT32
    for node in graph["nodes"]:
        if node["target"] == "torch.ops.aten.view.dtype":
            refuse(path, f"casts must convert numbers, got {quoted(node['target'])}, which reads the bits of one type as another")
        for argument in node["inputs"]:
            given = argument["arg"]
            if given.get("as_scalar_type") in _CONVERTED:
                given["as_scalar_type"] = FLOAT32
            if argument["name"] == "half_to_float" and node["target"] in _WITH_HALF_TO_FLOAT:
                given["as_bool"] = False
            for number in _numbers(given):
                if _LARGEST < abs(number) < math.inf:
                    refuse(path, f"numbers must be in the range of float32, got {number:g} in {quoted(node['target'])}")
    return dataclasses.replace(archive, tensors=tensors), notes_of_conversion(found)


def _converted(tensor: Tensor, name: str, path: Path) -> Tensor:
    if tensor.dtype not in _CONVERTED.values():
        return tensor
    converted = tensor.to(torch.float32)
    if tensor.dtype == torch.float64 and not torch.equal(converted.isfinite(), tensor.isfinite()):
        refuse(path, f"values of {name} must be in the range of float32, got float64 values beyond it")
    return converted


def _numbers(argument: Mapping[str, Any]) -> Iterator[float]:
    for kind in ("as_float", "as_floats"):
        value = argument.get(kind, ())
        yield from (one for one in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(one, float))
