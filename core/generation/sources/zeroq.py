"""ZeroQ (Cai et al., CVPR 2020): each image has the statistics of the training data by itself.

With m and s the mean and standard deviation of an image over its positions, and M and S those of the running statistics,

    L_ZeroQ = 1 / N  sum over images, layers  ||M - m||^2 + ||S - s||^2

over the input of each BatchNorm layer and over the image itself, with M = 0 and S = 1. No labels, no prior. All images are drawn to the
same statistics, so they resemble each other.

As in the authors' code, squares are summed over channels, and the step size of Adam falls from 0.5 to no less than 1e-4. Unlike there,
pixels stay between black and white, and the input of each BatchNorm layer is measured itself: the code takes the k-th convolution's
output for the k-th layer's input, which is wrong where a convolution has no BatchNorm layer.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from core.generation.bn_statistics import image_statistics
from core.generation.losses import ForwardOutputs, Term
from core.generation.sources.pixels import AdamImages

_EPS = 1e-6  # added to every variance before its root


def image_loss(outputs: ForwardOutputs) -> Tensor:
    """L_ZeroQ of a batch, a scalar."""
    means, deviations = image_gaps(outputs)
    return (means.square().sum() + deviations.square().sum()) / len(outputs.images)


def image_gaps(outputs: ForwardOutputs) -> tuple[Tensor, Tensor]:
    """M - m and S - s `(N, channels)` of every layer in turn, and last of the images themselves."""
    assert outputs.statistics is not None
    means, deviations = [], []
    for (running_mean, running_variance), passes in zip(outputs.statistics.running, outputs.statistics.images):
        means += [running_mean - mean for mean, _ in passes]
        deviations += [root(running_variance) - root(variance) for _, variance in passes]
    mean, variance = image_statistics(outputs.images)
    means.append(-mean)
    deviations.append(1.0 - root(variance))
    return torch.cat(means, dim=1), torch.cat(deviations, dim=1)


def root(variance: Tensor) -> Tensor:
    """The standard deviation."""
    return (variance + _EPS).sqrt()


class ZeroQImages(AdamImages):
    """Adam on the distance of each image's statistics from the running ones."""

    step_knob = "zeroq_lr"
    smallest = 1e-4
    per_image = True
    terms: Sequence[Term] = (Term("zeroq", "L_ZeroQ", "statistics of each image", 1.0, image_loss),)
