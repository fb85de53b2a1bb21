"""Networks to `torch.export` programs (.pt2)."""

import itertools
import json
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from core.errors import ModelError, first_line, quoted
from core.files import atomic_write
from core.models.programs.archive import SPEC_FILE
from core.models.registry import ModelSpec

_EXAMPLES = 2  # images; torch.export would turn a batch size of 1 into a constant
# metadata about the origin of each operation: larger than everything else in a small file, and it contains local paths
_ORIGIN = ("from_node", "nn_module_stack", "source_fn_stack", "stack_trace", "torch_fn")


def trace(network: nn.Module, spec: ModelSpec, dtype: torch.dtype = torch.float32, any_batch: bool = True) -> ExportedProgram:
    """A network in evaluation mode as a program: normalized float32 images `(N, C, H, W)`, any N -> logits `(N, classes)`.

    dtype: of the images, if the network takes others. any_batch: otherwise, N is 1, and memory is contiguous.

    Raises ModelError if the network has data-dependent control flow, or uses something that torch.export does not support.
    """
    device = next(itertools.chain(network.parameters(), network.buffers())).device
    images = torch.zeros(_EXAMPLES if any_batch else 1, *spec.shape, dtype=dtype, device=device)
    if any_batch:
        images = images.to(memory_format=torch.channels_last)
    try:
        with torch.no_grad():
            program = torch.export.export(network, (images,), dynamic_shapes=({0: Dim("batch", min=1)},) if any_batch else None)
    except Exception as error:  # torch.export raises whatever the network's code raises, and many exceptions of its own
        raise ModelError(
            f"torch.export cannot translate {spec.name} ({quoted(first_line(error))}); "
            "the network must not have data-dependent control flow, or use the format packed"
        ) from error
    program.example_inputs = None
    for node in program.graph.nodes:
        for key in _ORIGIN:
            node.meta.pop(key, None)
    return program


def save_program(network: nn.Module, spec: ModelSpec, path: Path) -> None:
    """Writes a network and its spec as a program, atomically. Raises ModelError as `trace` does."""
    program = trace(network, spec)
    with atomic_write(path) as partial, partial.open("wb") as file:
        torch.export.save(program, file, extra_files={SPEC_FILE: json.dumps(asdict(spec))})
