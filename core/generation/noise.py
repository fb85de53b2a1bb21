"""The noise that pixel methods start from."""

import torch
import torch.nn.functional as F
from torch import Tensor

from core.config import GenerationConfig
from core.models.full_precision import FullPrecisionModel


def initial_noise(kind: str, count: int, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """Noise `(count, *shape)`, with mean 0 and variance 1 over the batch unless it is gray. shape: channels, height, width.

    white: N(0, 1) for each pixel. pink: N(0, 1) drawn with a short side of 1, 2, 4, ... pixels, upsampled and summed, the finest at
    half its amplitude: power falls with frequency about as it does in photographs, so statistics start much nearer to those of training.
    gray: ZeroQ's start, (u - 127.5) / 5418.75 with u a whole number from 0 to 254: within 0.0235 of the mean color. 5418.75 is the
    variance of u and not its root, as in the authors' code.
    """
    if kind == "white":
        return torch.randn(count, *shape, generator=generator)
    if kind == "gray":
        return (torch.randint(255, (count, *shape), generator=generator) - 127.5) / 5418.75
    total = 0.5 * torch.randn(count, *shape, generator=generator)
    channels, height, width = shape
    short, coarse = min(height, width), 1
    while coarse < short:
        draw = torch.randn(count, channels, -(-height * coarse // short), -(-width * coarse // short), generator=generator)
        total += F.interpolate(draw, size=(height, width), mode="bilinear", align_corners=False)
        coarse *= 2
    return total / total.std()


def starting_noise(model: FullPrecisionModel, config: GenerationConfig, batch: int, seed: int = 0) -> tuple[Tensor, torch.Generator]:
    """The noise of batch number `batch`, in normalized space between black and white, on the network's device; and the generator that
    drew it, which then draws shifts and flips. The same for every method, whatever happened before.
    """
    size = half_size(model) if config.half_iterations else model.spec.size
    generator = torch.Generator().manual_seed(seed * 1_000_003 + batch)
    noise = initial_noise(config.noise, config.batches[batch], (model.spec.channels, *size), generator).to(model.device)
    return noise.clamp(*model.pixel_range()), generator


def half_size(model: FullPrecisionModel) -> tuple[int, int]:
    """Height and width of the images, in pixels, during the half-resolution phase."""
    height, width = model.spec.size
    return height // 2, width // 2
