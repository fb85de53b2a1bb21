"""Flip control of AIT (Choi et al., It's All In the Teacher, CVPR 2022): each step changes at least a share of the integer codes."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from core.quantization.layers import QuantizedConv2d, QuantizedLinear
from core.quantization.quantizer import affine_parameters

_BISECTIONS = 5
_LARGEST = 2.0**20  # factor; a tensor that it does not help, such as one without a gradient, keeps its step


class FlipControl:
    """Enlarges the step of each weight tensor by the smallest factor >= 1, as found by `smallest_factor`, at which enough codes flip.

    layers: of a calibrated network. Stateless: what it does depends on the weights and their step alone.
    """

    def __init__(self, layers: Sequence[QuantizedConv2d | QuantizedLinear]) -> None:
        # of layers that share a weight, the first decides
        self._layers = list({id(layer.weight): layer for layer in reversed(layers)}.values())

    @contextmanager
    def at_least(self, share: float) -> Iterator[None]:
        """Within the block, a step is taken; after it, `share` (0 to 1) of the codes of each weight tensor have changed. 0: any number."""
        if not share:
            yield
            return
        before = [layer.weight.detach().clone() for layer in self._layers]
        yield
        with torch.no_grad():
            for layer, old in zip(self._layers, before):
                factor = smallest_factor(layer, old, layer.weight, share)
                if factor > 1:
                    layer.weight.copy_(torch.lerp(old, layer.weight, factor))


@torch.no_grad()
def smallest_factor(layer: QuantizedConv2d | QuantizedLinear, old: Tensor, new: Tensor, share: float) -> float:
    """The factor a by which the step from `old` to `new` must be multiplied so that at least `share` of the codes change.

    Doubled from 1 until enough change, then narrowed by 5 bisections to its upper end. 1 if no factor up to 2^20 is enough.
    """
    codes = _codes(layer, old)

    def enough(factor: float) -> bool:
        return float((_codes(layer, torch.lerp(old, new, factor)) != codes).float().mean()) >= share

    high = 1.0
    while not enough(high):
        high *= 2
        if high > _LARGEST:
            return 1.0
    if high == 1:
        return high
    low = high / 2
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _codes(layer: QuantizedConv2d | QuantizedLinear, weight: Tensor) -> Tensor:
    """The integers that `weight` has in this layer, minus the zero point: where only that changes, the quantized weight stays.

    With the range of `weight` itself if the range method finds it again in each step, otherwise with the current scale, so that a learned
    scale that moves flips nothing by itself.
    """
    quantizer, method = layer.weight_quantizer, layer.weight_range
    if method.updates_in_training:
        method = copy.deepcopy(method)
        method.observe(weight)
        scaling, offset = affine_parameters(*method.allowed_range(), quantizer.bits)
        scale, zero_point = 1 / scaling, -offset
    else:
        scale, zero_point = quantizer.scale, quantizer.zero_point
    scale, zero_point = (values.view(-1, *[1] * (weight.ndim - 1)) for values in (scale, zero_point))
    return (weight / scale + zero_point).round().clamp(quantizer.lowest, quantizer.highest) - zero_point
