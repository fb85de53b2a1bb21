"""A quantized network with QuantizeLinear and DequantizeLinear where runtimes expect them, which fuse it into kernels for integers.

Around each layer, runtimes look for DequantizeLinear -> Conv -> QuantizeLinear, with a bias of int32 whose scale is that of the input times
that of the weight, and nothing between. So, compared with the network that is trained:

- BatchNorm layers are folded into weights and bias, exactly, but for rounding the bias to its grid.
- A ReLU before a quantizer becomes a limit of its levels, exactly.
- Weights are int8 around zero. A channel with levels beyond 127, which 8-bit weights with another zero point have, is rounded once more.
- The image, and outputs of layers and additions that the network does not quantize, such as those before a residual addition, pass
  8-bit quantizers, whose ranges are those of images. These change the scores by little; see `core.export.verify` for how much.

Activations are uint8, whose kernels are two to three times as fast as those of int8 on x86 processors. In a symmetric network, for
runtimes that support no other, they are int8 around zero: all levels of up to 7 bits, while 8-bit levels are rounded once more.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from core.models.tracing import has_activation_inside
from core.quantization.integer.inference import is_affine, with_batch_norm
from core.quantization.integer.weights import FixedQuantizer, IntegerConv2d, IntegerLinear, by_channel, integer_network
from core.quantization.placement import QuantizedNetwork, is_value_preserving

_BATCH = 64  # images of a forward pass that finds ranges
_LARGEST_WEIGHT, _HIGHEST = 127, 255
_INT8 = (-128, 127)
_LARGEST_BIAS = 1 << 30
_SMALLEST_SCALE = 1e-30
_Layer = IntegerConv2d | IntegerLinear
_ADDITIONS = {operator.add, operator.iadd, torch.add, "add", "add_"}
_RELU = {F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"}


class Levels(nn.Module):
    """Quantize-dequantize of an activation to uint8, or int8 if symmetric: q = clamp(round(x / scale) + zero point, lowest, highest).

    bits: of the levels that occur. Symmetric levels have the zero point 0. Until a range is set, the input is returned unchanged, and its
    smallest and largest values are kept.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, bits: int = 8, symmetric: bool = False) -> None:
        super().__init__()
        self.bits, self.symmetric, self.ready = bits, symmetric, False
        self.lowest, self.highest = 0, _HIGHEST
        self.least, self.most = 0.0, 0.0
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("zero_point", torch.zeros((), dtype=torch.uint8))

    @classmethod
    def like(cls, quantizer: FixedQuantizer, lower: float, upper: float, symmetric: bool = False) -> Levels:
        """The levels of `quantizer` for an input that is first clamped to [lower, upper], an interval that contains zero."""
        made = cls(quantizer.bits, symmetric)
        scale, zero_point = quantizer.scale.double(), int(quantizer.zero_point)
        ends = torch.round(torch.tensor([lower, upper], dtype=torch.double) / scale.cpu()).tolist()
        lowest = int(max(quantizer.lowest - zero_point, ends[0]))
        highest = int(min(quantizer.highest - zero_point, ends[1]))
        if symmetric:
            coarser = max(1.0, -lowest / -_INT8[0], highest / _INT8[1])
            made._set(quantizer.scale * coarser, 0, round(lowest / coarser), round(highest / coarser))
        else:
            made._set(quantizer.scale, -lowest, 0, highest - lowest)
        return made

    def _set(self, scale: Tensor, zero_point: int, lowest: int, highest: int) -> None:
        self.scale = scale.detach().clone()
        self.zero_point = torch.tensor(zero_point, dtype=torch.int8 if self.symmetric else torch.uint8, device=scale.device)
        self.lowest, self.highest, self.ready = lowest, highest, True

    def set_seen_range(self) -> None:
        """Sets the range to that of the values seen so far, widened to contain zero."""
        if self.symmetric:
            largest = max(-self.least, self.most)
            self._set(torch.tensor(largest / _INT8[1] if largest > 0 else 1.0, device=self.scale.device), 0, *_INT8)
            return
        width = self.most - self.least
        scale = width / _HIGHEST if width > 0 else 1.0
        self._set(torch.tensor(scale, device=self.scale.device), round(-self.least / scale), 0, _HIGHEST)

    def forward(self, x: Tensor) -> Tensor:
        if not self.ready:
            self.least, self.most = min(self.least, float(x.min())), max(self.most, float(x.max()))
            return x
        zero_point = self.zero_point.float()
        return torch.div(x, self.scale).round_().add_(zero_point).clamp_(self.lowest, self.highest).sub_(zero_point).mul_(self.scale)


class IntegerFolded(nn.Module):
    """A convolution or linear layer with the BatchNorm after it: int8 weights `(C, ...)`, scales `(C,)`, and a bias of int32 `(C,)`.

    The value of an integer of the bias is `bias_scale`, that of the input times that of the weight. Until `finish` knows the former, the
    layer computes with floats.
    """

    weight: Tensor
    weight_scale: Tensor
    bias: Tensor
    bias_scale: Tensor

    def __init__(self, layer: _Layer, batch_norm: nn.BatchNorm2d | None) -> None:
        super().__init__()
        self.bits, self.ready = layer.integer_weight.bits, False
        self.convolution = layer if isinstance(layer, IntegerConv2d) else None
        levels = layer.integer_weight.levels().double()
        scale, shift = with_batch_norm(layer.integer_weight.scale.double(), layer, batch_norm)
        for name, value in (("weight", levels), ("weight_scale", scale), ("bias", shift), ("bias_scale", torch.ones_like(shift))):
            self.register_buffer(name, value)

    def finish(self, input_scale: Tensor) -> None:
        """Rounds weights and bias. input_scale: of the quantizer of the input."""
        levels, scale, shift = self.weight, self.weight_scale, self.bias
        largest = levels.abs().flatten(1).amax(dim=1)
        finest = scale.abs() * (largest / _LARGEST_WEIGHT).clamp(min=1.0)
        # a channel of nearly constant output, whose bias would exceed int32
        own = torch.maximum(finest, shift.abs() / (input_scale.double() * _LARGEST_BIAS)).clamp(min=_SMALLEST_SCALE)
        self.weight = torch.round(levels * by_channel(scale / own, levels)).to(torch.int8).contiguous()
        self.weight_scale, self.bias_scale = own.float(), (input_scale.double() * own).float()
        self.bias = torch.round(shift / (input_scale.double() * own)).to(torch.int32)
        self.ready = True

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.float() * by_channel(self.weight_scale.float(), self.weight)
        bias = self.bias.float() * self.bias_scale.float()
        return self.applied(x, weight, bias)

    def applied(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """The layer with this weight and bias."""
        return F.linear(x, weight, bias) if self.convolution is None else self.convolution._conv_forward(x, weight, bias)


def standard_network(quantized: QuantizedNetwork, images: Tensor, symmetric: bool = False) -> fx.GraphModule:
    """The network made of the modules above, in evaluation mode; `quantized`, which must have been traced, stays unchanged.

    images: normalized, `(N, C, H, W)`, which the ranges of the 8-bit quantizers are those of. symmetric: activations as int8 around zero.
    """
    network = integer_network(quantized)
    assert isinstance(network, fx.GraphModule)
    with torch.no_grad():
        lowering = _Lowering(network, symmetric)
        lowering.run()
        for part in images.split(_BATCH):
            network(part)
        for levels in lowering.added:
            levels.set_seen_range()
        for folded, levels in lowering.folded.items():
            folded.finish(levels.scale)
    return network.eval().requires_grad_(False)


class _Lowering:
    """Rewrites the graph of a network made by `integer_network`.

    added: quantizers whose ranges are to be found. folded: layer -> the quantizer of its input.
    """

    def __init__(self, network: fx.GraphModule, symmetric: bool) -> None:
        self.network, self.graph, self.symmetric = network, network.graph, symmetric
        self.modules: dict[Any, nn.Module] = dict(network.named_modules(remove_duplicate=False))
        self.added: list[Levels] = []
        self.folded: dict[IntegerFolded, Levels] = {}
        self.count = 0

    def run(self) -> None:
        """Four passes: layers with their BatchNorm, quantizers with their ReLU, missing quantizers of inputs, and of outputs."""
        passes: tuple[tuple[Any, Callable[[fx.Node, Any], None]], ...] = (
            (_Layer, self._fold),
            (FixedQuantizer, self._limit),
            (IntegerFolded, self._quantize_input),
        )
        for kind, change in passes:
            for node in list(self.graph.nodes):
                if isinstance(module := self._module(node), kind):
                    change(node, module)
        for node in list(self.graph.nodes):
            if isinstance(self._module(node), IntegerFolded) or (node.op in ("call_function", "call_method") and node.target in _ADDITIONS):
                self._quantize_output(node)
        self.graph.lint()
        self.network.recompile()
        self.network.delete_all_unused_submodules()

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self.modules.get(node.target) if node.op == "call_module" else None

    def _add(self, module: nn.Module) -> str:
        name = f"standard_{self.count}"
        self.count += 1
        self.modules[name] = module
        self.network.add_submodule(name, module)
        return name

    def _fold(self, node: fx.Node, layer: Any) -> None:
        """Makes a layer and the BatchNorm that alone reads it one layer."""
        user = next(iter(node.users)) if len(node.users) == 1 else None
        follower: Any = self._module(user) if user is not None else None
        batch_norm = follower if is_affine(follower) else None
        node.target = self._add(IntegerFolded(layer, batch_norm))
        if batch_norm is not None and user is not None:
            if has_activation_inside(batch_norm):
                user.target = self._add(batch_norm.act)
            else:
                user.replace_all_uses_with(node)
                self.graph.erase_node(user)

    def _limits(self, node: fx.Node) -> tuple[float, float] | None:
        """The interval that an operation clamps its input to; None for another operation."""
        module = self._module(node)
        if isinstance(module, nn.Hardtanh):  # ReLU6 is one
            return module.min_val, module.max_val
        if isinstance(module, nn.ReLU) or (node.op in ("call_function", "call_method") and node.target in _RELU):
            return 0.0, float("inf")
        return (0.0, 6.0) if node.op == "call_function" and node.target is F.relu6 else None

    def _limit(self, node: fx.Node, quantizer: FixedQuantizer) -> None:
        """Replaces a quantizer by Levels, and a ReLU before it by their limits."""
        lower, upper = float("-inf"), float("inf")
        before = node.all_input_nodes[0]
        found = self._limits(before)
        if found is not None and len(before.users) == 1 and found[0] <= 0 <= found[1]:
            lower, upper = found
            node.replace_input_with(before, before.all_input_nodes[0])
            self.graph.erase_node(before)
        node.target = self._add(Levels.like(quantizer, lower, upper, self.symmetric))

    def _levels_of(self, node: fx.Node) -> Levels | None:
        """The quantizer whose values a node has, through value-preserving operations."""
        while not isinstance(module := self._module(node), Levels):
            if not is_value_preserving(node, self.modules) or not node.all_input_nodes:
                return None
            node = node.all_input_nodes[0]
        return module

    def _insert(self, node: fx.Node) -> Levels:
        """A quantizer after a node, for all that reads it."""
        levels = Levels(symmetric=self.symmetric)
        self.added.append(levels)
        with self.graph.inserting_after(node):
            quantized = self.graph.call_module(self._add(levels), (node,))
        node.replace_all_uses_with(quantized, delete_user_cb=lambda user: user is not quantized)
        return levels

    def _quantize_input(self, node: fx.Node, layer: IntegerFolded) -> None:
        (source,) = node.all_input_nodes
        self.folded[layer] = self._levels_of(source) or self._insert(source)

    def _quantize_output(self, node: fx.Node) -> None:
        """Inserts a quantizer after a layer or an addition, or after the ReLU that alone reads it, unless all that reads it has one, or it
        is the output of the network.
        """
        if len(node.users) == 1 and self._limits(user := next(iter(node.users))) is not None:
            node = user
        if not all(isinstance(self._module(user), Levels) or self._is_output(user) for user in node.users):
            self._insert(node)

    def _is_output(self, node: fx.Node) -> bool:
        return node.op == "output" or (is_value_preserving(node, self.modules) and all(self._is_output(user) for user in node.users))
