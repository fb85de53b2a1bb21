"""Grad-CAM (Selvaraju et al., ICCV 2017): where in an image a network sees its class."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.errors import ModelError
from core.models.classifier import classifier_of
from core.models.hooks import hooked

_LEAST = 1e-10  # of a gradient


@contextmanager
def last_activations(network: nn.Module) -> Iterator[list[Tensor]]:
    """Within the block, the list has the output `(N, C, H, W)` of the last convolution that is not the classifier, in the order of the
    modules, of the last forward pass. Raises ModelError for a network without one.
    """
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d) and module is not classifier_of(network)]
    if not layers:
        raise ModelError(f"{type(network).__name__} must have a convolution besides its classifier, got none")
    found: list[Tensor] = []

    def keep(_number: int, _inputs: object, output: Tensor) -> None:
        found[:] = [output]

    with hooked({0: layers[-1]}, keep):
        yield found


def class_activation(activations: Tensor, scores: Tensor, size: tuple[int, int]) -> Tensor:
    """The map `(N, 1, H, W)` of `size`, from 0 to 1, of the class with the highest score; constant maps are 0.

    max(0, sum over channels of w A), resized bilinearly and scaled to 0 to 1 for each image, with A `(N, C, h, w)` the activations that
    `scores` `(N, classes)` were computed from, and w the mean over positions of max(1e-10, d score / dA). Differentiable through A; w
    counts as a constant.
    """
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(scores.amax(dim=1).sum(), activations, retain_graph=True)
    weights = gradient.clamp_min(_LEAST).mean(dim=(2, 3), keepdim=True)
    maps = F.interpolate((weights * activations).sum(dim=1, keepdim=True).relu(), size, mode="bilinear", align_corners=False)
    low, high = maps.amin(dim=(2, 3), keepdim=True), maps.amax(dim=(2, 3), keepdim=True)
    return (maps - low) / torch.where(high > low, high - low, 1.0)
