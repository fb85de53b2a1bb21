"""Networks to `torch.export` programs (.pt2)."""

import itertools
import json
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from core.errors import ModelError, first_line, quoted
from core.files import atomic_write
from core.models.programs.archive import SPEC_FILE
from core.models.registry import ModelSpec

_EXAMPLES = 2  # images; torch.export would turn a batch size of 1 into a constant
# metadata about the origin of each operation: larger than everything else in a small file, and it contains local paths
_ORIGIN = ("from_node", "nn_module_stack", "source_fn_stack", "stack_trace", "torch_fn")


class _Preprocessed(nn.Module):
    """A network with the normalization of its images, as `FullPrecisionModel.normalize` computes it."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, spec: ModelSpec) -> None:
        super().__init__()
        self.network = network
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(spec, name)).view(1, -1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels: uint8 `(N, C, H, W)`."""
        scores: Tensor = self.network((pixels.float() / 255 - self.mean) / self.std)
        return scores


def trace(network: nn.Module, spec: ModelSpec, any_batch: bool = True, preprocessing: bool = False) -> ExportedProgram:
    """A network in evaluation mode as a program: normalized float32 images `(N, C, H, W)`, any N -> logits `(N, classes)`.

    any_batch: otherwise, N is 1, and memory is contiguous. preprocessing: the images are uint8, and the program normalizes them.

    Raises ModelError if the network has data-dependent control flow, or uses something that torch.export does not support.
    """
    device = next(itertools.chain(network.parameters(), network.buffers())).device
    dtype = torch.uint8 if preprocessing else torch.float32
    network = _Preprocessed(network, spec) if preprocessing else network
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


def save_program(network: nn.Module, spec: ModelSpec, path: Path, preprocessing: bool = False) -> None:
    """Writes a network and its spec as a program, atomically. preprocessing, and errors: as in `trace`."""
    program = trace(network, spec, preprocessing=preprocessing)
    with atomic_write(path) as partial, partial.open("wb") as file:
        torch.export.save(program, file, extra_files={SPEC_FILE: json.dumps(asdict(spec))})
