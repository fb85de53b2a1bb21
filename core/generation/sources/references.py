"""References: images that nothing optimizes, which those of methods are compared with."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from core.data.labeled import UNREADABLE, EvaluationSet
from core.data.real_images import open_real_images
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
        self._drawn = 0  # images so far
        self.start_batch(0)

    @abstractmethod
    def draw(self, count: int) -> Tensor:
        """The `count` images `(count, C, H, W)` after the first `_drawn`, normalized; raises that number by those it passed."""

    def start_batch(self, index: int) -> None:
        self._size = self.config.batches[index]
        self._draw()

    @torch.no_grad()
    def _draw(self) -> None:
        images = self.draw(self._size).to(self.model.device)
        self._images = images.contiguous(memory_format=torch.channels_last)
        self.labels = self.model.network(self._images).argmax(dim=1)

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

    def draw(self, count: int) -> Tensor:
        random = torch.Generator().manual_seed(self.machine.seed * 1_000_003 + self._drawn)
        self._drawn += count
        noise = initial_noise("white", count, self.model.spec.shape, random)
        return noise.to(self.model.device).clamp(*self.model.pixel_range())


class RealImages(ReferenceImages):
    """Images of the folder `config.real_images` in random order, resized and cropped as evaluation images are.

    When all were drawn, they are drawn again in another order. Images that cannot be read are passed over. Raises DataError as
    `open_real_images`, and when more than 1 % of them cannot be read.
    """

    _order: tuple[int, list[int]] | None = None  # an epoch and its order

    @cached_property
    def _set(self) -> EvaluationSet:
        spec, files = self.model.spec, open_real_images(self.config.real_images)
        files.mode = spec.mode
        return EvaluationSet(files, None, f"images of {self.config.real_images}", spec.image_size, spec.resize, spec.interpolation)

    def draw(self, count: int) -> Tensor:
        chosen: list[Tensor] = []
        while len(chosen) < count:
            image, label = self._set[self._index(self._drawn)]
            self._drawn += 1
            if label != UNREADABLE:
                chosen.append(image)
        return self.model.normalize(torch.stack(chosen).to(self.model.device))

    def _index(self, place: int) -> int:
        """The image at this place of the sequence, which has all of them once, then again in another order, and so on."""
        epoch, within = divmod(place, len(self._set))
        if self._order is None or self._order[0] != epoch:
            random = torch.Generator().manual_seed(self.machine.seed * 1_000_003 + epoch)
            self._order = epoch, torch.randperm(len(self._set), generator=random).tolist()
        return self._order[1][within]
