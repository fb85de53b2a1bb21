"""A quantized network whose float weights are replaced by integers, and whose quantizers have fixed ranges.

Its outputs are those of the fake-quantized network, bit for bit. The network that is evaluated and exported is made from it, see
core/quantization/integer/inference.py.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.errors import ModelError
from core.models.replacement import replace_kind
from core.quantization.layers import ActivationQuantizer, QuantizedConv2d, QuantizedLayer, QuantizedLinear, convolution_arguments
from core.quantization.placement import QuantizedNetwork
from core.quantization.quantizer import Quantizer


class IntegerWeight(nn.Module):
    """A weight `(channels, ...)` as integers of `bits` bits, int8; its forward returns (q - zero point) scale in float32.

    scale: float32 `(channels,)`; zero_point: int8 `(channels,)`.
    """

    integers: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, quantizer: Quantizer, weight: Tensor) -> None:
        super().__init__()
        self.bits = quantizer.bits
        scale, zero_point = quantizer.scale.detach(), quantizer.zero_point
        levels = torch.div(weight.detach(), by_channel(scale, weight)).add_(by_channel(zero_point, weight)).round_()
        self.register_buffer("integers", levels.clamp_(quantizer.lowest, quantizer.highest).to(torch.int8))
        self.register_buffer("scale", scale.clone())
        self.register_buffer("zero_point", zero_point.to(torch.int8))

    def levels(self) -> Tensor:
        """q - zero point, integers in float32."""
        return self.integers.float() - by_channel(self.zero_point.float(), self.integers)

    def forward(self) -> Tensor:
        return self.levels() * by_channel(self.scale, self.integers)


def by_channel(values: Tensor, weight: Tensor) -> Tensor:
    """`(channels,)` -> a shape that broadcasts to the weight."""
    return values.view(-1, *[1] * (weight.ndim - 1))


class FixedQuantizer(nn.Module):
    """Quantize-dequantize of an activation with a fixed range. scale and zero_point (int8) are `()`."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self.bits, self.lowest, self.highest = quantizer.bits, quantizer.lowest, quantizer.highest
        self.register_buffer("scale", quantizer.scale.detach().clone())
        self.register_buffer("zero_point", quantizer.zero_point.to(torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        zero_point = self.zero_point.float()
        levels = torch.round(x / self.scale + zero_point).clamp(self.lowest, self.highest)
        return (levels - zero_point) * self.scale


class IntegerConv2d(nn.Conv2d):
    """A convolution whose weight is an IntegerWeight."""

    def __init__(self, source: QuantizedConv2d) -> None:
        super().__init__(**convolution_arguments(source), bias=False)
        self.weight = None  # type: ignore[assignment]
        self.bias = source.bias
        self.integer_weight = IntegerWeight(source.weight_quantizer, source.weight)
        self.input_quantizer = source.input_quantizer

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(self.input_quantizer(x), self.integer_weight(), self.bias)


class IntegerLinear(nn.Module):
    """A linear layer whose weight is an IntegerWeight."""

    def __init__(self, source: QuantizedLinear) -> None:
        super().__init__()
        self.bias = source.bias
        self.integer_weight = IntegerWeight(source.weight_quantizer, source.weight)
        self.input_quantizer = source.input_quantizer

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.input_quantizer(x), self.integer_weight(), self.bias)


def integer_network(quantized: QuantizedNetwork, needs_ranges: bool = True) -> nn.Module:
    """A frozen copy of the network in evaluation mode, made of the modules above; `quantized` stays unchanged.

    needs_ranges: False for a network whose ranges are loaded later. Otherwise raises ModelError if a range has not been set.
    """
    for name, module in quantized.network.named_modules():
        if needs_ranges and isinstance(module, Quantizer) and not module.calibrated:
            raise ModelError(f"network must be calibrated, but quantizer {name} has no range")
    network = copy.deepcopy(quantized.network)
    for layer in network.modules():
        if isinstance(layer, QuantizedLayer):
            layer.update_range()  # the weight may have changed since its last forward pass
    replace_kind(network, ActivationQuantizer, lambda module: FixedQuantizer(module.quantizer))
    replace_kind(network, QuantizedConv2d, IntegerConv2d)
    replace_kind(network, QuantizedLinear, IntegerLinear)
    return network.eval().requires_grad_(False)


def integer_weights(network: nn.Module) -> dict[str, IntegerWeight]:
    """Key in the state dict of an `integer_network` -> the module whose integers it contains."""
    named = network.named_modules(remove_duplicate=False)
    return {f"{name}.integers": module for name, module in named if isinstance(module, IntegerWeight)}


def packed_bytes(quantized: QuantizedNetwork, needs_ranges: bool = True) -> int:
    """Bytes of all tensors of a network with its weights at their bit widths, as core/export/packed.py writes them. needs_ranges: as in
    `integer_network`.
    """
    network = integer_network(quantized, needs_ranges)
    weights, size = integer_weights(network), 0
    for key, value in network.state_dict().items():
        size += -(-value.numel() * weights[key].bits // 8) if key in weights else value.numel() * value.element_size()
    return size
