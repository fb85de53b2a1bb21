"""The layers of a standard network as torch's operations quantize and dequantize, which ExecuTorch and LiteRT recognize.

Activations are int8 with a zero point, weights int8 around zero with a scale for each channel. Both are those of
`core.export.standard_onnx`, with activations shifted from uint8.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.ao.quantization.fx import _decomposed as _registers_operations  # noqa: F401

from core.export.standard_onnx import IntegerFolded, Levels
from core.models.replacement import replace_kind

LOWEST, HIGHEST = -128, 127
INTEGERS = torch.ops.quantized_decomposed


def decompose(network: nn.Module, layer: type[nn.Module], last: type[nn.Module]) -> None:
    """Replaces the modules of a standard network: quantizers by `Quantized`, layers by `layer`, and those whose output is the scores by
    `last`; both are made from an IntegerFolded. A full-precision network stays unchanged.
    """
    for name in _layers_before_output(network):
        found = network.get_submodule(name)
        assert isinstance(found, IntegerFolded)
        network.set_submodule(name, last(found))
    replace_kind(network, IntegerFolded, layer)
    replace_kind(network, Levels, Quantized)


def _layers_before_output(network: nn.Module) -> list[str]:
    """Names of the layers between which and the scores there is no quantizer."""
    if not isinstance(network, fx.GraphModule):
        return []
    modules = dict(network.named_modules(remove_duplicate=False))

    def is_last(node: fx.Node) -> bool:
        return any(user.op == "output" or (not isinstance(modules.get(str(user.target)), Levels) and is_last(user)) for user in node.users)

    nodes = [node for node in network.graph.nodes if node.op == "call_module" and isinstance(modules[str(node.target)], IntegerFolded)]
    return [str(node.target) for node in nodes if is_last(node)]


class Folded(nn.Module):
    """An IntegerFolded as these operations. Its bias of floats is on the grid of the sums, to which the programs round it."""

    weight: Tensor
    weight_scale: Tensor
    bias: Tensor
    zeros: Tensor

    def __init__(self, source: IntegerFolded) -> None:
        super().__init__()
        self.applied = source.applied
        self.register_buffer("weight", source.weight)
        self.register_buffer("weight_scale", source.weight_scale)
        self.register_buffer("bias", source.bias.float() * source.bias_scale)
        self.register_buffer("zeros", torch.zeros_like(source.bias, dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        ends = (-HIGHEST, HIGHEST)
        weight = INTEGERS.dequantize_per_channel.default(self.weight, self.weight_scale, self.zeros, 0, *ends, torch.int8)
        return self.applied(x, weight, self.bias)


class Quantized(nn.Module):
    """Levels as these operations, with int8 in place of uint8. Where not all of int8 are levels, a clamp comes first."""

    def __init__(self, source: Levels) -> None:
        super().__init__()
        shift = 0 if source.symmetric else -128
        self.scale, self.zero_point = float(source.scale), int(source.zero_point) + shift
        lowest, highest = source.lowest + shift, source.highest + shift
        self.is_clamped = (lowest, highest) != (LOWEST, HIGHEST)
        self.lower, self.upper = ((level - self.zero_point) * self.scale for level in (lowest, highest))

    def forward(self, x: Tensor) -> Tensor:
        if self.is_clamped:
            x = F.hardtanh(x, self.lower, self.upper)  # which XNNPACK fuses into the operation before, unlike clamp
        levels = (self.scale, self.zero_point, LOWEST, HIGHEST, torch.int8)
        integers = INTEGERS.quantize_per_tensor.default(x, *levels)
        result: Tensor = INTEGERS.dequantize_per_tensor.default(integers, *levels)
        return result
