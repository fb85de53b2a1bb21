"""The scale in which images are generated: step sizes and noise are made for pixels of about zero mean and unit variance."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from core.models.full_precision import FullPrecisionModel

MEAN, STD = 0.45, 0.25  # about those of photographs, of values in [0, 1]
_USUAL = (0.1, 0.6)  # standard deviations that networks are trained with: 0.2 to 0.3, or 0.5 for pixels from -1 to 1


class _Rescaled(nn.Module):
    """A network for images in the usual scale, which it converts first."""

    scale: Tensor
    shift: Tensor

    def __init__(self, model: FullPrecisionModel) -> None:
        super().__init__()
        mean, std = (torch.tensor(values, device=model.device).view(1, -1, 1, 1) for values in (model.spec.mean, model.spec.std))
        self.network = model.network
        self.register_buffer("scale", STD / std)
        self.register_buffer("shift", (MEAN - mean) / std)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x * self.scale + self.shift)


def in_usual_scale(model: FullPrecisionModel) -> FullPrecisionModel:
    """The same network for images that are normalized as usual, if its own are not; else `model` itself.

    A network that normalizes its images itself reads values from 0 to 1, or from 0 to 255: in that scale, steps would be several times
    as large as they should be, or hundreds of times smaller, and the noise would be cut off. Pixels are the same in both.
    """
    if _is_usual(model):
        return model
    channels = len(model.spec.mean)
    spec = replace(model.spec, mean=(MEAN,) * channels, std=(STD,) * channels)  # type: ignore[arg-type]
    return FullPrecisionModel(_Rescaled(model).eval(), spec)


def to_own_scale(images: Tensor, model: FullPrecisionModel) -> Tensor:
    """Images of zero mean and unit variance `(N, C, H, W)` in the scale of the network's own images; unchanged if that is as usual."""
    if _is_usual(model):
        return images
    mean, std = (torch.tensor(values, device=images.device).view(1, -1, 1, 1) for values in (model.spec.mean, model.spec.std))
    return (images * STD + MEAN - mean) / std


def _is_usual(model: FullPrecisionModel) -> bool:
    return all(_USUAL[0] <= std <= _USUAL[1] for std in model.spec.std)
