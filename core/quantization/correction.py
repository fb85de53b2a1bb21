"""Correction of BatchNorm layers after a calibration: each normalizes what the rounded layers before it give.

Rounding shifts and stretches the input of a BatchNorm layer, whose running statistics are those of the unrounded one. With mean m and
variance v of its input over the calibration images, in full precision and after rounding (m', v'), the running statistics become

    mean' = m' + (mean - m) s,   var' + eps = (var + eps) s^2,   s^2 = (v' + eps) / (v + eps),

for each channel, so that the output has the mean and the variance that it has in full precision. Layers are corrected in the order in which
the network reaches them, each behind corrected ones. A form of bias correction (Nagel et al., ICCV 2019) for mean and variance.
"""

import torch
from torch import Tensor, nn

from core.models.full_precision import FullPrecisionModel, batch_norm_layers
from core.models.hooks import hooked
from core.quantization.placement import QuantizedNetwork

IMAGES = 256  # at most
_LEAST = 16
_PIXELS = IMAGES * 64 * 64  # of all images together, which pass the network at once


@torch.no_grad()
def correct_statistics(model: FullPrecisionModel, quantized: QuantizedNetwork, images: Tensor) -> None:
    """Corrects the running statistics of a calibrated network. images: those of the calibration, uint8 or normalized `(N, C, H, W)`, of
    which few are used if they are large, evenly spaced. A layer that the network calls several times keeps its statistics.
    """
    count = min(len(images), max(_LEAST, _PIXELS // (images.shape[2] * images.shape[3])))
    few = images[torch.linspace(0, len(images) - 1, count).round().long()]
    inputs = (model.normalize(few) if few.dtype == torch.uint8 else few.detach()).contiguous(memory_format=torch.channels_last)
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def observe(name: str, given: tuple[Tensor, ...]) -> None:
        seen.setdefault(name, []).append(_moments(given[0]))

    layers = batch_norm_layers(quantized.network)
    with hooked({name: layer for name, layer in batch_norm_layers(model.network).items() if name in layers}, before_forward=observe):
        model.network(inputs)

    def correct(name: str, given: tuple[Tensor, ...]) -> None:
        layer, (mean, variance) = layers[name], seen[name][0]
        assert isinstance(layer, nn.BatchNorm2d)
        assert layer.running_mean is not None
        assert layer.running_var is not None
        own_mean, own_variance = _moments(given[0])
        stretch = (own_variance + layer.eps) / (variance + layer.eps)
        layer.running_mean.copy_(own_mean + (layer.running_mean - mean) * stretch.sqrt())
        layer.running_var.copy_(((layer.running_var + layer.eps) * stretch - layer.eps).clamp_min(0))

    with hooked({name: layers[name] for name, moments in seen.items() if len(moments) == 1}, before_forward=correct):
        quantized.network(inputs)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel, float64 `(C,)`."""
    values = x.double()
    return values.mean(dim=(0, 2, 3)), values.var(dim=(0, 2, 3), correction=0)
