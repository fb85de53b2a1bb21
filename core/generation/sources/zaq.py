"""ZAQ (Liu et al., Zero-shot Adversarial Quantization, CVPR 2021): a generator that looks for images on which the student errs."""

from typing import Any

import torch
from torch import Tensor, nn

from core.generation.feature_relations import feature_relations
from core.generation.generators import GeneratorBody
from core.generation.method_terms import ACTIVATION
from core.generation.sources.generated import GeneratedImages

_EPS = 1e-5  # of the inner BatchNorm layers: torch's default


class ZAQ(GeneratedImages):
    """L_G = -L1 - alpha_relations SCRM - alpha_activation mean |f|,    L_Q = L1 + alpha_relations SCRM.

    L1 is the mean absolute difference of the scores of student and teacher, SCRM that of their feature maps (`feature_relations`), and f
    what enters the teacher's classifier. The generator knows no labels; those of saved images are the teacher's classes.

    The generator takes a step after every `student_steps` steps of the student. Without a student, in the generation stage, only the last
    term is left. The student has L_Q under the authors' protocol only, and its BatchNorm statistics are frozen under either; in the
    authors' code they follow the generated images.
    """

    latent = 256
    terms = (ACTIVATION,)
    milestones = (1 / 3, 2 / 3)  # epochs 100 and 200 of 300

    def make_generator(self) -> nn.Module:
        return GeneratorBody(self.latent, self.model.spec.shape, eps=_EPS)

    def images(self, iteration: int) -> Tensor:
        images = super().images(iteration)
        self.labels = self._classes(images)
        return images

    @torch.no_grad()
    def _classes(self, images: Tensor) -> Tensor:
        return self.model.network(images.contiguous(memory_format=torch.channels_last)).argmax(dim=1)

    @torch.no_grad()
    def current(self) -> Tensor:
        images = super().current()
        self.labels = self._classes(images)
        return images

    @torch.no_grad()
    def preview(self, count: int) -> tuple[Tensor, Tensor]:
        images, _ = super().preview(count)
        return images, self._classes(images)

    @torch.no_grad()
    def sample(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        images, _ = super().sample(labels)
        return images, self._classes(images)

    def student_loss(self, images: Tensor, labels: Tensor, teacher: nn.Module, student: nn.Module) -> Tensor:
        return -self.authors_loss(images, teacher, student)

    def authors_loss(self, images: Tensor, teacher: nn.Module, student: nn.Module) -> Tensor:
        distance, relations = feature_relations(images, teacher, student)
        return distance + self._value("alpha_relations") * relations

    def update(self, step: int, teacher: nn.Module, student: nn.Module) -> dict[str, Any]:
        if (step + 1) % self.config.student_steps:
            return {}
        return super().update(step, teacher, student)
