"""HAST (Li et al., CVPR 2023): images that the network finds hard.

    L = L_stat + beta mean over images of (1 - p_y)^gamma CE

L_stat: `squared_gaps`. p_y: the probability that the network gives to the label; the gradient goes through it as well. The more confidently
an image is recognized, the less it counts.

beta = 10 and gamma = 2 are those of the authors' code for CIFAR. For ImageNet it has 0.1 and 0.5, and crops in half of the iterations, as
IntraQ does. Unlike there, labels are balanced instead of drawn, pixels stay between black and white, and the variance is the unbiased one.
"""

from typing import Any

import torch
from torch import Tensor

from core.data.augment import resized_crops
from core.generation.losses import ForwardOutputs, Term
from core.generation.method_terms import statistics_loss
from core.generation.sources.pixels import AdamImages

_LEAST = 1e-6  # of 1 - p_y, whose root has no gradient at 0
_AREA = 0.5  # the smallest share of the area in a crop


class HASTImages(AdamImages):
    """Adam on the statistics of the batch and a focal cross entropy.

    beta_knob: weight of the cross entropy. gamma_knob: the knob of its exponent; "": 0, the plain cross entropy.
    """

    step_knob = "hast_lr"
    beta_knob = "hast_beta"
    gamma_knob = "hast_gamma"
    smallest = 1e-4

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        gamma = getattr(self.config, self.gamma_knob) if self.gamma_knob else 0.0
        title = "focal cross entropy" if gamma else "cross entropy"
        self.terms = (
            Term("stat", "L_stat", "statistics of the batch", 1.0, statistics_loss),
            Term("ce", "L_CE", title, self.beta_knob, lambda outputs: _of_outputs(outputs, gamma)),
        )

    def images(self, iteration: int) -> Tensor:
        images = super().images(iteration)
        if torch.rand(1, generator=self._random).item() < self.config.hard_crop:
            return resized_crops(images, _AREA, self._random)
        return images


def _of_outputs(outputs: ForwardOutputs, gamma: float) -> Tensor:
    return focal_cross_entropy(outputs.logits, outputs.labels, gamma)


def focal_cross_entropy(logits: Tensor, labels: Tensor, gamma: float) -> Tensor:
    """Mean over images of -(1 - p_y)^gamma log p_y for logits `(N, classes)` and labels `(N,)`; gamma >= 0 (Lin et al., ICCV 2017)."""
    log_probabilities = logits.log_softmax(dim=1).gather(1, labels[:, None])[:, 0]
    # 1 - p_y without the rounding of p_y
    rest = (-torch.expm1(log_probabilities)).clamp_min(_LEAST)
    return -(rest**gamma * log_probabilities).mean()
