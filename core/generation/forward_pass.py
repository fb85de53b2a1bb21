"""One forward pass of the generation with everything that is asked of it, as it is or compiled."""

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import first_line
from core.generation import kernels
from core.generation.fusion import FusedNetwork, with_statistics
from core.generation.losses import Pass, total_loss
from core.memory import is_out_of_memory
from core.models.full_precision import scores_of

# L_total, its parts by name, L_BNS of each layer (L,), logits (N, classes), batch means and variances of all layers (2, C)
Outcome = tuple[Tensor, dict[str, Tensor], Tensor, Tensor, Tensor]


class ForwardPass:
    """Images `(N, 3, H, W)`, labels `(N,)` and the weights of the parts -> `Outcome`, differentiable in the images.

    Raises ModelError when the network has no BatchNorm layer, or, when called, puts out anything but one tensor of scores.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = with_statistics(network)
        self._compiled: Any = None
        self._shape: torch.Size | None = None
        self.compile_seconds: float | None = None
        self.compile_failure = ""

    def __call__(self, images: Tensor, labels: Tensor, weights: Mapping[str, float]) -> Outcome:
        # a shift puts the pixels of a channel together: convolutions would turn them round again, and what is compiled knows one order
        images = images.contiguous(memory_format=torch.channels_last)
        # a last batch of another size is not worth another translation
        if self._compiled is None or images.shape != self._shape:
            return self._compute(images, labels, weights)
        # numbers would be written into what is compiled, and a slider that moves would have it compiled again
        return self._compiled(images, labels, {name: images.new_tensor(value) for name, value in weights.items()})

    def _compute(self, images: Tensor, labels: Tensor, weights: Mapping[str, float | Tensor]) -> Outcome:
        output, statistics = self._network(images)
        logits = scores_of(output, len(images))
        layers = statistics.layer_losses()
        total, parts = total_loss(Pass(images, labels, logits, layers), weights)
        return total, parts, layers, logits, statistics.end_to_end()

    @property
    def kernels(self) -> str:
        """What computes the statistics: "C", or "torch" and why."""
        return kernels.description() if isinstance(self._network, FusedNetwork) else "torch: the network cannot be traced"

    def compile(self, images: Tensor, labels: Tensor, weights: Mapping[str, float]) -> None:
        """Translates the pass and its way back for images of this shape, by doing them once.

        What goes wrong is kept in `compile_failure`, and the pass stays as it is; running out of memory is raised.
        """
        began = time.perf_counter()
        if not isinstance(self._network, FusedNetwork):
            self.compile_failure = "the network cannot be traced"
            return
        if images.device.type == "cpu" and kernels.description() == "C":
            self.compile_failure = "on a CPU the C compiler has done it already"
            return
        self._compiled, self._shape = torch.compile(self._compute, dynamic=False, fullgraph=True), images.shape
        try:
            with torch.enable_grad():
                own = images.detach().clone().requires_grad_(True)
                self(own, labels, weights)[0].backward()
        except Exception as error:  # whatever the compiler of the machine, or the way to it, runs into
            self._compiled = None
            if is_out_of_memory(error):
                raise
            self.compile_failure = first_line(error)
        else:
            self.compile_seconds = round(time.perf_counter() - began, 3)
