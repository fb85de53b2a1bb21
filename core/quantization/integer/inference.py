"""A quantized network that computes in whole numbers, as it is evaluated and as it leaves the house.

Where the training multiplies floats, (q - z) s with (p - y) t, whose sums depend on the order in which they are added up, this network
sums the whole numbers (q - z) (p - y) and multiplies once by s t: numbers below 2^24 are exact in float32 in any order, and sums of
products of two 8-bit numbers only pass that in layers with hundreds of inputs, if nearly all of them were as large as can be. So its
scores do not depend on how many threads compute them or how many images come at once, and another program that does the same, such as
onnxruntime, puts the same values on the same levels. BatchNorm behind a layer is part of that multiplication; elsewhere it becomes a
multiplication and an addition of its own.

The image is not quantized. A layer that reads it gets it rounded to multiples of 2^-k, the finest at which its sums stay below 2^24:
a fraction of the step between two values of a pixel. Where layers read so much that even 2^-8 is not enough for the worst image that
could be, it is 2^-8, as those that are do not come near it.

What is left to the last bit of the machine are operations between the layers that sum or approximate, such as pooling by averages and
sigmoid; and a GPU may multiply with fewer bits than float32 has.
"""

import copy
import math
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from core.models.full_precision import batch_norm_affine
from core.models.registry import ModelSpec
from core.models.tracing import computes_as, has_activation_inside
from core.quantization.integer.weights import FixedQuantizer, IntegerConv2d, IntegerLinear, exchange, integer_network
from core.quantization.placement import QuantizedNetwork, passes_values_on

EXACT = 1 << 24  # whole numbers up to here are exact in float32
FINEST, COARSEST = 14, 8  # k of the grid of images, 2^-k: beyond 14 nothing is gained, below 8 it would show
_SPLITTING = {torch.chunk, torch.split, "chunk", "split"}  # whose result is not a tensor
_ASKING = {"size", "dim"}  # for the shape alone, as reading an attribute of these names is
_ATTRIBUTES = {"shape", "ndim", "dtype", "device"}
_Layer = IntegerConv2d | IntegerLinear


class Levels(nn.Module):
    """The level on which an activation lies, counted from zero: round(x / scale), clamped to the range; a whole number in float32.

    It is (q - zero point). Without adding the zero point before rounding, as the training does, nothing is lost in the sum.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, quantizer: FixedQuantizer) -> None:
        super().__init__()
        self.bits = quantizer.bits
        self.register_buffer("scale", quantizer.scale)
        self.register_buffer("zero_point", quantizer.zero_point)
        zero_point = int(quantizer.zero_point)
        self.lowest, self.highest = quantizer.lowest - zero_point, quantizer.highest - zero_point

    def forward(self, x: Tensor) -> Tensor:
        return torch.div(x, self.scale).round_().clamp_(self.lowest, self.highest)


class ImageLevels(nn.Module):
    """The image rounded to multiples of `scale`, a power of two, in these multiples."""

    scale: Tensor

    def __init__(self, layer: _Layer, largest: float) -> None:
        """largest: absolute value of a pixel of a normalised image."""
        super().__init__()
        weight = layer.integer_weight
        sums = float(weight.levels().abs().flatten(1).sum(dim=1).max())
        finest = math.floor(math.log2(EXACT / max(sums * largest, 1.0)))
        self.register_buffer("scale", torch.tensor(2.0 ** -min(max(finest, COARSEST), FINEST), device=weight.scale.device))

    def forward(self, x: Tensor) -> Tensor:
        return torch.div(x, self.scale).round_()


class Value(nn.Module):
    """What the levels of an activation stand for."""

    scale: Tensor

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)

    def forward(self, levels: Tensor) -> Tensor:
        return levels * self.scale


class Sums(nn.Module):
    """A layer over the levels of its input: whole numbers, without its scales and its bias."""

    def __init__(self, layer: _Layer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, levels: Tensor) -> Tensor:
        weight = self.layer.integer_weight.levels()
        return self.layer._conv_forward(levels, weight, None) if isinstance(self.layer, IntegerConv2d) else F.linear(levels, weight)


class Affine(nn.Module):
    """x a + b for each channel, along dimension 1; with `overwrite` in the memory of x."""

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: Tensor, shift: Tensor, dimensions: int, overwrite: bool = False) -> None:
        """scale, shift: float64 `(C,)`. dimensions: of x."""
        super().__init__()
        self.overwrite = overwrite
        shape = (-1, *[1] * (dimensions - 2))
        self.register_buffer("scale", scale.float().view(shape))
        self.register_buffer("shift", shift.float().view(shape))

    def forward(self, x: Tensor) -> Tensor:
        if self.overwrite:
            return x.mul_(self.scale).add_(self.shift)
        return x * self.scale + self.shift


class _Alone(nn.Module):
    """A layer with all that it needs, where there is no graph."""

    def __init__(self, layer: _Layer, largest: float) -> None:
        super().__init__()
        own = layer.input_quantizer
        self.levels = Levels(own) if isinstance(own, FixedQuantizer) else ImageLevels(layer, largest)
        self.sums = Sums(layer)
        self.affine = _rescaled(layer, self.levels.scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.affine(self.sums(self.levels(x)))


def whole_number_network(quantized: QuantizedNetwork, spec: ModelSpec) -> nn.Module:
    """The quantized network in evaluation mode, frozen, computing in whole numbers; `quantized` is left alone.

    spec: of the network, for how far its images reach. Normalised images `(N, 3, size, size)` -> scores `(N, classes)`, those of
    `quantized` but for values that its rounding errors put on another level. Raises ModelError where a range has not been found yet.
    """
    return in_whole_numbers(integer_network(quantized), quantized.traced, spec)


def in_whole_numbers(network: nn.Module, traced: bool, spec: ModelSpec) -> nn.Module:
    """`whole_number_network` of what `integer_network` made, which is used up; traced: as the QuantizedNetwork says."""
    largest = max(max(mean, 1 - mean) / std for mean, std in zip(spec.mean, spec.std))
    with torch.no_grad():
        if traced:
            assert isinstance(network, fx.GraphModule)
            _Lowering(network, largest).run()
        else:
            exchange(network, (IntegerConv2d, IntegerLinear), lambda layer: _Alone(layer, largest))
        exchange(network, nn.BatchNorm2d, _alone)
    return network.eval().requires_grad_(False)


def _rescaled(layer: _Layer, input_scale: Tensor, normalisation: nn.BatchNorm2d | None = None) -> Affine:
    """What makes the outputs of a layer, or of the BatchNorm behind it, of its sums."""
    scale = input_scale.double() * layer.integer_weight.scale.double()
    shift = torch.zeros_like(scale) if layer.bias is None else layer.bias.double()
    if normalisation is not None:
        factor, offset = _affine_of(normalisation)
        scale, shift = scale * factor, shift * factor + offset
    return Affine(scale, shift, 4 if isinstance(layer, IntegerConv2d) else 2, overwrite=True)


def _is_affine(layer: nn.Module | None) -> bool:
    """Whether it is a BatchNorm layer that is a multiplication and an addition, before an activation inside if it has one."""
    known = isinstance(layer, nn.BatchNorm2d) and (computes_as(layer, nn.BatchNorm2d) or has_activation_inside(layer))
    return known and layer.running_mean is not None  # type: ignore[union-attr]


def _affine_of(layer: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """a and b, float64 `(C,)`, with which it is a x + b."""
    return batch_norm_affine(copy.deepcopy(layer).double())


def _activation_of(layer: Any) -> nn.Module:
    return layer.act if has_activation_inside(layer) else nn.Identity()


def _alone(layer: nn.BatchNorm2d) -> nn.Module:
    """What takes the place of a BatchNorm layer that is no part of what stands before it; of an unknown kind it stays as it is."""
    return nn.Sequential(Affine(*_affine_of(layer), dimensions=4), _activation_of(layer)) if _is_affine(layer) else layer


def _only_asks(node: fx.Node) -> bool:
    """Whether a node says something of its input that does not depend on its values."""
    return node.args[1] in _ATTRIBUTES if node.target is getattr else node.target in _ASKING


class _Lowering:
    """Rewrites the graph of a network, node by node."""

    def __init__(self, network: fx.GraphModule, largest: float) -> None:
        self.network, self.graph, self.largest = network, network.graph, largest
        self.modules: dict[Any, nn.Module] = dict(network.named_modules(remove_duplicate=False))
        self.scales: dict[fx.Node, Tensor] = {}  # nodes whose values are levels -> what a level stands for
        self.values: dict[fx.Node, fx.Node] = {}  # such a node -> the one of what they stand for
        self.added = 0

    def run(self) -> None:
        for node in list(self.graph.nodes):
            module = self.modules.get(node.target) if node.op == "call_module" else None
            if isinstance(module, FixedQuantizer):
                node.target = self._add(Levels(module))
                self.scales[node] = module.scale
            elif isinstance(module, _Layer):
                self._layer(node, module)
            elif self._passes_levels_on(node):
                self.scales[node] = self.scales[node.all_input_nodes[0]]
            elif not _only_asks(node):
                for source in node.all_input_nodes:
                    if source in self.scales:
                        node.replace_input_with(source, self._value(source))
        self.graph.lint()
        self.network.recompile()
        self.network.delete_all_unused_submodules()

    def _add(self, module: nn.Module) -> str:
        name = f"whole_{self.added}"
        self.added += 1
        self.modules[name] = module
        self.network.add_submodule(name, module)
        return name

    def _passes_levels_on(self, node: fx.Node) -> bool:
        if not passes_values_on(node, self.modules) or not node.all_input_nodes or node.all_input_nodes[0] not in self.scales:
            return False
        return node.target not in _SPLITTING or all(user.target is operator.getitem for user in node.users)

    def _value(self, source: fx.Node) -> fx.Node:
        if source not in self.values:
            with self.graph.inserting_after(source):
                self.values[source] = self.graph.call_module(self._add(Value(self.scales[source])), (source,))
        return self.values[source]

    def _layer(self, node: fx.Node, layer: _Layer) -> None:
        """Two nodes for a layer, and for the BatchNorm behind it where nobody else reads the layer."""
        (source,) = node.all_input_nodes
        if source not in self.scales:
            image = ImageLevels(layer, self.largest)
            with self.graph.inserting_before(node):
                levels = self.graph.call_module(self._add(image), (source,))
            node.replace_input_with(source, levels)
            source, self.scales[levels] = levels, image.scale
        user = next(iter(node.users)) if len(node.users) == 1 else None
        follower: Any = self.modules.get(user.target) if user is not None and user.op == "call_module" else None
        normalisation = follower if _is_affine(follower) else None
        with self.graph.inserting_after(node):
            rescaled = self.graph.call_module(self._add(_rescaled(layer, self.scales[source], normalisation)), (node,))
        node.target = self._add(Sums(layer))
        node.replace_all_uses_with(rescaled, delete_user_cb=lambda other: other is not rescaled)
        if normalisation is not None and user is not None:
            user.target = self._add(_activation_of(normalisation))
