"""SynQ (Kim et al., ICLR 2025): the student of HAST, on images without high frequencies, which looks at the same places as the teacher.

    L(x) = 20 L_KD + lambda FA        L_Q = L(x) + 50 CAM + 0.5 CE_easy + L(x + eps sign(d/dx (L + 50 CAM + 0.5 CE_easy)))

CAM: mean squared difference of the two networks' maps of core/quantization/class_activation.py. CE_easy: cross entropy to the label, summed
over the images with 1 - p_y < tau and divided by the number of all images; p_y: the teacher's probability of the label. Images are
low-pass filtered; the default cutoff, 80 for 224 pixels and in proportion for others, is the authors' for ImageNet.

The weights are those of the authors' script for ImageNet, but for lambda, whose default is that of HAST for CIFAR-10; they published no
settings for CIFAR. Faults of their code that are not repeated:

- An image without a cross entropy has scores of zero and label 0 there, which adds log C and no gradient.
- For CIFAR, the precedence of an operator drops FA from the loss of the perturbed copy.
- A cutoff of 80 for images of 32 pixels, whose highest frequency is 22.6, removes 4 % of it.
- The hooks of Grad-CAM are added in every step and stay, and each time the network sees an image of zeros, which moves its ranges.

Learning rates fall as in HAST.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.data.low_pass import low_pass
from core.quantization.authors.hast import HASTStudent
from core.quantization.class_activation import class_activation, last_activations
from core.quantization.losses import TrainingLoss

_CUTOFF, _PIXELS = 80.0, 224  # of the authors, and the shorter side of their images
_ALPHA_CE = 0.5


class SynQStudent(HASTStudent):
    """Training on images of SynQ as by its authors."""

    @property
    def cutoff(self) -> float:
        """Of the low-pass filter, in periods per image."""
        return self.config.low_pass or _CUTOFF * min(self.model.spec.size) / _PIXELS

    def _seen(self, pixels: Tensor) -> Tensor:
        return low_pass(super()._seen(pixels), self.cutoff)

    def loss(self, images: Tensor, labels: Tensor, teacher: nn.Module, student: nn.Module, perturbed: bool = False) -> TrainingLoss:
        if perturbed:
            return super().loss(images, labels, teacher, student)
        if not images.requires_grad:
            images = images.detach().requires_grad_(True)  # so that the teacher's scores have a gradient
        with last_activations(teacher) as theirs, last_activations(student) as own:
            loss, scores, target = self._compared(images, labels, teacher, student)
        size = (images.shape[2], images.shape[3])
        cam = F.mse_loss(class_activation(own[0], scores, size), class_activation(theirs[0], target, size))
        easy = easy_cross_entropy(scores, target, labels, self.config.synq_easy)
        return loss._replace(total=loss.total + self.config.alpha_cam * cam + _ALPHA_CE * easy)


def easy_cross_entropy(student: Tensor, teacher: Tensor, labels: Tensor, hardest: float) -> Tensor:
    """CE_easy of logits `(N, classes)` and labels `(N,)`; differentiable in `student`. hardest: tau."""
    with torch.no_grad():
        difficulty = 1 - teacher.softmax(dim=1).gather(1, labels[:, None])[:, 0]
    losses = F.cross_entropy(student, labels, reduction="none")
    return (losses * (difficulty < hardest)).mean()
