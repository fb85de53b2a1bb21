"""PLF (Fan et al., CVPR 2024): labels are the teacher's own, one where it is sure and two where it is not.

    L_Q = alpha_kd L_KD + CE_two + mu MSE(f_Q, f_P)

f: the features that enter the classifier. H: the entropy of the teacher's probabilities p, divided by its largest value, log C. With
classes 1 and 2 the teacher's best, CE_two is the mean over images of

    CE(1)                                                       if H < t
    share (p_1 CE(1) + p_2 CE(2)) / (p_1 + p_2)                 otherwise

As in the paper for CIFAR and ImageNet, t falls linearly over the training from 0.5 to 0.2 and the share is 0.3 for images up to 64 pixels;
for larger ones 0.4 to 0.1 and 0.5. Weight and temperature of L_KD are those of the run. No code was published; the number of steps and the
decay of the learning rate are those of HAST, whose images PLF has.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.generation.features import classified_features
from core.quantization.authors.base import AuthorsImages, figures_of
from core.quantization.losses import TrainingLoss, distillation_loss

_SMALL = 64  # pixels of the longer side


class PLFStudent(AuthorsImages):
    """Training on images of PLF as by its authors."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        small = max(self.model.spec.size) <= _SMALL
        self._thresholds, self._share = ((0.5, 0.2), 0.3) if small else ((0.4, 0.1), 0.5)
        self._threshold = torch.zeros((), device=self.model.device)  # of the step; a CUDA graph reads it

    def batch(self, step: int, teacher: nn.Module, student: nn.Module) -> tuple[Tensor, Tensor]:
        self._threshold.fill_(self.threshold(step))
        return super().batch(step, teacher, student)

    def threshold(self, step: int) -> float:
        """t at this step (from 0)."""
        start, end = self._thresholds
        return start + (end - start) * step / max(1, self.config.steps - 1)

    def loss(self, images: Tensor, labels: Tensor, teacher: nn.Module, student: nn.Module, perturbed: bool = False) -> TrainingLoss:
        with torch.no_grad(), classified_features(teacher) as theirs:
            target = teacher(images)
        with classified_features(student) as own:
            scores = student(images)
        kd = distillation_loss(scores, target, self.config.temperature)
        total = self.config.alpha_kd * kd + two_label_loss(scores, target, self._threshold, self._share)
        if theirs and own:  # a network without a layer at its end has no such features
            total = total + self.config.plf_features * F.mse_loss(own[0], theirs[0])
        return figures_of(total, scores, target, labels, kd)


def two_label_loss(student: Tensor, teacher: Tensor, threshold: Tensor | float, share: float) -> Tensor:
    """CE_two of logits `(N, classes)`, of at least two classes; differentiable in `student`. threshold: t. share: of images above it."""
    log_probabilities = teacher.log_softmax(dim=1)
    probabilities = log_probabilities.exp()
    entropy = -(probabilities * log_probabilities).sum(dim=1) / math.log(teacher.shape[1])
    best, classes = probabilities.topk(2, dim=1)
    losses = -student.log_softmax(dim=1).gather(1, classes)
    both = (best * losses).sum(dim=1) / best.sum(dim=1)
    return torch.where(entropy < threshold, losses[:, 0], share * both).mean()
