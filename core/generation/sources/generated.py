"""Methods that train a generator, before the student and optionally together with it."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import CoreError
from core.generation.forward_pass import ForwardPass, term_weights
from core.generation.sources.base import JointSource, balanced_labels
from core.models.divergence import are_finite


class GeneratedImages(JointSource):
    """Images that a generator makes from Gaussian noise z `(N, latent)` and labels, conditioned on them as in GDFQ (Xu et al., ECCV 2020).

    The generation stage trains it on the loss terms of the full-precision network alone, and saves `config.saved_images` images with
    balanced labels at its end. A joint training then continues from there: each step of the student is followed by one of the generator,
    whose loss also has `student_loss`. Subclasses define the generator, and may change everything else.
    """

    latent = 100  # as in GDFQ
    learning_rate = 1e-3

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._random = torch.Generator().manual_seed(self.machine.seed)
        with torch.random.fork_rng():
            torch.manual_seed(self.machine.seed)
            self.generator = self.make_generator().to(self.model.device)
        self.optimizer = torch.optim.Adam(self.generator.parameters(), lr=self.learning_rate)
        self.start_batch(0)
        self._forward: ForwardPass | None = None

    @abstractmethod
    def make_generator(self) -> nn.Module:
        """A module from z `(N, latent)` and labels `(N,)` to normalized images `(N, C, H, W)`."""

    def student_loss(self, images: Tensor, labels: Tensor, teacher: nn.Module, student: nn.Module) -> Tensor:
        """A scalar that is added to the generator's loss in a joint training, differentiable in the images; default: zero."""
        return images.new_zeros(())

    def start_batch(self, index: int) -> None:
        self._sample(self.config.batches[index])

    def _draw(self, count: int) -> tuple[Tensor, Tensor]:
        """z and labels for `count` images."""
        z = torch.randn(count, self.latent, generator=self._random)
        labels = torch.randint(len(self.model.spec.classes), (count,), generator=self._random)
        return z.to(self.model.device), labels.to(self.model.device)

    @torch.no_grad()
    def _sample(self, count: int) -> None:
        """Sets `labels` and the current images without training on them."""
        z, self.labels = self._draw(count)
        self._current = self.generator(z, self.labels)

    def parameters(self) -> Sequence[Tensor]:
        return list(self.generator.parameters())

    def images(self, iteration: int) -> Tensor:
        z, self.labels = self._draw(len(self.labels))
        images = self.generator(z, self.labels)
        self._current = images.detach()
        return images

    def advance(self, iteration: int, values: Mapping[str, float], step_size: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * step_size
        self.optimizer.step()

    def current(self) -> Tensor:
        return self._current

    @torch.no_grad()
    def to_save(self, iteration: int, is_last: bool) -> Iterator[tuple[Tensor, Tensor]]:
        if not is_last:
            return
        labels = balanced_labels(self.config.saved_images, len(self.model.spec.classes))
        for part in labels.split(self.config.batch_size):
            z, _ = self._draw(len(part))
            yield self.generator(z, part.to(self.model.device)), part.to(self.model.device)

    def state(self) -> dict[str, Any]:
        return {
            "generator": self.generator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": self._random.get_state(),
            "images": self._current,
            "labels": self.labels,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.generator.load_state_dict(state["generator"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._random.set_state(state["random"])
        self._current = state["images"].to(self.model.device)
        self.labels = state["labels"].to(self.model.device)

    @torch.no_grad()
    def calibration_images(self, count: int) -> tuple[Tensor, Tensor]:
        z, labels = self._draw(count)
        return self.generator(z, labels), labels

    @torch.no_grad()
    def batch(self, step: int, teacher: nn.Module, student: nn.Module) -> tuple[Tensor, Tensor]:
        z, labels = self._draw(self.config.batch_size)
        return self.generator(z, labels), labels

    def update(self, step: int, teacher: nn.Module, student: nn.Module) -> dict[str, float]:
        self._forward = self._forward or ForwardPass(self.model.network)
        with torch.enable_grad():
            z, labels = self._draw(self.config.batch_size)
            images = self.generator(z, labels)
            loss, *_ = self._forward(images, labels, {name: getattr(self.config, name) for name in term_weights()})
            loss = loss + self.student_loss(images, labels, teacher, student)
            gradients = torch.autograd.grad(loss, self.parameters())
        if not are_finite(gradients):
            raise CoreError(
                f"the gradient of the generator must be finite, got infinity or NaN at training step {step + 1}: try a smaller training_lr"
            )
        for parameter, gradient in zip(self.parameters(), gradients):
            parameter.grad = gradient
        self.optimizer.step()
        return {"generator": float(loss.detach())}
