"""How the authors of a method that moves pixels train the student on its images."""

import importlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from core.config import TrainingConfig
from core.config.choices import AUTHORS
from core.data.augment import resized_crops
from core.data.image_sets import ImageSet, check_images
from core.generation.methods import METHODS
from core.models.full_precision import FullPrecisionModel
from core.quantization.losses import TrainingLoss, training_loss
from core.quantization.sources import ImageSetSource

_AREA = 0.5  # the smallest share of the area in a crop


class AuthorsImages(ImageSetSource):
    """A finished set under its authors' protocol: the loss of the student, its learning rates, and what is done to the images before it
    sees them. Every image is cropped at random, to at least half of its area, and mirrored.

    Adding one
        A subclass in this folder, and `student` of the method's row. Either `authors_training`, if the loss is L_Q with other weights, or
        `loss`. On a GPU, `loss` is captured as a CUDA graph: it reads no tensor values, and what changes from step to step is in tensors
        that `batch` writes to.
    """

    # shares of the training after which the learning rate becomes a tenth: after epochs 20, 40 and 60 of the authors' 151, without the
    # first 4, in which their networks only find the ranges
    milestones: Sequence[float] = (16 / 147, 36 / 147, 56 / 147)

    @property
    def perturbation(self) -> float:
        """By how much each pixel of a perturbed copy differs, which the student is also trained on; 0: there is none."""
        return 0.0

    def authors_training(self, training: TrainingConfig) -> TrainingConfig:
        """The settings of a training with the authors' weights of L_Q."""
        return training

    def loss(self, images: Tensor, labels: Tensor, teacher: nn.Module, student: nn.Module, perturbed: bool = False) -> TrainingLoss:
        """The student's loss on images `(N, C, H, W)` with labels `(N,)`, differentiable in the student's parameters and the images.

        perturbed: for the perturbed copy, whose loss is added.
        """
        return training_loss(student, teacher, images, labels, self.authors_training(self.config))

    def rate(self, step: int) -> float:
        """Factor of the learning rate at this step (from 0)."""
        return 0.1 ** sum(step >= milestone * self.config.steps for milestone in self.milestones)

    def _seen(self, pixels: Tensor) -> Tensor:
        return resized_crops(self.model.normalize(pixels), _AREA, self._random)


def authors_images(method: str, images: ImageSet, model: FullPrecisionModel, config: TrainingConfig, seed: int = 0) -> AuthorsImages | None:
    """The images of a method for a training by its authors' protocol; None under the shared protocol, and for a method without one.

    Raises DataError if the images do not fit the network.
    """
    if config.protocol != AUTHORS or method not in METHODS or METHODS[method].student is None:
        return None
    check_images(model, images)
    student = METHODS[method].student
    if isinstance(student, str):
        module, _, class_name = student.partition(":")
        student = getattr(importlib.import_module(module), class_name)
    found: AuthorsImages = student(images, model, config, seed)
    return found


def figures_of(total: Tensor, scores: Tensor, target: Tensor, labels: Tensor, kd: Tensor) -> TrainingLoss:
    """The loss with its figures. scores, target: logits of student and teacher `(N, classes)`. kd: L_KD."""
    with torch.no_grad():
        ce = torch.nn.functional.cross_entropy(scores, labels)
        agreement = (scores.argmax(dim=1) == target.argmax(dim=1)).float().mean()
    return TrainingLoss(total, ce, kd, agreement)
