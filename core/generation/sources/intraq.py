"""IntraQ (Zhong et al., CVPR 2022): images of a class that differ from each other.

    L = L_stat + L_SI + L_near + L_far

L_stat: mean over BatchNorm layers of MSE(batch mean, running mean) + MSE(batch variance, running variance), means over channels.
Local object reinforcement: in half of the iterations, every image is cropped at random and mirrored before the forward pass.
L_SI, soft inception: mean of (p_y - t)^2, with p_y the probability of the label and t the target of the image: 1 or, for half of the
images, uniform between epsilon and 1.
Margins: with d the cosine distance of the features of an image, the input of the last layer, from the mean features of all images of its
class in earlier batches,

    L_near = mean max(lambda_l - d, 0)        L_far = mean max(d - lambda_u, 0)

over the images of classes that have such a mean; the first batch has none.

The constants are those of the authors' code for CIFAR-10. Unlike there, labels are balanced instead of drawn, pixels stay between black and
white, and the variance is the unbiased one, as the running variance is.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from core.data.augment import resized_crops
from core.errors import ModelError
from core.generation.features import classified_features
from core.generation.losses import ForwardOutputs, Term
from core.generation.method_terms import statistics_loss
from core.generation.sources.pixels import AdamImages


class IntraQImages(AdamImages):
    """Adam on crops of the images, with soft targets and margins between images of a class."""

    batches_are_independent = False  # classes have centers, to which every batch adds
    step_knob = "intraq_lr"
    smallest = 1e-4

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        classes = len(self.model.spec.classes)
        self._sums: Tensor | None = None  # (classes, F), of the features of earlier images
        self._counts = torch.zeros(classes, device=self.model.device)
        near, far = self.config.intraq_near, self.config.intraq_far
        own = (
            Term("stat", "L_stat", "statistics of the batch", 1.0, statistics_loss),
            Term("inception", "L_SI", "soft inception", "intraq_beta", self._inception),
            Term("near", "L_near", "closeness within a class", 1.0, lambda outputs: self._margin(outputs, near, -1), features=True),
            Term("far", "L_far", "distance within a class", 1.0, lambda outputs: self._margin(outputs, far, 1), features=True),
        )
        self.terms = [replace(term, recordable=False) for term in own]  # their values change outside of the forward pass

    def start_batch(self, index: int) -> None:
        super().start_batch(index)
        is_soft, drawn = torch.rand(2, len(self.labels), generator=self._random).to(self.model.device)
        self._targets = torch.where(is_soft < 0.5, self.config.intraq_target + (1 - self.config.intraq_target) * drawn, 1.0)

    def images(self, iteration: int) -> Tensor:
        images = super().images(iteration)
        crops = resized_crops(images, self.config.intraq_area, self._random)
        return crops if torch.rand(1, generator=self._random).item() < self.config.intraq_crop else images

    def _inception(self, outputs: ForwardOutputs) -> Tensor:
        return soft_inception(outputs.logits, outputs.labels, self._targets)

    def _margin(self, outputs: ForwardOutputs, end: float, side: int) -> Tensor:
        """How far distances are beyond an end of their interval; side: 1 for the upper end, -1 for the lower one."""
        if outputs.features is None:
            raise ModelError(f"{self.model.spec.name} must have a linear or convolutional layer of its own at its end, got none")
        if self._sums is None:
            return outputs.logits.new_zeros(())
        return margin_loss(outputs.features, outputs.labels, self._sums, self._counts, end, side)

    def advance(self, iteration: int, values: Mapping[str, float], step_size: float) -> None:
        super().advance(iteration, values, step_size)
        if iteration == self.config.iterations - 1:
            self._remember()

    @torch.no_grad()
    def _remember(self) -> None:
        """Adds the features of the finished batch to those of earlier images."""
        with classified_features(self.model.network) as found:
            self.model.network(self.pixels)
        for features in found:
            if self._sums is None:
                self._sums = features.new_zeros(len(self._counts), features.shape[1])
            self._sums.index_add_(0, self.labels, features)
            self._counts += torch.bincount(self.labels, minlength=len(self._counts))

    def state(self) -> dict[str, Any]:
        sums = None if self._sums is None else self._sums.clone()
        return {**super().state(), "feature_sums": sums, "feature_counts": self._counts.clone()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        super().load_state(state)
        sums = state["feature_sums"]
        self._sums = None if sums is None else sums.to(self.model.device)
        self._counts = state["feature_counts"].to(self.model.device)


def soft_inception(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """L_SI of logits `(N, classes)` and targets of the labels' probabilities `(N,)`."""
    probabilities = logits.softmax(dim=1).gather(1, labels[:, None])[:, 0]
    return (probabilities - targets).square().mean()


def margin_loss(features: Tensor, labels: Tensor, sums: Tensor, counts: Tensor, end: float, side: int) -> Tensor:
    """L_far with side 1 and end lambda_u, L_near with side -1 and end lambda_l, of features `(N, F)`.

    sums `(classes, F)`, counts `(classes,)`: of the features of earlier images of each class. 0 if no class of the labels has any.
    """
    known = (counts[labels] > 0).to(features.dtype)
    # the direction of the sum is that of the mean
    distances = 1 - F.cosine_similarity(features, sums[labels], dim=1)
    return ((side * (distances - end)).clamp_min(0) * known).sum() / known.sum().clamp_min(1)
