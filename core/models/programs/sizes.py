"""Limits the memory that a program may take."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from core.errors import first_line, quoted
from core.models.programs.archive import refuse

ELEMENTS = 1 << 28  # of one tensor for a batch of two images: 1 GB in float32
_SIDE = 224  # image size for the check of programs that accept any size
_EXAMPLES = 2  # images in that check


class _Measuring(fx.Interpreter):
    """Runs a graph on the meta device, and raises ValueError for a tensor of more than ELEMENTS."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor) and tensor.numel() > ELEMENTS:
                raise ValueError(f"a tensor of {tensor.numel():,} elements at {n.name}, must be at most {ELEMENTS:,}")
        return result


def check_sizes(network: fx.GraphModule, images: tuple[int, int | None, int | None], path: Path) -> None:
    """Raises ModelError unless the network returns logits for such images without an intermediate tensor above ELEMENTS.

    network: on the meta device; it is set to evaluation mode. images: channels, height and width, None for any.
    """
    channels, height, width = images
    shape = (_EXAMPLES, channels, height or _SIDE, width or _SIDE)
    network.eval()
    try:
        with torch.no_grad():
            logits = _Measuring(network).run(torch.empty(shape, device="meta"))
    except Exception as error:  # torch can raise anything for the operations of an untrusted file
        reason = quoted(first_line(error))
        refuse(path, f"must be a classifier, but fails on {shape[0]} images of {shape[2]} x {shape[3]} pixels ({reason})")
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[0] != shape[0]:
        refuse(path, f"output must be logits ({shape[0]}, classes), got shape {quoted(tuple(getattr(logits, 'shape', ())))}")
