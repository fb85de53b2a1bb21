"""The image loop of DeepInversion for CIFAR-10, reimplemented for comparison.

Yin et al., "Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion", CVPR 2020; their program for CIFAR-10 is
cifar10/deepinversion_cifar10.py of NVlabs/DeepInversion. This module was written after reading it and shares no code with it.

One iteration:
  1. shift the whole batch by -2 to 2 pixels in each direction, with wraparound;
  2. clear the gradients of the images and of the network;
  3. forward pass; a hook on each BatchNorm2d computes the mean of its input and, from a copy with the channels first, the biased
     variance, and adds ||running variance - variance||_2 + ||running mean - mean||_2;
  4. loss = cross entropy + 2.5e-5 TV + 100 times the sum over the hooks + 0 l2. TV is the sum of the l2 norms, over the whole batch, of
     the differences to four neighbors. The l2 norm is computed although its weight is 0;
  5. read the loss twice as a Python number, once to remember the best images. These share their memory with the images, so that the best
     images are always the last ones;
  6. backward pass, also through the weights of the network, which are not frozen; one step of Adam (lr 0.1, torch's default betas).
Images are not clamped. The values above are the defaults of their command line, as are 2,000 iterations and batches of 256; their
README gives other weights (10 for the statistics, lr 0.05 as in the paper, TV 0.001), which cost the same.

Differences from the original, and why:
  - the network is ours (ResNet-20; theirs is a ResNet-34), and starting noise and labels are given, so that all peers start alike;
  - no Adaptive DeepInversion: its weight is 0 by default, and then they do not run the student either;
  - no report and no image file in every 200th iteration: neither is part of making images;
  - shifts come from our own generator, so that a run can be repeated.
"""

import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers.plain import plain_copy, plain_images
from core.models.full_precision import FullPrecisionModel


class StatisticsHook:
    """Distance of the input of a BatchNorm layer to its running statistics, computed during the forward pass."""

    def __init__(self, layer: nn.BatchNorm2d) -> None:
        self.distance: Tensor | None = None
        self._handle = layer.register_forward_hook(self._after)

    def _after(self, layer: nn.BatchNorm2d, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        x = inputs[0]
        mean = x.mean([0, 2, 3])
        # a copy of every activation and a second pass over it, as in the original
        variance = x.permute(1, 0, 2, 3).contiguous().view(x.shape[1], -1).var(1, unbiased=False)
        running_mean, running_variance = layer.running_mean.data.type(x.type()), layer.running_var.data.type(x.type())
        self.distance = torch.norm(running_variance - variance, 2) + torch.norm(running_mean - mean, 2)

    def remove(self) -> None:
        self._handle.remove()


class DeepInversion:
    """Optimizes one batch of images.

    model: does not change. labels: `(N,)`. images: normalized noise `(N, 3, H, W)`. freeze: see `plain_copy`; the original does not.
    """

    iterations = 2000  # --iters_mi of their command line
    learning_rate = 0.1  # --di_lr
    statistics_weight = 100.0  # --r_feature_weight
    variation_weight = 2.5e-5  # --di_var_scale
    l2_weight = 0.0  # --di_l2_scale
    max_shift = 2

    def __init__(self, model: FullPrecisionModel, labels: Tensor, images: Tensor, freeze: bool = False) -> None:
        self.network = plain_copy(model, freeze)
        self.labels = labels
        self.loss = float("nan")
        self.best_loss = 1e6  # initial value of the original
        self._images = plain_images(images)
        self.best_images = self._images.data
        self._random = random.Random(0)
        self._optimizer = torch.optim.Adam([self._images], lr=self.learning_rate)
        self._hooks = [StatisticsHook(layer) for layer in self.network.modules() if isinstance(layer, nn.BatchNorm2d)]

    @property
    def images(self) -> Tensor:
        """`(N, 3, H, W)`, normalized."""
        return self._images.detach()

    def step(self) -> None:
        """One iteration, see the docstring of this module."""
        shifts = (self._random.randint(-self.max_shift, self.max_shift), self._random.randint(-self.max_shift, self.max_shift))
        shifted = torch.roll(self._images, shifts=shifts, dims=(2, 3))

        self._optimizer.zero_grad()
        self.network.zero_grad()
        target = F.cross_entropy(self.network(shifted), self.labels)
        target.item()  # for their report; waits for the device in every iteration
        loss = target + self.variation_weight * variation(shifted)
        loss = loss + self.statistics_weight * sum(hook.distance for hook in self._hooks)
        loss = loss + self.l2_weight * torch.norm(shifted, 2)

        self.loss = loss.item()
        if self.loss < self.best_loss:
            self.best_loss = loss.item()
            self.best_images = self._images.data
        loss.backward()
        self._optimizer.step()

    def close(self) -> None:
        """Removes the hooks."""
        for hook in self._hooks:
            hook.remove()


def variation(images: Tensor) -> Tensor:
    """Sum of four l2 norms, each of the differences of all images `(N, C, H, W)` to one neighbor: right, lower, two diagonals."""
    right = images[:, :, :, :-1] - images[:, :, :, 1:]
    lower = images[:, :, :-1, :] - images[:, :, 1:, :]
    rising = images[:, :, 1:, :-1] - images[:, :, :-1, 1:]
    falling = images[:, :, :-1, :-1] - images[:, :, 1:, 1:]
    return torch.norm(right) + torch.norm(lower) + torch.norm(rising) + torch.norm(falling)
