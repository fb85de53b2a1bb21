"""Convolution and linear layer with quantized weights, and the node that quantizes an activation."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.quantization.quantizer import Quantizer
from core.quantization.ranges.base import RangeMethod, range_method


class ActivationQuantizer(nn.Module):
    """Quantizes an activation, per tensor.

    Three phases: passes through until calibrated; while `observing` it looks at what passes; then it quantizes. A range method that
    follows goes on looking in training mode.
    """

    def __init__(self, bits: int, method: str) -> None:
        super().__init__()
        found = range_method(method)
        self.range_method: RangeMethod = found(bits, None)
        self.quantizer = Quantizer(bits, None, found.learned)
        self.observing = False

    def finish_calibration(self) -> None:
        """Sets the range from what was observed."""
        self.observing = False
        self.quantizer.set_range(*self.range_method.range())

    def forward(self, x: Tensor) -> Tensor:
        if self.observing:
            self.range_method.observe(x)
            return x
        if self.quantizer.calibrated and self.training and self.range_method.follows:
            self.range_method.observe(x)
            self.quantizer.set_range(*self.range_method.range())
        return self.quantizer(x)


class _QuantizedWeights(nn.Module):
    """What both layers share: a weight quantizer per output channel, and an input quantizer where the network cannot be traced."""

    weight_quantizer: Quantizer
    weight_range: RangeMethod
    input_quantizer: nn.Module

    def _adopt(self, source: nn.Conv2d | nn.Linear, bits: int, method: str) -> None:
        found = range_method(method)
        channels = source.weight.shape[0]
        self.weight, self.bias = source.weight, source.bias
        self.weight_range = found(bits, channels)
        self.weight_quantizer = Quantizer(bits, channels, found.learned)
        self.input_quantizer = nn.Identity()

    def finish_calibration(self) -> None:
        """Sets the ranges of the weights."""
        self.weight_range.observe(self.weight)
        self.weight_quantizer.set_range(*self.weight_range.range())

    def quantized_weight(self) -> Tensor:
        """The weight after quantize-dequantize, same shape; float until calibrated, so that calibration sees the float network."""
        if not self.weight_quantizer.calibrated:
            return self.weight
        self.follow_weights()
        return self.weight_quantizer(self.weight)

    def follow_weights(self) -> None:
        """Sets a range that follows the weights to their own ends, wherever training has moved them."""
        if self.weight_quantizer.calibrated and self.weight_range.follows:
            self.finish_calibration()


def convolution_arguments(source: nn.Conv2d) -> dict[str, Any]:
    """What another Conv2d of the same form is made with, all but its bias; its tensors are empty, as it gets others."""
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    return {"device": "meta", **{name: getattr(source, name) for name in names}}


class QuantizedConv2d(_QuantizedWeights, nn.Conv2d):
    """A Conv2d whose weights are quantized per output channel. Its input comes quantized already (see placement.py)."""

    @classmethod
    def from_module(cls, source: nn.Conv2d, bits: int, method: str) -> QuantizedConv2d:
        """Takes over the parameters of `source`; they are shared, not copied."""
        layer = cls(**convolution_arguments(source), bias=source.bias is not None)
        layer._adopt(source, bits, method)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        x, weight = self.input_quantizer(x), self.quantized_weight()
        if torch.is_grad_enabled() and self._skips_pixels_of_few_channels():
            # oneDNN's gradient of such weights writes past its memory (uxlfoundation/oneDNN issue 6035); that of stride 1 does not
            x = x[:, :, :: self.stride[0], :: self.stride[1]].contiguous(memory_format=torch.channels_last)
            return F.conv2d(x, weight, self.bias, groups=self.groups)
        return self._conv_forward(x, weight, self.bias)

    def _skips_pixels_of_few_channels(self) -> bool:
        pointwise = self.kernel_size == (1, 1) and self.padding == (0, 0)
        return pointwise and max(self.stride) > 1 and self.in_channels // self.groups < 8


class QuantizedLinear(_QuantizedWeights, nn.Linear):  # type: ignore[misc]
    """A Linear layer whose weights are quantized per output feature."""

    @classmethod
    def from_module(cls, source: nn.Linear, bits: int, method: str) -> QuantizedLinear:
        """Takes over the parameters of `source`; they are shared, not copied."""
        layer = cls(source.in_features, source.out_features, source.bias is not None, device="meta")
        layer._adopt(source, bits, method)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.input_quantizer(x), self.quantized_weight(), self.bias)


QuantizedLayer = (QuantizedConv2d, QuantizedLinear)


def from_module(source: nn.Module, bits: int, method: str) -> QuantizedConv2d | QuantizedLinear:
    """The quantized layer in place of a Conv2d or Linear."""
    if isinstance(source, nn.Conv2d):
        return QuantizedConv2d.from_module(source, bits, method)
    assert isinstance(source, nn.Linear)
    return QuantizedLinear.from_module(source, bits, method)


@torch.no_grad()
def finish_calibration(network: nn.Module) -> None:
    """Sets every range of a network that has observed its calibration images."""
    for module in network.modules():
        if isinstance(module, (ActivationQuantizer, *QuantizedLayer)):
            module.finish_calibration()
