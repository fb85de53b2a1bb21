"""What the three reimplemented peers share: the network and the images as their programs hold them."""

import copy

import torch
from torch import Tensor, nn

from core.models.full_precision import FullPrecisionModel


def plain_copy(model: FullPrecisionModel, freeze: bool) -> nn.Module:
    """A copy of the network in plain contiguous layout and evaluation mode; the model itself stays as it is.

    freeze: whether its parameters need no gradients. None of the peers turns them off, so that theirs are computed in every iteration.
    """
    network = copy.deepcopy(model.network).to(memory_format=torch.contiguous_format)
    return network.eval().requires_grad_(not freeze)


def plain_images(images: Tensor) -> Tensor:
    """The images `(N, 3, H, W)` as a leaf of their own in plain contiguous layout, to be optimised."""
    return images.detach().clone(memory_format=torch.contiguous_format).requires_grad_(True)
