"""The noise that pixel methods start from."""

import torch
import torch.nn.functional as F
from torch import Tensor

from core.config import GenerationConfig
from core.models.full_precision import FullPrecisionModel


def initial_noise(kind: str, count: int, size: int, generator: torch.Generator) -> Tensor:
    """Noise `(count, 3, size, size)` with mean 0 and variance 1 over the batch.

    white: N(0, 1) for each pixel. pink: N(0, 1) drawn at sizes 1, 2, 4, ... up to `size`, upsampled and summed, the finest at half its
    amplitude: power falls with frequency about as it does in photographs, so statistics start much nearer to those of training.
    """
    if kind == "white":
        return torch.randn(count, 3, size, size, generator=generator)
    total = 0.5 * torch.randn(count, 3, size, size, generator=generator)
    coarse = 1
    while coarse < size:
        draw = torch.randn(count, 3, coarse, coarse, generator=generator)
        total += F.interpolate(draw, size=(size, size), mode="bilinear", align_corners=False)
        coarse *= 2
    return total / total.std()


def starting_noise(model: FullPrecisionModel, config: GenerationConfig, batch: int, seed: int = 0) -> tuple[Tensor, torch.Generator]:
    """The noise of batch number `batch`, in normalized space between black and white, on the network's device; and the generator that
    drew it, which then draws shifts and flips. The same for every method, whatever happened before.
    """
    side = half_size(model) if config.half_iterations else model.spec.image_size
    generator = torch.Generator().manual_seed(seed * 1_000_003 + batch)
    noise = initial_noise(config.noise, config.batches[batch], side, generator).to(model.device)
    return noise.clamp(*model.pixel_range()), generator


def half_size(model: FullPrecisionModel) -> int:
    """Side of the images, in pixels, during the half-resolution phase."""
    return model.spec.image_size // 2
