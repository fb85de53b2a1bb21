"""GDFQ (Xu et al., ECCV 2020): a generator conditioned on the class, and the protocol in which it learns together with the student."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from core.config import TrainingConfig
from core.generation.generators import EmbeddingGenerator, GeneratorBody
from core.generation.losses import Term
from core.generation.method_terms import CROSS_ENTROPY, SQUARED_GAPS
from core.generation.sources.generated import GeneratedImages

SMALL = 64  # pixels of the longer side, up to which "auto" conditions by an embedding
_TEMPERATURE = 20.0  # of the student


class GDFQ(GeneratedImages):
    """L_G = beta CE(teacher(G(z, y)), y) + alpha_bns BNS, with BNS the mean squared gaps of `squared_gaps` and y uniform.

    Under the shared protocol the generator is trained first and its images are stored. Under the authors', each iteration draws z and y,
    steps the generator, and then the student on the same images, on

        L_Q = CE(student(x), y) + T^2 mean over images and classes of KL(teacher || student),    T = 20,

    and the learning rates of both become a tenth after 1/4, 1/2 and 3/4 of the steps.
    """

    betas = (0.5, 0.999)
    terms: Sequence[Term] | None = (CROSS_ENTROPY, SQUARED_GAPS)

    def make_generator(self) -> nn.Module:
        classes, shape = len(self.model.spec.classes), self.model.spec.shape
        conditioning = self.config.conditioning
        if conditioning == "auto":
            conditioning = "embedding" if max(self.model.spec.size) <= SMALL else "batch-norm"
        if conditioning == "embedding":
            return EmbeddingGenerator(self.latent, shape, classes)
        return GeneratorBody(self.latent, shape, classes)

    def authors_training(self, training: TrainingConfig) -> TrainingConfig:
        # the mean over classes, too, is a weight of 1 / classes here
        return replace(training, alpha_ce=1.0, alpha_kd=1.0 / len(self.model.spec.classes), temperature=_TEMPERATURE, alpha_feature=0.0)

    def batch(self, step: int, teacher: nn.Module, student: nn.Module) -> tuple[Tensor, Tensor]:
        """Images before the generator's step, on which the student takes its own."""
        images, self._loss = self._joint_step(step, teacher, student)
        return images, self.targets()

    def update(self, step: int, teacher: nn.Module, student: nn.Module) -> dict[str, Any]:
        return {"generator": self._loss}
