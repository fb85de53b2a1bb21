"""HAST (Li et al., CVPR 2023): the student learns channel attentions, and resists perturbations.

    L(x) = 20 L_KD + lambda FA        L_Q = L(x) + L(x + eps sign(dL/dx))

with T = 20 and FA of core/quantization/attention.py. As in the authors' code, no label takes part, and learning rates fall to a tenth at
epochs 20, 40 and 60. For MobileNet they compare the last BatchNorm layer of every block; here only blocks with an addition count. The
gradient dL/dx goes through both networks, so that the copy raises L itself.
"""

from typing import Any

from torch import Tensor, nn

from core.quantization.attention import attention_loss, body_layers, channel_attentions
from core.quantization.authors.base import AuthorsImages, figures_of
from core.quantization.losses import TrainingLoss, distillation_loss

ALPHA_KD = TEMPERATURE = 20.0


class HASTStudent(AuthorsImages):
    """Training on images of HAST as by its authors."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._bodies: list[str] = []

    @property
    def perturbation(self) -> float:
        return self.config.perturbation

    def loss(self, images: Tensor, labels: Tensor, teacher: nn.Module, student: nn.Module, perturbed: bool = False) -> TrainingLoss:
        return self._compared(images, labels, teacher, student)[0]

    def _compared(self, images: Tensor, labels: Tensor, teacher: nn.Module, student: nn.Module) -> tuple[TrainingLoss, Tensor, Tensor]:
        """L(x), and the scores of student and teacher."""
        self._bodies = self._bodies or body_layers(student)
        with channel_attentions(teacher, self._bodies) as theirs:
            target = teacher(images)
        with channel_attentions(student, self._bodies) as own:
            scores = student(images)
        kd = distillation_loss(scores, target, TEMPERATURE)
        total = ALPHA_KD * kd + self.config.alpha_attention * attention_loss(own, theirs)
        return figures_of(total, scores, target, labels, kd), scores, target
