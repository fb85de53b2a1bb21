"""The interface between a method and the loop: a source of images with parameters to optimize."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from core.config import GenerationConfig, MachineConfig, TrainingConfig
from core.generation.losses import Term
from core.models.full_precision import FullPrecisionModel


class ImageSource(ABC):
    """A method, run on one network: it provides images and changes them along their gradient.

    The loop (core/generation/loop.py) runs `steps` iterations in batches. Each iteration it asks for `images(iteration)`, runs the network
    on them, computes the loss terms and their gradient for `parameters()`, and calls `advance`. It saves what `to_save` yields. The loop
    alone knows of live values, records, snapshots and checkpoints; a source knows of none of these.

    Adding a method
        1. A subclass in a file of this folder; `PixelImages` and `GeneratedImages` do most of the work.
        2. A row in core/generation/methods.py.
        3. Its own knobs in core/config/generation.py, each with `of=("its-name",)`. Live ones arrive in `values`.
        4. If it has a loss of its own in place of L_total: `terms`, and `own_loss=True` in the row.

    Rules
        Everything random comes from a torch.Generator seeded with `machine.seed` and is in `state()`: the same config and seed give the
        same bits, also after a resume at any step. Images are normalized, `(N, C, H, W)`; labels are int64 `(N,)`.

    model: the full-precision network, which stays as it is. Raises ModelError for a network that the method cannot work on.
    """

    labels: Tensor
    # of the method's own loss in place of L_total; None: it has L_total. Their functions draw nothing: what is random is drawn in `images`.
    # Their weights are live knobs, or numbers. L_BNS is recorded for every method
    terms: Sequence[Term] | None = None
    per_image = False  # whether `terms` read the statistics of each image
    batches_are_independent = True  # whether `start_batch(index)` leads to the same bits whatever was computed before

    def __init__(self, model: FullPrecisionModel, config: GenerationConfig, machine: MachineConfig) -> None:
        self.model, self.config, self.machine = model, config, machine
        # labels balanced over classes: any n images hold each class n / classes times, give or take one
        self.all_labels = balanced_labels(config.noise_images, len(model.spec.classes))

    @property
    def network(self) -> nn.Module:
        """What the loss is computed with: the full-precision network, or a copy that reads images in another way."""
        return self.model.network

    @abstractmethod
    def start_batch(self, index: int) -> None:
        """Begins batch number `index`: sets `labels` and prepares the batch."""

    @abstractmethod
    def parameters(self) -> Sequence[Tensor]:
        """The tensors with respect to which the loss is differentiated."""

    @abstractmethod
    def images(self, iteration: int) -> Tensor:
        """The images that the network sees in this iteration of the batch (from 0), with augmentation; differentiable."""

    @abstractmethod
    def advance(self, iteration: int, values: Mapping[str, float], step_size: float) -> None:
        """Changes the parameters along their gradients. values: the live knobs; step_size: the schedule's factor, 0 to 1."""

    @abstractmethod
    def current(self) -> Tensor:
        """The current images, without augmentation and without gradient."""

    def targets(self) -> Tensor:
        """What the cross entropy compares the scores with: the labels, or probabilities of the classes `(N, classes)`."""
        return self.labels

    def preview(self, count: int) -> tuple[Tensor, Tensor] | None:
        """At most `count` images and labels for people to look at, if not the first of `current`; changes no state."""
        return None

    def full_size(self) -> Tensor:
        """`current` at the network's image size."""
        return self.current()

    def end_iteration(self, iteration: int) -> None:  # noqa: B027, because most methods have nothing to do here
        """Called last in each iteration (from 0), after its images were saved and shown."""

    @abstractmethod
    def to_save(self, iteration: int, is_last: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and labels to be saved after this iteration (from 0); is_last: of the whole generation."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """The complete state of this batch between two steps: tensors and plain values."""

    @abstractmethod
    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continues from `state` with the same bits as without an interruption; `start_batch` was called before."""


class JointSource(ImageSource):
    """A source that keeps learning during quantization-aware training, which draws its batches from it instead of from an image set.

    A training calls `batch`, takes one step of the student, then calls `update`, in that order and once each per step.
    """

    def join(self, training: TrainingConfig) -> None:  # noqa: B027, because a source may not need it
        """Called before a joint training, with its settings."""

    def authors_training(self, training: TrainingConfig) -> TrainingConfig:
        """The settings of a training with the weights of the loss that the method's authors have; default: as given."""
        return training

    def authors_loss(self, images: Tensor, teacher: nn.Module, student: nn.Module) -> Tensor | None:
        """The loss of the student under the authors' protocol, a scalar; None: L_Q with the settings of `authors_training`."""
        return None

    def rate(self, step: int) -> float:
        """Factor of the student's learning rate at this step under the authors' protocol; not called under the shared one."""
        return 1.0

    @abstractmethod
    def calibration_images(self, count: int) -> tuple[Tensor, Tensor]:
        """`count` images and labels for the calibration of ranges."""

    @abstractmethod
    def batch(self, step: int, teacher: nn.Module, student: nn.Module) -> tuple[Tensor, Tensor]:
        """Images, without gradient, and labels for this step of the student (from 0)."""

    @abstractmethod
    def update(self, step: int, teacher: nn.Module, student: nn.Module) -> dict[str, float]:
        """One step of the source's own training against both networks, whose parameters and gradients do not change; figures for the
        records of the training."""


def balanced_labels(count: int, classes: int) -> Tensor:
    """Labels 0, 1, ..., classes - 1, 0, 1, ...: int64 `(count,)`."""
    return torch.arange(count) % classes
