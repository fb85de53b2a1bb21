"""The network as a program of torch.export, a .pt2 file that torch alone runs: `torch.export.load(path).module()(images)`.

The quantizers are in it as the operations that they are, on whole numbers that the file holds as int8.
"""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from core.errors import ModelError, first_line
from core.models.registry import ModelSpec

SPEC = "spec.json"  # of the extra files: the ModelSpec
# what torch keeps of where an operation comes from: longer than all else in a small file, and with the paths of this machine
_ORIGIN = ("from_node", "nn_module_stack", "source_fn_stack", "stack_trace", "torch_fn")


def trace(network: nn.Module, spec: ModelSpec) -> ExportedProgram:
    """A network in evaluation mode as a program for normalised float32 images `(N, 3, size, size)`, any N.

    Raises ModelError when its way depends on the values of the images, or it does something that torch.export does not know.
    """
    example = torch.zeros(2, 3, spec.image_size, spec.image_size).to(memory_format=torch.channels_last)
    try:
        with torch.no_grad():
            program = torch.export.export(network, (example,), dynamic_shapes=({0: Dim("batch", min=1)},))
    except Exception as error:  # torch.export raises whatever the network's own code raises, and errors of its own of many kinds
        raise ModelError(
            f"{spec.name} cannot be translated by torch.export ({first_line(error)}): "
            "allowed is a network whose way does not depend on the images, or the format packed"
        ) from error
    program.example_inputs = None
    for node in program.graph.nodes:
        for key in _ORIGIN:
            node.meta.pop(key, None)
    return program


def save_program(network: nn.Module, spec: ModelSpec, path: Path) -> None:
    """Writes the .pt2 file. Raises ModelError as `trace` does."""
    program = trace(network, spec)
    with path.open("wb") as file:
        torch.export.save(program, file, extra_files={SPEC: json.dumps(asdict(spec))})
