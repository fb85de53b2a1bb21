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

import math
import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from core.models.registry import ModelSpec
from core.models.tracing import computes_as
from core.quantization.integers import FixedQuantizer, IntegerConv2d, IntegerLinear, exchange, integer_network
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
    return in_whole_numbers(integer_network(quantized), spec)


def in_whole_numbers(network: nn.Module, spec: ModelSpec) -> nn.Module:
    """`whole_number_network` of what `integer_network` made, which is used up."""
    largest = max(max(mean, 1 - mean) / std for mean, std in zip(spec.mean, spec.std))
    with torch.no_grad():
        # a graph that could not be traced further has its quantizers in the layers, as what is no graph has
        inside = any(isinstance(module, _Layer) and isinstance(module.input_quantizer, FixedQuantizer) for module in network.modules())
        if isinstance(network, fx.GraphModule) and not inside:
            _Lowering(network, largest).run()
        else:
            exchange(network, (IntegerConv2d, IntegerLinear), lambda layer: _Alone(layer, largest))
        exchange(network, nn.BatchNorm2d, _affine_of)
    return network.eval().requires_grad_(False)


def _rescaled(layer: _Layer, input_scale: Tensor, normalisation: nn.Module | None = None) -> Affine:
    """What makes the outputs of a layer, or of the BatchNorm behind it, of its sums."""
    scale = input_scale.double() * layer.integer_weight.scale.double()
    shift = torch.zeros_like(scale) if layer.bias is None else layer.bias.double()
    if normalisation is not None:
        factor, offset = _batch_norm(normalisation)
        scale, shift = scale * factor, shift * factor + offset
    return Affine(scale, shift, 4 if isinstance(layer, IntegerConv2d) else 2, overwrite=True)


def _batch_norm(layer: Any) -> tuple[Tensor, Tensor]:
    """a and b, float64 `(C,)`, with which a BatchNorm layer in evaluation mode is x a + b."""
    scale = 1 / torch.sqrt(layer.running_var.double() + layer.eps)
    if layer.weight is None:
        return scale, -scale * layer.running_mean.double()
    scale = scale * layer.weight.double()
    return scale, layer.bias.double() - scale * layer.running_mean.double()


def _affine_of(layer: nn.BatchNorm2d) -> nn.Module:
    """A BatchNorm layer on its own, as it is where it is of an unknown kind."""
    if layer.running_mean is None or not _is_known(layer):
        return layer
    affine = Affine(*_batch_norm(layer), dimensions=4)
    return affine if computes_as(layer, nn.BatchNorm2d) else nn.Sequential(affine, layer.act)  # type: ignore[arg-type]


def _is_known(layer: nn.BatchNorm2d) -> bool:
    """Whether it is a BatchNorm layer as torch has it, or one of timm's with an activation inside."""
    if computes_as(layer, nn.BatchNorm2d):
        return True
    if not hasattr(layer, "act"):
        return False
    from timm.layers import BatchNormAct2d  # takes seconds, which whoever built such a layer has spent already

    return computes_as(layer, BatchNormAct2d)


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
        self.folded: set[fx.Node] = set()  # BatchNorm layers that are part of what stands before them
        self.added = 0

    def run(self) -> None:
        for node in list(self.graph.nodes):
            if node in self.folded:
                continue
            module = self.modules.get(node.target) if node.op == "call_module" else None
            if isinstance(module, FixedQuantizer):
                node.target = self._add(partial(Levels, module))
                self.scales[node] = module.scale
            elif isinstance(module, (IntegerConv2d, IntegerLinear)):
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

    def _add(self, make: Callable[[], nn.Module]) -> str:
        name = f"whole_{self.added}"
        self.added += 1
        self.modules[name] = make()
        self.network.add_submodule(name, self.modules[name])
        return name

    def _passes_levels_on(self, node: fx.Node) -> bool:
        if not passes_values_on(node, self.modules) or not node.all_input_nodes or node.all_input_nodes[0] not in self.scales:
            return False
        return node.target not in _SPLITTING or all(user.target is operator.getitem for user in node.users)

    def _value(self, source: fx.Node) -> fx.Node:
        if source not in self.values:
            with self.graph.inserting_after(source):
                self.values[source] = self.graph.call_module(self._add(partial(Value, self.scales[source])), (source,))
        return self.values[source]

    def _layer(self, node: fx.Node, layer: _Layer) -> None:
        """Two nodes for a layer, and for the BatchNorm behind it where nobody else reads the layer."""
        (source,) = node.all_input_nodes
        if source not in self.scales:
            image = ImageLevels(layer, self.largest)
            with self.graph.inserting_before(node):
                levels = self.graph.call_module(self._add(lambda: image), (source,))
            node.replace_input_with(source, levels)
            source, self.scales[levels] = levels, image.scale
        user = next(iter(node.users)) if len(node.users) == 1 else None
        follower = self.modules.get(user.target) if user is not None and user.op == "call_module" else None
        is_normalised = isinstance(follower, nn.BatchNorm2d) and follower.running_mean is not None and _is_known(follower)
        normalisation = follower if is_normalised else None
        with self.graph.inserting_after(node):
            affine = _rescaled(layer, self.scales[source], normalisation)
            rescaled = self.graph.call_module(self._add(lambda: affine), (node,))
        node.target = self._add(partial(Sums, layer))
        if normalisation is None or user is None:
            node.replace_all_uses_with(rescaled, delete_user_cb=lambda other: other is not rescaled)
        elif computes_as(normalisation, nn.BatchNorm2d):
            user.replace_all_uses_with(rescaled)
            self.graph.erase_node(user)
            self.folded.add(user)
        else:
            user.target = self._add(lambda: normalisation.act)  # type: ignore[arg-type,return-value]
            user.replace_input_with(node, rescaled)
