"""Where the images of a training come from: a finished set, or a source that learns together with the student."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from core.config import TrainingConfig
from core.data.augment import crop_and_flip, cutmix
from core.data.image_sets import ImageSet
from core.models.full_precision import FullPrecisionModel


class TrainingSource(Protocol):
    """The images of a training. `ImageSetSource` draws them from a set; joint methods (core/generation/sources) make them in each step.

    Order of calls
        `calibration_images` once, before the student exists. Then in each step `batch`, a step of the student, and `update`. A training
        that resumes calls `load_state` after `calibration_images`.

    Rules
        Everything random comes from a generator that is in `state`: the same seed gives the same bits, also after a resume at any step.
        `update` may differentiate through teacher and student and take steps of its own parameters, but leaves the parameters, buffers
        and gradients of both networks unchanged. For gradients of its own parameters, `torch.autograd.grad` does that; `backward` does
        not. On a GPU only the student's step is captured as a CUDA graph, never `batch` or `update`, so both may read tensor values.
    """

    def calibration_images(self, count: int) -> tuple[Tensor, Tensor]:
        """At most `count` images for the calibration, uint8 pixels or normalized float `(N, C, H, W)`, and labels int64 `(N,)`."""

    def batch(self, step: int, teacher: nn.Module, student: nn.Module) -> tuple[Tensor, Tensor]:
        """Normalized images `(N, C, H, W)` without gradient, and labels int64 `(N,)` or shares of the classes `(N, classes)`, of this step
        of the student (from 0)."""

    def update(self, step: int, teacher: nn.Module, student: nn.Module) -> dict[str, float]:
        """The source's own step after the student's (from 0). Returns figures for the records of the training."""

    def state(self) -> Mapping[str, Any]:
        """Everything that decides what follows, between two steps: tensors and plain values."""

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continues where `state` was taken, to the same bits. The tensors may be on another device."""


class ImageSetSource:
    """Batches of a finished set in random order, shifted, flipped, and mixed at random as the config says.

    An image comes again only when all others have been used. The last batch of an order may be smaller.
    """

    def __init__(self, images: ImageSet, model: FullPrecisionModel, config: TrainingConfig, seed: int) -> None:
        self.images, self.model, self.config = images, model, config
        self.calibrated_on = torch.empty(0, dtype=torch.long)  # indices of the images of the calibration
        self._random = torch.Generator().manual_seed(seed)
        self._order = torch.empty(0, dtype=torch.long)

    def calibration_images(self, count: int) -> tuple[Tensor, Tensor]:
        """uint8 pixels, drawn without replacement."""
        self.calibrated_on = torch.randperm(len(self.images), generator=self._random)[:count]
        return self.images.images[self.calibrated_on], self.images.labels[self.calibrated_on]

    def batch(self, step: int, teacher: nn.Module, student: nn.Module) -> tuple[Tensor, Tensor]:
        if len(self._order) == 0:
            self._order = torch.randperm(len(self.images), generator=self._random)
        size, device = self.config.training_batch_size, self.model.device
        index, self._order = self._order[:size], self._order[size:]
        images, labels = self._seen(self.images.images[index].to(device)), self.images.labels[index].to(device)
        share = self.config.cutmix_share
        if share and float(torch.rand((), generator=self._random)) < share:
            return cutmix(images, labels, len(self.model.spec.classes), self._random)
        return images, labels

    def _seen(self, pixels: Tensor) -> Tensor:
        """Normalized images of uint8 pixels, shifted and flipped at random."""
        return self.model.normalize(crop_and_flip(pixels, self.config.crop_padding, self.config.training_flip, self._random))

    def update(self, step: int, teacher: nn.Module, student: nn.Module) -> dict[str, float]:
        return {}

    def state(self) -> Mapping[str, Any]:
        # a copy of the order, because it is a view, and torch.save would write all of the tensor behind it
        return {"order": self._order.clone(), "random": self._random.get_state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._order = state["order"]
        self._random.set_state(state["random"])
