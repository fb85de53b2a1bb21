"""Correction of BatchNorm layers after a calibration: each normalizes what the rounded layers before it give.

Rounding shifts and stretches the input of a BatchNorm layer, whose running statistics are those of the unrounded one. With mean m and
variance v of its input over the calibration images, in full precision and after rounding (m', v'), the running statistics become

    mean' = m' + (mean - m) s,   var' + eps = (var + eps) s^2,   s^2 = (v' + eps) / (v + eps),

for each channel, so that the output has the mean and the variance that it has in full precision. Layers are corrected in the order in which
the network reaches them, each behind corrected ones. A form of bias correction (Nagel et al., ICCV 2019) for mean and variance.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from core.models.full_precision import FullPrecisionModel, batch_norm_layers
from core.models.hooks import hooked
from core.quantization.calibration import few_inputs
from core.quantization.placement import QuantizedNetwork

IMAGES = 256  # at most
_LEAST = 16
_PIXELS = IMAGES * 64 * 64  # of all images together, which pass the network at once


@torch.no_grad()
def correct_statistics(model: FullPrecisionModel, quantized: QuantizedNetwork, images: Tensor) -> None:
    """Corrects the running statistics of a calibrated network. images: those of the calibration, uint8 or normalized `(N, C, H, W)`, of
    which few are used if they are large, evenly spaced. A layer that the network calls several times keeps its statistics.
    """
    inputs = few_inputs(model, images, _LEAST, _PIXELS)
    moments, layers = moments_of(model.network, inputs), batch_norm_layers(quantized.network)

    def correct(name: str, given: tuple[Tensor, ...]) -> None:
        layer = layers[name]
        assert isinstance(layer, nn.BatchNorm2d)
        assert layer.running_mean is not None
        assert layer.running_var is not None
        (mean, variance), (own_mean, own_variance) = moments[name], _moments(given[0])
        stretch = _stretch(layer, variance, own_variance)
        layer.running_mean.copy_(own_mean + (layer.running_mean - mean) * stretch)
        layer.running_var.copy_(((layer.running_var + layer.eps) * stretch**2 - layer.eps).clamp_min(0))

    with hooked({name: layer for name, layer in layers.items() if name in moments}, before_forward=correct):
        quantized.network(inputs)


@contextmanager
def corrected(network: nn.Module, moments: Mapping[str, tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Within the block, the BatchNorm layers compute as corrected for the images of each pass; their statistics stay. moments: of
    `moments_of` these images in full precision.
    """

    def scaled(layer: nn.BatchNorm2d, expected: tuple[Tensor, Tensor], given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (mean, variance), (own_mean, own_variance) = expected, _moments(given[0])
        factor = 1 / _stretch(layer, variance, own_variance)
        shift = mean - own_mean * factor
        return (torch.addcmul(_by_channel(shift), given[0], _by_channel(factor)), *given[1:])

    with ExitStack() as removed:
        for name, layer in batch_norm_layers(network).items():
            if name in moments:
                hook = layer.register_forward_pre_hook(lambda one, given, name=name: scaled(one, moments[name], given))
                removed.callback(hook.remove)
        yield


def moments_of(network: nn.Module, inputs: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """BatchNorm layer -> mean and variance of each channel of its input, float64 `(C,)`; only layers that are called once."""
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {}
    with hooked(batch_norm_layers(network), before_forward=lambda name, given: seen.setdefault(name, []).append(_moments(given[0]))):
        network(inputs)
    return {name: moments[0] for name, moments in seen.items() if len(moments) == 1}


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    values = x.double()
    return values.mean(dim=(0, 2, 3)), values.var(dim=(0, 2, 3), correction=0)


def _stretch(layer: nn.BatchNorm2d, variance: Tensor, own_variance: Tensor) -> Tensor:
    """s for each channel, float64 `(C,)`."""
    return ((own_variance + layer.eps) / (variance + layer.eps)).sqrt()


def _by_channel(values: Tensor) -> Tensor:
    return values.float().view(1, -1, 1, 1)
