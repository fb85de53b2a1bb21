"""Shared by the three reimplemented peers: the network and the images in the memory layout of the original programs."""

import copy

import torch
from torch import Tensor, nn

from core.models.full_precision import FullPrecisionModel


def plain_copy(model: FullPrecisionModel, freeze: bool) -> nn.Module:
    """A copy of the network in contiguous layout and evaluation mode; the model itself does not change.

    freeze: whether to turn off the gradients of the parameters. None of the originals does, so they compute them in every iteration.
    """
    network = copy.deepcopy(model.network).to(memory_format=torch.contiguous_format)
    return network.eval().requires_grad_(not freeze)


def plain_images(images: Tensor) -> Tensor:
    """A copy of the images `(N, 3, H, W)` in contiguous layout, as a leaf tensor to be optimized."""
    return images.detach().clone(memory_format=torch.contiguous_format).requires_grad_(True)
