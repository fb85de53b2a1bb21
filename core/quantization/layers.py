"""Convolution and linear layer with quantized weights, and the module that quantizes an activation."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.quantization.quantizer import Quantizer
from core.quantization.ranges.base import RangeFactory, RangeMethod


class ActivationQuantizer(nn.Module):
    """Quantizes an activation, per tensor.

    Before calibration it returns its input unchanged. While `observing`, which calibration switches on, its range method sees the input,
    which is returned unchanged. After `finish_calibration` it quantizes; a range method with `updates_in_training` continues to observe
    in training mode.
    """

    def __init__(self, bits: int, range_factory: RangeFactory) -> None:
        super().__init__()
        self.range_method: RangeMethod = range_factory(bits, None)
        self.quantizer = Quantizer(bits, None, self.range_method.learned)
        self.observing = False

    def finish_calibration(self) -> None:
        """Sets the range from the observed values."""
        self.observing = False
        self.quantizer.set_range(*self.range_method.allowed_range())

    def forward(self, x: Tensor) -> Tensor:
        if self.observing:
            self.range_method.observe(x)
            return x
        if self.quantizer.calibrated and self.training and self.range_method.updates_in_training:
            self.range_method.observe(x)
            self.quantizer.set_range(*self.range_method.allowed_range())
        return self.quantizer(x)


class _QuantizedWeights(nn.Module):
    """Common to both layers: a quantizer of the weight per output channel, and of the input if the network cannot be traced."""

    weight_quantizer: Quantizer
    weight_range: RangeMethod
    input_quantizer: nn.Module

    def _take_parameters(self, source: nn.Conv2d | nn.Linear, bits: int, range_factory: RangeFactory) -> None:
        channels = source.weight.shape[0]
        self.weight, self.bias = source.weight, source.bias
        self.weight_range = range_factory(bits, channels)
        self.weight_quantizer = Quantizer(bits, channels, self.weight_range.learned, self.weight_range.symmetric)
        self.input_quantizer = nn.Identity()

    def finish_calibration(self) -> None:
        """Sets the range from the weight as it is now."""
        self.weight_range.observe(self.weight)
        self.weight_quantizer.set_range(*self.weight_range.allowed_range())

    def quantized_weight(self) -> Tensor:
        """The weight after quantize-dequantize, same shape. Before calibration the float weight, so that calibration runs the float
        network."""
        if not self.weight_quantizer.calibrated:
            return self.weight
        self.update_range()
        return self.weight_quantizer(self.weight)

    def update_range(self) -> None:
        """Finds the range of the current weight, if the range method does so in training."""
        if self.weight_quantizer.calibrated and self.weight_range.updates_in_training:
            self.finish_calibration()


def convolution_arguments(source: nn.Conv2d) -> dict[str, Any]:
    """Constructor arguments of a Conv2d of the same form, except its bias; on the meta device, because its tensors are replaced."""
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    return {"device": "meta", **{name: getattr(source, name) for name in names}}


class QuantizedConv2d(_QuantizedWeights, nn.Conv2d):
    """A Conv2d whose weight is quantized per output channel. Its input is quantized already (see placement.py)."""

    @classmethod
    def from_module(cls, source: nn.Conv2d, bits: int, range_factory: RangeFactory) -> QuantizedConv2d:
        """Shares the parameters of `source`; they are not copied."""
        layer = cls(**convolution_arguments(source), bias=source.bias is not None)
        layer._take_parameters(source, bits, range_factory)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        x, weight = self.input_quantizer(x), self.quantized_weight()
        if torch.is_grad_enabled() and self._skips_pixels_of_few_channels():
            # oneDNN's gradient of such weights writes past its memory (uxlfoundation/oneDNN issue 6035); with stride 1 it does not
            x = x[:, :, :: self.stride[0], :: self.stride[1]].contiguous(memory_format=torch.channels_last)
            return F.conv2d(x, weight, self.bias, groups=self.groups)
        return self._conv_forward(x, weight, self.bias)

    def _skips_pixels_of_few_channels(self) -> bool:
        pointwise = self.kernel_size == (1, 1) and self.padding == (0, 0)
        return pointwise and max(self.stride) > 1 and self.in_channels // self.groups < 8


class QuantizedLinear(_QuantizedWeights, nn.Linear):  # type: ignore[misc]
    """A Linear layer whose weight is quantized per output feature."""

    @classmethod
    def from_module(cls, source: nn.Linear, bits: int, range_factory: RangeFactory) -> QuantizedLinear:
        """Shares the parameters of `source`; they are not copied."""
        layer = cls(source.in_features, source.out_features, source.bias is not None, device="meta")
        layer._take_parameters(source, bits, range_factory)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.input_quantizer(x), self.quantized_weight(), self.bias)


QuantizedLayer = (QuantizedConv2d, QuantizedLinear)


def from_module(source: nn.Module, bits: int, range_factory: RangeFactory) -> QuantizedConv2d | QuantizedLinear:
    """The quantized layer that replaces a Conv2d or Linear."""
    if isinstance(source, nn.Conv2d):
        return QuantizedConv2d.from_module(source, bits, range_factory)
    assert isinstance(source, nn.Linear)
    return QuantizedLinear.from_module(source, bits, range_factory)


@torch.no_grad()
def finish_calibration(network: nn.Module) -> None:
    """Sets every range of a network that has observed its calibration images. Raises CoreError if one is not finite."""
    for module in network.modules():
        if isinstance(module, (ActivationQuantizer, *QuantizedLayer)):
            module.finish_calibration()
