"""The terms of L_total = L_BNS + alpha_tv R_TV + alpha_l2 R_l2 + beta L_CE, and their sum.

With `bns_form` "divergence", s D_BNS takes the place of L_BNS, which is still reported: s makes it START at the first iteration, so that
the other weights mean the same for every network.

A method may have a loss of its own in place of L_total: its source supplies the terms (`ImageSource.terms`), L_BNS among them with weight
0, so that it is recorded for every method.

Each term is computed per image and averaged over the batch, so that a weight means the same at every batch size; L_BNS is a property
of the batch. Names are the paper's.
"""

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from core.config.choices import DIVERGENCE
from core.generation.bn_statistics import BatchStatistics

START = 300.0  # of s D_BNS: about L_BNS of ResNet-20 for CIFAR-10 at the start, which the default weights were chosen with


@dataclass(frozen=True)
class ForwardOutputs:
    """The outputs of one forward pass that the loss terms use."""

    images: Tensor  # (N, C, H, W), normalized
    labels: Tensor  # (N,), or the probabilities of the classes (N, classes)
    logits: Tensor  # (N, classes)
    layer_losses: Tensor  # (L,), L_BNS of each BatchNorm layer
    divergences: Tensor | None = None  # (L,), KL divergence of the statistics of each BatchNorm layer
    statistics: BatchStatistics | None = None  # for terms of a method's own; of each image, if its source asks for them
    features: Tensor | None = None  # (N, F), the input of the last layer, if a term needs it


@dataclass(frozen=True)
class Term:
    """A term of the loss.

    name: in records. symbol: the paper's. title: on the pages. weight: the knob of GenerationConfig that weighs it; or DIVERGENCE, which
    weighs the term where it replaces L_BNS; None: weight 1, and 0 where L_BNS is replaced; or a number, which no knob changes.
    function: from the outputs of a forward pass to a scalar. log: whether its curve has a logarithmic axis. features: whether it
    needs those. recordable: whether a CUDA graph can hold it, which neither draws random numbers nor reads tensor values.
    """

    name: str
    symbol: str
    title: str
    weight: str | float | None
    function: Callable[[ForwardOutputs], Tensor]
    log: bool = True
    features: bool = False
    recordable: bool = True


class _NeighborNorms(torch.autograd.Function):
    """Of each image `(N, C, H, W)`, the l2 norms of the differences to its neighbors in four directions: `(4, N)`. The gradient is written
    out: a third of the operations of autograd.

    With d_k the differences to neighbor k, d ||d_k|| / dx is d_k / ||d_k|| at the neighbor and its negative at the pixel itself.
    """

    @staticmethod
    def forward(ctx, images: Tensor) -> Tensor:  # type: ignore[override]
        differences = [images[there] - images[here] for here, there in _NEIGHBORS]
        norms = torch.stack([torch.linalg.vector_norm(difference, dim=(1, 2, 3)) for difference in differences])
        ctx.save_for_backward(norms, *differences)
        ctx.like = images.shape
        return norms

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # type: ignore[override]
        norms, *differences = ctx.saved_tensors
        # the gradient at an image without differences is zero
        factors = torch.where(norms > 0, grad / norms, 0.0)
        result = torch.zeros(ctx.like, dtype=norms.dtype, device=norms.device).contiguous(memory_format=torch.channels_last)
        for (here, there), difference, factor in zip(_NEIGHBORS, differences, factors):
            part = difference * factor.view(-1, 1, 1, 1)
            result[there] += part
            result[here] -= part
        return result


_ALL, _FIRST, _LAST = slice(None), slice(None, -1), slice(1, None)
# (pixels, their neighbors): right, lower, lower right, lower left
_NEIGHBORS = (
    ((_ALL, _ALL, _ALL, _FIRST), (_ALL, _ALL, _ALL, _LAST)),
    ((_ALL, _ALL, _FIRST, _ALL), (_ALL, _ALL, _LAST, _ALL)),
    ((_ALL, _ALL, _FIRST, _FIRST), (_ALL, _ALL, _LAST, _LAST)),
    ((_ALL, _ALL, _FIRST, _LAST), (_ALL, _ALL, _LAST, _FIRST)),
)


def total_variation(images: Tensor) -> Tensor:
    """R_TV: l2 norm of the differences to the right, lower, lower right and lower left neighbors, summed; mean over `(N, C, H, W)`."""
    if torch.compiler.is_compiling():  # a compiler writes out a better gradient itself, given the formula
        return torch.stack([image_norms(images[there] - images[here]).mean() for here, there in _NEIGHBORS]).sum()
    return _NeighborNorms.apply(images).mean(dim=1).sum()


def batch_variation(images: Tensor) -> Tensor:
    """`total_variation` with norms over the whole batch `(N, C, H, W)`, which are about sqrt(N) times as large."""
    return torch.linalg.vector_norm(_NeighborNorms.apply(images), dim=1).sum()


def l2_norm(images: Tensor) -> Tensor:
    """R_l2: l2 norm of each image `(N, C, H, W)`, mean over the batch."""
    return image_norms(images).mean()


def image_norms(images: Tensor) -> Tensor:
    """l2 norm of each image `(N,)`; the gradient at an image of zeros is zero, where that of the plain norm is undefined."""
    if not torch.compiler.is_compiling():  # a compiler makes faster code from the formula below
        return torch.linalg.vector_norm(images, dim=(1, 2, 3))
    squares = images.square().flatten(1).sum(dim=1)
    return torch.where(squares > 0, squares, 1.0).sqrt() * (squares > 0)


def _divergence(outputs: ForwardOutputs) -> Tensor:
    assert outputs.divergences is not None
    return outputs.divergences.sum()


# To add a term: its function, a row here, and its weight as a knob in core/config/generation.py.
TERMS: dict[str, Term] = {
    term.name: term
    for term in (
        Term("bns", "L_BNS", "batch-norm statistics", None, lambda outputs: outputs.layer_losses.sum()),
        Term(DIVERGENCE, "D_BNS", "divergence", DIVERGENCE, _divergence),
        Term("tv", "R_TV", "total variation", "alpha_tv", lambda outputs: total_variation(outputs.images)),
        Term("l2", "R_l2", "l2 norm", "alpha_l2", lambda outputs: l2_norm(outputs.images)),
        Term("ce", "L_CE", "cross entropy", "beta", lambda outputs: F.cross_entropy(outputs.logits, outputs.labels)),
    )
}


def used_terms(weights: Container[str], terms: Iterable[Term] | None = None) -> list[Term]:
    """The terms that a loss with these weights has. terms: of a method with terms of its own; None: TERMS."""
    return [term for term in (TERMS.values() if terms is None else terms) if term.weight != DIVERGENCE or DIVERGENCE in weights]


def total_loss(
    outputs: ForwardOutputs, weights: Mapping[str, float | Tensor], own: Iterable[Term] | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """L_total and its unweighted terms by name. own: the terms of a method with a loss of its own in its place; None: TERMS.

    weights: the value of every knob that weighs a term, and s under DIVERGENCE where D_BNS replaces L_BNS. A term whose weight is 0 is
    still reported, but costs no gradient; a tensor always counts as nonzero, because a compiled function must not depend on its value.
    """
    total = outputs.images.new_zeros(())
    terms: dict[str, Tensor] = {}
    for term in used_terms(weights, own):
        weight: float | Tensor
        if isinstance(term.weight, str):
            weight = weights[term.weight]
        else:
            weight = float(DIVERGENCE not in weights) if term.weight is None else term.weight
        counts = isinstance(weight, Tensor) or weight != 0
        with torch.set_grad_enabled(counts):
            terms[term.name] = term.function(outputs)
        if counts:
            total = total + weight * terms[term.name]
    return total, {name: term.detach() for name, term in terms.items()}
