"""Calls functions with a network file of the user in a process of its own (core.untrusted). Imports no torch."""

from pathlib import Path
from typing import Any

from core.errors import ModelError
from core.models.shards import total_size
from core.untrusted import check_apart

PROGRAM = ".pt2"
# what the process imports before its memory is limited: the functions called here, and what torch.export imports at its first call
_ALWAYS = ("core.models.importing", "core.models.programs.importing", "core.models.checks")
_FOR_PROGRAMS = ("torch.export", "torch._dynamo", "torch._inductor", "torch.fx.experimental.symbolic_shapes", "sympy")
_OF_ZOOS = {"pytorchcv": "pytorchcv.model_provider", "torchvision": "torchvision.models", "timm": "timm"}


def is_program(name: str) -> bool:
    """Whether the name of a file is that of a program written by torch.export."""
    return name.lower().endswith(PROGRAM)


def called_apart(function: str, file: Path, name: str, zoo: str | None = None, **arguments: Any) -> Any:
    """What a function returns for a file. function: "module:function", see `check_apart`. name: of the file. zoo: None for all three.

    Raises what the function raises.
    """
    zoos = _OF_ZOOS.values() if zoo is None else (_OF_ZOOS.get(zoo, _OF_ZOOS["pytorchcv"]),)
    more = _FOR_PROGRAMS if is_program(name) else (*zoos, "core.models.candidates")
    return check_apart(function, file, name, error=ModelError, imports=(*_ALWAYS, *more), size=total_size(file, name), **arguments)
