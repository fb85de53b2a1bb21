"""Methods that train a generator, before the student and optionally together with it."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from core.config import TrainingConfig
from core.config.choices import AUTHORS
from core.errors import CoreError
from core.generation.forward_pass import ForwardPass
from core.generation.scale import to_own_scale
from core.generation.sources.base import JointSource, balanced_labels
from core.models.divergence import are_finite


class GeneratedImages(JointSource):
    """Images that a generator makes from Gaussian noise z `(N, latent)` and labels, conditioned on them as in GDFQ (Xu et al., ECCV 2020).

    The generation stage trains it on `terms` of the full-precision network alone, one step of Adam on `generator_batch_size` fresh images
    in each iteration, and saves `config.saved_images` images with balanced labels at its end. A joint training continues from there: in
    each step of the student the generator takes one as well, on its terms and `student_loss`, with `config.training_batch_size` images.
    Live values keep what they were set to last. Subclasses define the generator, and may change everything else.
    """

    batches_are_independent = False  # they are one training
    latent = 100  # as published
    betas = (0.9, 0.999)  # of Adam
    # share of a joint training after which the learning rates of generator and student become a tenth, under the authors' protocol
    milestones: Sequence[float] = (0.25, 0.5, 0.75)

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.latent = self.config.latent or self.published_latent()
        self._values: dict[str, float] = {}
        self._training: TrainingConfig | None = None
        self._random = torch.Generator().manual_seed(self.machine.seed)
        with torch.random.fork_rng():
            torch.manual_seed(self.machine.seed)
            self.generator = self.make_generator().to(self.model.device).to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.Adam(self.generator.parameters(), lr=self.config.generator_lr, betas=self.betas)
        self.start_batch(0)
        self._preview, _ = self._draw(self._batch_size)
        self._forward: ForwardPass | None = None

    def published_latent(self) -> int:
        """Length of z in the method's paper."""
        return self.latent

    @abstractmethod
    def make_generator(self) -> nn.Module:
        """A module from z `(N, latent)` and labels `(N,)` to images `(N, C, H, W)` of zero mean and unit variance."""

    def student_loss(self, images: Tensor, labels: Tensor, teacher: nn.Module, student: nn.Module) -> Tensor:
        """A scalar that is added to the generator's loss in a joint training, differentiable in the images; default: zero."""
        return images.new_zeros(())

    def start_batch(self, index: int) -> None:
        self._batch = index

    @property
    def _batch_size(self) -> int:
        return self.config.generator_batch_size if self._training is None else self._training.training_batch_size

    def _value(self, name: str) -> float:
        """The value of a live knob."""
        return self._values.get(name, getattr(self.config, name))

    def _draw(self, count: int) -> tuple[Tensor, Tensor]:
        """z and labels, uniform over the classes, for `count` images."""
        z = torch.randn(count, self.latent, generator=self._random)
        labels = torch.randint(len(self.model.spec.classes), (count,), generator=self._random)
        return z.to(self.model.device), labels.to(self.model.device)

    def _generated(self, z: Tensor, labels: Tensor) -> Tensor:
        return self._scaled(self.generator(z, labels))

    def _scaled(self, images: Tensor) -> Tensor:
        """Generated images in the scale of the network."""
        return to_own_scale(images, self.model)

    def parameters(self) -> Sequence[Tensor]:
        return list(self.generator.parameters())

    def images(self, iteration: int) -> Tensor:
        """Fresh images for a step of the generator; sets `labels`."""
        z, self.labels = self._draw(self._batch_size)
        return self._generated(z, self.labels)

    def advance(self, iteration: int, values: Mapping[str, float], step_size: float) -> None:
        self._values = dict(values)
        if self.config.schedule == "linear":  # over all batches, which are one training
            done = self._batch * self.config.iterations + iteration
            step_size = 1.0 - 0.98 * done / max(1, self._iterations - 1)
        self._step(step_size)

    def _step(self, factor: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self._value("generator_lr") * factor
        self.optimizer.step()

    @property
    def _iterations(self) -> int:
        """Of the generation stage."""
        return len(self.config.batches) * self.config.iterations

    @torch.no_grad()
    def current(self) -> Tensor:
        z, self.labels = self._preview, self._preview_labels()
        return self._generated(z, self.labels)

    def _preview_labels(self) -> Tensor:
        return balanced_labels(len(self._preview), len(self.model.spec.classes)).to(self.model.device)

    @torch.no_grad()
    def preview(self, count: int) -> tuple[Tensor, Tensor]:
        """Images of the same z and labels in every iteration."""
        labels = self._preview_labels()
        return self._generated(self._preview, labels)[:count], labels[:count]

    @torch.no_grad()
    def to_save(self, iteration: int, is_last: bool) -> Iterator[tuple[Tensor, Tensor]]:
        if not is_last:
            return
        labels = balanced_labels(self.config.saved_images, len(self.model.spec.classes))
        for part in labels.split(self.config.batch_size):
            yield self.sample(part.to(self.model.device))

    @torch.no_grad()
    def sample(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Images of these labels `(N,)`, and the labels to save them with."""
        z, _ = self._draw(len(labels))
        return self._generated(z, labels), labels

    def state(self) -> dict[str, Any]:
        return {
            "generator": self.generator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": self._random.get_state(),
            "preview": self._preview,
            "live": dict(self._values),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.generator.load_state_dict(state["generator"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._random.set_state(state["random"])
        self._preview = state["preview"].to(self.model.device)
        self._values = dict(state["live"])

    def join(self, training: TrainingConfig) -> None:
        self._training = training

    def calibration_images(self, count: int) -> tuple[Tensor, Tensor]:
        return self.sample(self._draw(count)[1])

    @torch.no_grad()
    def batch(self, step: int, teacher: nn.Module, student: nn.Module) -> tuple[Tensor, Tensor]:
        return self.images(step), self.targets()

    def update(self, step: int, teacher: nn.Module, student: nn.Module) -> dict[str, float]:
        return {"generator": self._joint_step(step, teacher, student)[1]}

    def _joint_step(self, step: int, teacher: nn.Module, student: nn.Module) -> tuple[Tensor, float]:
        """One step of the generator in a joint training; the images that it was taken on, and the loss."""
        self._forward = self._forward or ForwardPass(self.model.network, self.terms)
        with torch.enable_grad():
            images = self.images(step)
            weights = {name: self._value(name) for name in self._forward.weights}
            loss, *_ = self._forward(images, self.targets(), weights)
            loss = loss + self.student_loss(images, self.labels, teacher, student)
            gradients = torch.autograd.grad(loss, self.parameters())
        if not are_finite(gradients):
            raise CoreError(
                f"the gradient of the generator must be finite, got infinity or NaN at training step {step + 1}: try a smaller training_lr"
            )
        for parameter, gradient in zip(self.parameters(), gradients):
            parameter.grad = gradient
        self._step(self.rate(step))
        return images.detach(), float(loss.detach())

    def rate(self, step: int) -> float:
        """Factor of the learning rates of generator and student at this step of the student, under the authors' protocol; else 1.

        A tenth after each of `milestones`. The authors also count the epochs in which the generator learns alone, 4 of 400 for CIFAR; here
        these are the generation stage, which may be longer than the training.
        """
        if self._training is None or self._training.protocol != AUTHORS:
            return 1.0
        return 0.1 ** sum(step >= milestone * self._training.steps for milestone in self.milestones)
