"""The parts of L_total = L_BNS + alpha_tv R_TV + alpha_l2 R_l2 + beta L_CE: small functions, and how they add up.

Each part is taken per image and averaged over the batch, so that a weight means the same at every batch size; L_BNS is a property
of the batch. The names are those of the paper.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Pass:
    """What one forward pass offers to the objectives."""

    images: Tensor  # (N, C, H, W), normalised
    labels: Tensor  # (N,)
    logits: Tensor  # (N, classes)
    layer_losses: Tensor  # (L,), L_BNS of each BatchNorm layer


@dataclass(frozen=True)
class Objective:
    """A part of the loss: what it is, which knob weighs it (None: weight 1), and the function from a pass to a scalar."""

    name: str
    symbol: str
    weight: str | None
    function: Callable[[Pass], Tensor]
    description: str


class _TotalVariation(torch.autograd.Function):
    """The function below with its gradient written out, a third of the operations that autograd would do.

    With d_k the differences to neighbour k, d ||d_k|| / dx is d_k / ||d_k|| at the neighbour and its negative at the pixel itself.
    """

    @staticmethod
    def forward(ctx, images: Tensor) -> Tensor:  # type: ignore[override]
        differences = [images[there] - images[here] for here, there in _NEIGHBOURS]
        norms = torch.stack([torch.linalg.vector_norm(difference, dim=(1, 2, 3)) for difference in differences])
        ctx.save_for_backward(norms, *differences)
        ctx.like = images.shape
        return norms.mean(dim=1).sum()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # type: ignore[override]
        norms, *differences = ctx.saved_tensors
        # the gradient at an image without differences is zero
        factors = torch.where(norms > 0, grad / (norms * norms.shape[1]), 0.0)
        result = torch.zeros(ctx.like, dtype=norms.dtype, device=norms.device).contiguous(memory_format=torch.channels_last)
        for (here, there), difference, factor in zip(_NEIGHBOURS, differences, factors):
            part = difference * factor.view(-1, 1, 1, 1)
            result[there] += part
            result[here] -= part
        return result


_ALL, _FIRST, _LAST = slice(None), slice(None, -1), slice(1, None)
# (pixels, their neighbours): right, lower, lower right, lower left
_NEIGHBOURS = (
    ((_ALL, _ALL, _ALL, _FIRST), (_ALL, _ALL, _ALL, _LAST)),
    ((_ALL, _ALL, _FIRST, _ALL), (_ALL, _ALL, _LAST, _ALL)),
    ((_ALL, _ALL, _FIRST, _FIRST), (_ALL, _ALL, _LAST, _LAST)),
    ((_ALL, _ALL, _FIRST, _LAST), (_ALL, _ALL, _LAST, _FIRST)),
)


def total_variation(images: Tensor) -> Tensor:
    """R_TV: l2 norm of the differences to the right, lower, lower right and lower left neighbour, added up; mean over `(N, C, H, W)`."""
    if torch.compiler.is_compiling():  # a compiler writes out a better gradient itself, given the formula
        return torch.stack([image_norms(images[there] - images[here]).mean() for here, there in _NEIGHBOURS]).sum()
    return _TotalVariation.apply(images)


def l2_norm(images: Tensor) -> Tensor:
    """R_l2: l2 norm of each image `(N, C, H, W)`, mean over the batch."""
    return image_norms(images).mean()


def image_norms(images: Tensor) -> Tensor:
    """l2 norm of each image `(N,)`; the gradient at an image of zeros is zero, where that of the plain norm is undefined."""
    if not torch.compiler.is_compiling():  # of which the formula makes faster code
        return torch.linalg.vector_norm(images, dim=(1, 2, 3))
    squares = images.square().flatten(1).sum(dim=1)
    return torch.where(squares > 0, squares, 1.0).sqrt() * (squares > 0)


OBJECTIVES = (
    Objective(
        "bns",
        "L_BNS",
        None,
        lambda p: p.layer_losses.sum(),
        "distance of the batch statistics to the running ones, summed over layers",
    ),
    Objective("tv", "R_TV", "alpha_tv", lambda p: total_variation(p.images), "total variation of the images"),
    Objective("l2", "R_l2", "alpha_l2", lambda p: l2_norm(p.images), "l2 norm of the images"),
    Objective("ce", "L_CE", "beta", lambda p: F.cross_entropy(p.logits, p.labels), "cross entropy to the assigned labels"),
)


def total_loss(forward_pass: Pass, weights: Mapping[str, float | Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """L_total and its unweighted parts by name.

    weights: the values of alpha_tv, alpha_l2 and beta. A part whose weight is 0 is still reported, but costs no gradient; a tensor is
    always taken for a weight that counts, as a compiled function must not depend on its value.
    """
    total = forward_pass.images.new_zeros(())
    parts: dict[str, Tensor] = {}
    for objective in OBJECTIVES:
        weight = 1.0 if objective.weight is None else weights[objective.weight]
        counts = isinstance(weight, Tensor) or weight != 0
        with torch.set_grad_enabled(counts):
            parts[objective.name] = objective.function(forward_pass)
        if counts:
            total = total + weight * parts[objective.name]
    return total, {name: part.detach() for name, part in parts.items()}
