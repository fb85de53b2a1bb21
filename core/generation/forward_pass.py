"""One forward pass of the generation: loss, terms, statistics; eager, compiled, or captured as a CUDA graph."""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from core.config.choices import DIVERGENCE
from core.errors import first_line
from core.generation.features import classified_features
from core.generation.fused import kernels
from core.generation.fused.network import FusedNetwork, with_statistics
from core.generation.losses import TERMS, ForwardOutputs, Term, total_loss, used_terms
from core.gpu import CudaGraph
from core.memory import is_out_of_memory
from core.models.full_precision import scores_of

# L_total, its terms by name, L_BNS of each layer (L,), logits (N, classes), batch means and variances of all layers (2, C)
LossOutputs = tuple[Tensor, dict[str, Tensor], Tensor, Tensor, Tensor]


def term_weights(terms: Iterable[Term] | None = None) -> list[str]:
    """The knobs that weigh a loss term. terms: of a method with terms of its own; None: TERMS."""
    weights = [term.weight for term in (TERMS.values() if terms is None else terms)]
    return [weight for weight in weights if isinstance(weight, str) and weight != DIVERGENCE]


class _PrecomputedGradient(torch.autograd.Function):
    """(images, gradient, results) -> the results; backward returns the given gradient, which is that of the first result."""

    @staticmethod
    def forward(ctx, images, gradient, *results):  # type: ignore[override]
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(*results[1:])
        return results

    @staticmethod
    def backward(ctx, grad, *_others):  # type: ignore[override]
        (gradient,) = ctx.saved_tensors
        return grad * gradient, *[None] * (1 + len(_others) + 1)


class ForwardPass:
    """Images `(N, C, H, W)`, labels `(N,)` and the weights of the terms -> `LossOutputs`, differentiable in the images.

    terms: of a method with a loss of its own in place of L_total, which is not compiled; None: TERMS. per_image: whether they read the
    statistics of each image.

    Raises ModelError when the network has no BatchNorm layer or, when called, returns anything but one tensor of logits.
    """

    def __init__(self, network: nn.Module, terms: Sequence[Term] | None = None, per_image: bool = False) -> None:
        self._terms = terms
        self._network = with_statistics(network, per_image)
        self._recordable = not per_image and all(term.recordable for term in terms or ())
        self._features = any(term.features for term in terms or ())
        self._weights: list[str] = []  # of the last call, in the order of their tensor
        self._compiled: Any = None
        self._shape: torch.Size | None = None
        self.compile_seconds: float | None = None
        self.compile_failure = ""
        self._device = next(network.parameters()).device
        self._recording = CudaGraph(self._device)

    @property
    def weights(self) -> list[str]:
        """The knobs that weigh its terms."""
        return term_weights(self._terms)

    def __call__(self, images: Tensor, labels: Tensor, weights: Mapping[str, float]) -> LossOutputs:
        # a shift changes the memory format, which convolutions would convert again, and a compiled function accepts only one
        images = images.contiguous(memory_format=torch.channels_last)
        # hooks and untraceable code may read tensor values, which a CUDA graph cannot
        if not (self._recordable and self._recording.possible and isinstance(self._network, FusedNetwork)):
            return self._plain(images, labels, weights)
        # as a tensor, because a changed number would need another capture
        self._weights = [name for name in (*term_weights(self._terms), DIVERGENCE) if name in weights]
        values = torch.tensor([weights[name] for name in self._weights], dtype=images.dtype).to(images.device)
        gradient, *results = (own.clone() for own in self._recording(self._with_gradient, images.detach(), labels, values))
        total, layers, logits, statistics, *terms = _PrecomputedGradient.apply(images, gradient, *results)
        return total, {term.name: value for term, value in zip(used_terms(weights, self._terms), terms)}, layers, logits, statistics

    def _plain(self, images: Tensor, labels: Tensor, weights: Mapping[str, float | Tensor]) -> LossOutputs:
        # a last batch of another size is not worth compiling for
        if self._compiled is None or images.shape != self._shape:
            return self._compute(images, labels, weights)
        # as tensors, because numbers become constants of the compiled function and each change would recompile it
        tensors = {name: value if isinstance(value, Tensor) else images.new_tensor(value) for name, value in weights.items()}
        return self._compiled(images, labels, tensors)

    def _with_gradient(self, images: Tensor, labels: Tensor, values: Tensor) -> Sequence[Tensor]:
        """The gradient of L_total for the images, and all of LossOutputs. values: the weights, in the order of `term_weights`."""
        with torch.enable_grad():
            own = images.detach().requires_grad_(True)
            total, terms, layers, logits, statistics = self._plain(own, labels, dict(zip(self._weights, values)))
            (gradient,) = torch.autograd.grad(total, own)
        return [gradient, *(result.detach() for result in (total, layers, logits, statistics, *terms.values()))]

    def _compute(self, images: Tensor, labels: Tensor, weights: Mapping[str, float | Tensor]) -> LossOutputs:
        found: list[Tensor] = []
        if self._features:
            module = self._network.module if isinstance(self._network, FusedNetwork) else self._network.network
            with classified_features(module) as found:
                output, statistics = self._network(images)
        else:
            output, statistics = self._network(images)
        logits = scores_of(output, len(images))
        layers = statistics.layer_losses()
        divergences = statistics.divergences() if DIVERGENCE in weights else None
        outputs = ForwardOutputs(
            images, labels, logits, layers, divergences, None if self._terms is None else statistics, found[0] if found else None
        )
        total, terms = total_loss(outputs, weights, self._terms)
        return total, terms, layers, logits, statistics.end_to_end()

    @property
    def kernels(self) -> str:
        """The implementation that computes the statistics: "C", or "torch" and why; on a GPU, whether the step is a CUDA graph."""
        if not isinstance(self._network, FusedNetwork):
            return "torch: the network cannot be traced"
        if not (self._recordable and self._recording.possible):
            return kernels.description() if self._device.type == "cpu" else "torch"
        return f"torch, not recorded: {self._recording.failure}" if self._recording.failure else "torch, recorded as a CUDA graph"

    def compile(self, images: Tensor, labels: Tensor, weights: Mapping[str, float]) -> None:
        """Compiles forward and backward for images of this shape, by running them once.

        A failure is stored in `compile_failure`, and the pass stays eager; running out of memory is raised.
        """
        began = time.perf_counter()
        if self._terms is not None:
            self.compile_failure = "the method has a loss of its own"
            return
        if not isinstance(self._network, FusedNetwork):
            self.compile_failure = "the network cannot be traced"
            return
        if images.device.type == "cpu" and kernels.description() == kernels.C:
            self.compile_failure = "on a CPU the C compiler has done it already"
            return
        if images.device.type == "cpu" and kernels.description().endswith(kernels.AS_BEFORE):
            self.compile_failure = "the run began without a compiler, and ends with the same bits"
            return
        self._compiled, self._shape = torch.compile(self._compute, dynamic=False, fullgraph=True), images.shape
        try:
            with torch.enable_grad():
                own = images.detach().clone().requires_grad_(True)
                self._plain(own.contiguous(memory_format=torch.channels_last), labels, weights)[0].backward()
        except Exception as error:  # compilers raise many kinds of errors
            self._compiled = None
            if is_out_of_memory(error):
                raise
            self.compile_failure = first_line(error)
        else:
            self.compile_seconds = round(time.perf_counter() - began, 3)
