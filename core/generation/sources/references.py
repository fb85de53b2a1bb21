"""References: images that nothing optimizes, which those of methods are compared with."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from core.generation.losses import TERMS
from core.generation.noise import initial_noise
from core.generation.sources.base import ImageSource


class ReferenceImages(ImageSource):
    """Images that are drawn and saved as they are, `config.saved_images` different ones.

    They have the batches and iterations of a method, so that all are seen at the same iteration. Whenever the images of a batch are saved,
    others take their place. L_BNS is recorded and has no effect. Labels are the teacher's classes.
    """

    terms = (TERMS["bns"],)

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._drawn = 0  # times that images were drawn
        self.start_batch(0)

    @abstractmethod
    def draw(self, count: int, number: int) -> Tensor:
        """`count` images `(count, C, H, W)`, normalized. number: of earlier draws."""

    def start_batch(self, index: int) -> None:
        self._size = self.config.batches[index]
        self._draw()

    @torch.no_grad()
    def _draw(self) -> None:
        images = self.draw(self._size, self._drawn).to(self.model.device)
        self._images = images.contiguous(memory_format=torch.channels_last)
        self.labels = self.model.network(self._images).argmax(dim=1)
        self._drawn += 1

    def parameters(self) -> Sequence[Tensor]:
        return []

    def images(self, iteration: int) -> Tensor:
        return self._images

    def advance(self, iteration: int, values: Mapping[str, float], step_size: float) -> None:
        """Nothing moves."""

    def end_iteration(self, iteration: int) -> None:
        if iteration + 1 in self.config.snapshot_iterations[:-1]:
            self._draw()

    def current(self) -> Tensor:
        return self._images

    def to_save(self, iteration: int, is_last: bool) -> Iterator[tuple[Tensor, Tensor]]:
        if iteration + 1 in self.config.snapshot_iterations:
            yield self._images, self.labels

    def state(self) -> dict[str, Any]:
        return {"images": self._images, "labels": self.labels, "drawn": self._drawn}

    def load_state(self, state: Mapping[str, Any]) -> None:
        images = state["images"].to(self.model.device)
        self._images, self.labels = images.contiguous(memory_format=torch.channels_last), state["labels"].to(self.model.device)
        self._drawn = state["drawn"]


class NoiseImages(ReferenceImages):
    """Gaussian noise: each pixel is drawn from N(0, 1) in normalized units, and clamped to the range from black to white."""

    def draw(self, count: int, number: int) -> Tensor:
        random = torch.Generator().manual_seed(self.machine.seed * 1_000_003 + number)
        noise = initial_noise("white", count, self.model.spec.shape, random)
        return noise.to(self.model.device).clamp(*self.model.pixel_range())
