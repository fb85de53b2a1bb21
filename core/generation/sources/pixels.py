"""Methods that move the pixels of noise images: DFFG's MI-FGSM and its Adam baseline.

DFFG (Leng et al., BMVC 2023) in one place: each batch starts as noise, is shifted and mirrored at random before each forward pass, and
every pixel moves against the sign of a momentum of normalized gradients of

    L_total = L_BNS + alpha_tv R_TV + alpha_l2 R_l2 + beta L_CE      (core/generation/losses.py)

until its statistics match the running statistics; k snapshots of it are saved on the way.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from core.config import GenerationConfig
from core.data.augment import jitter_batch
from core.errors import ModelError
from core.generation.noise import half_size, starting_noise
from core.generation.optimizers import MIFGSM
from core.generation.sources.base import ImageSource
from core.models.checks import check_scores
from core.models.full_precision import FullPrecisionModel


class PixelImages(ImageSource):
    """Noise images whose pixels are the parameters, one batch at a time.

    With `config.half_resolution_fraction`, each batch starts at half the image size, as in DeepInversion (Yin et al., CVPR 2020), then is
    upsampled and continues with a fresh optimizer; shifts are half as large in that phase. Batch b starts from the same noise in every
    method, whatever happened before. Raises ModelError when the config asks for images of half the size and the
    network does not accept them.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.low, self.high = self.model.pixel_range()
        check_half_resolution(self.model, self.config)
        self.start_batch(0)

    @abstractmethod
    def make_optimizer(self, pixels: Tensor) -> Optimizer:
        """The update rule, over one batch `(N, C, H, W)`."""

    @abstractmethod
    def set_knobs(self, values: Mapping[str, float], step_size: float) -> None:
        """Sets the optimizer's step size and other live knobs."""

    def start_batch(self, index: int) -> None:
        sizes = self.config.batches
        noise, self._random = starting_noise(self.model, self.config, index, self.machine.seed)
        start = sum(sizes[:index])
        self.labels = self.all_labels[start : start + sizes[index]].to(self.model.device)
        self._optimize(noise)

    def _optimize(self, pixels: Tensor) -> None:
        """Starts optimizing these images with a fresh optimizer."""
        self.pixels = pixels.to(self.model.device).clone(memory_format=torch.channels_last).requires_grad_(True)
        self.optimizer = self.make_optimizer(self.pixels)

    def parameters(self) -> Sequence[Tensor]:
        return [self.pixels]

    def images(self, iteration: int) -> Tensor:
        max_shift = self.config.max_shift // 2 if iteration < self.config.half_iterations else self.config.max_shift
        return jitter_batch(self.pixels, max_shift, self.config.flip, self._random)

    def advance(self, iteration: int, values: Mapping[str, float], step_size: float) -> None:
        self.set_knobs(values, step_size)
        self.optimizer.step()
        with torch.no_grad():
            self.pixels.clamp_(self.low, self.high)

    def end_iteration(self, iteration: int) -> None:
        if 0 < iteration + 1 == self.config.half_iterations:
            self._optimize(self.full_size())

    @torch.no_grad()
    def full_size(self) -> Tensor:
        """The images at full size, which they may already have."""
        size = self.model.spec.size
        if self.pixels.shape[2:] == size:
            return self.pixels.detach()
        larger = F.interpolate(self.pixels, size=size, mode="bilinear", align_corners=False)
        return larger.clamp(self.low, self.high)

    def current(self) -> Tensor:
        return self.pixels.detach()

    def to_save(self, iteration: int, is_last: bool) -> Iterator[tuple[Tensor, Tensor]]:
        if iteration + 1 in self.config.snapshot_iterations:
            yield self.pixels.detach(), self.labels

    def state(self) -> dict[str, Any]:
        return {"images": self.pixels.detach(), "optimizer": self.optimizer.state_dict(), "noise": self._random.get_state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._optimize(state["images"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._random.set_state(state["noise"])


class SignedMomentumImages(PixelImages):
    """DFFG: every pixel moves by epsilon against the sign of a momentum of normalized gradients (MI-FGSM)."""

    def make_optimizer(self, pixels: Tensor) -> Optimizer:
        return MIFGSM([pixels], self.config.epsilon, self.config.mu)

    def set_knobs(self, values: Mapping[str, float], step_size: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"], group["mu"] = values["epsilon"] * step_size, values["mu"]


class AdamImages(PixelImages):
    """The baseline of DFFG: Adam adapts the step of each pixel. step_knob: the knob of its step size; smallest: below which no schedule
    goes.
    """

    step_knob = "lr"
    smallest = 0.0

    def make_optimizer(self, pixels: Tensor) -> Optimizer:
        return torch.optim.Adam([pixels], lr=getattr(self.config, self.step_knob))

    def set_knobs(self, values: Mapping[str, float], step_size: float) -> None:
        largest = values[self.step_knob]
        for group in self.optimizer.param_groups:
            group["lr"] = max(largest * step_size, min(largest, self.smallest))


def check_half_resolution(model: FullPrecisionModel, config: GenerationConfig) -> None:
    """Raises ModelError when `config` asks for images of half the size and the network does not accept them."""
    if not config.half_iterations:
        return
    try:
        check_scores(model.network, model.spec, model.spec.name, half_size(model))
    except ModelError as error:
        raise ModelError(f"half_resolution_fraction must be 0 for this network, got {config.half_resolution_fraction}: {error}") from error
