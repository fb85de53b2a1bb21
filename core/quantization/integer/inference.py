"""A quantized network that computes with integers, as it is evaluated and exported.

Training multiplies floats, (q - z) s times (p - y) t, and their sum depends on the order of the additions. This network sums the
integers (q - z) (p - y) and multiplies the sum once by s t. Integers up to 2^24 are exact in float32 in any order; sums of products of
two 8-bit numbers exceed that only in layers with hundreds of inputs, if nearly all of them are close to the largest value. The scores
therefore do not depend on the number of threads or on the batch size, and another program that computes in the same way, such as
onnxruntime, rounds values to the same levels. A BatchNorm after a layer is folded into the multiplication; any other BatchNorm becomes
a multiplication and an addition.

The image is not quantized. A layer that reads it, or what the network itself computes from it before its first layers, gets values
rounded to multiples of 2^-k, with the largest k for which its sums stay within 2^24. For values up to between 2 and 4, as those of
normalized images, k is at most 14: the error is a fraction of the step between two pixel values. For layers with so many inputs that
the worst possible image would need k below 8, k is 8, because real images do not come near that worst case.

Two sources of differences in the last bits remain: operations between the layers that sum or approximate, such as average pooling and
sigmoid, and GPUs that multiply with fewer bits than float32 has.
"""

import copy
import itertools
import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from core.models.full_precision import batch_norm_affine
from core.models.hooks import hooked
from core.models.registry import ModelSpec
from core.models.replacement import replace_kind
from core.models.tracing import computes_as, has_activation_inside
from core.quantization.integer.weights import FixedQuantizer, IntegerConv2d, IntegerLinear, integer_network
from core.quantization.placement import QuantizedNetwork, is_value_preserving

EXACT = 1 << 24  # integers up to here are exact in float32
# limits of k in the image grid 2^-k, for values up to between 2 and 4: above 14 nothing is gained, below 8 the rounding would be visible
FINEST, COARSEST = 14, 8
_SPLITTING = {torch.chunk, torch.split, "chunk", "split"}  # operations that return several tensors
_SHAPE_METHODS = {"size", "dim"}
_SHAPE_ATTRIBUTES = {"shape", "ndim", "dtype", "device"}
_Layer = IntegerConv2d | IntegerLinear


class QuantizeActivation(nn.Module):
    """The level of an activation, counted from zero: q - zero point = round(x / scale), clamped to the range; integers in float32.

    Training adds the zero point before rounding; leaving it out here avoids the rounding error of that sum.
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


class QuantizeImage(nn.Module):
    """The image rounded to multiples of `scale`, a power of two, and divided by it; integers in float32."""

    scale: Tensor

    def __init__(self, layer: _Layer, largest: float) -> None:
        """layer: the one that reads the image. largest: maximum absolute value that it reads; zero counts as 2."""
        super().__init__()
        weight, largest = layer.integer_weight, largest or 2.0
        sums = float(weight.levels().abs().flatten(1).sum(dim=1).max())
        finest = math.floor(math.log2(EXACT / (max(sums, 1.0) * largest)))
        more = 1 - math.floor(math.log2(largest))
        self.register_buffer("scale", torch.tensor(2.0 ** -min(max(finest, COARSEST + more), FINEST + more), device=weight.scale.device))

    def forward(self, x: Tensor) -> Tensor:
        return torch.div(x, self.scale).round_()


class Dequantize(nn.Module):
    """Levels -> the values they represent, levels * scale."""

    scale: Tensor

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)

    def forward(self, levels: Tensor) -> Tensor:
        return levels * self.scale


class IntegerMatmul(nn.Module):
    """A convolution or linear layer applied to the levels of its input, without scales and bias: integers in float32."""

    def __init__(self, layer: _Layer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, levels: Tensor) -> Tensor:
        weight = self.layer.integer_weight.levels()
        return self.layer._conv_forward(levels, weight, None) if isinstance(self.layer, IntegerConv2d) else F.linear(levels, weight)


class ChannelAffine(nn.Module):
    """a x + b with one a and b per channel, along dimension 1. With `overwrite`, the result takes the memory of x."""

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: Tensor, shift: Tensor, dimensions: int, overwrite: bool = False) -> None:
        """scale, shift: a and b, float64 `(C,)`. dimensions: number of dimensions of x."""
        super().__init__()
        self.overwrite = overwrite
        shape = (-1, *[1] * (dimensions - 2))
        self.register_buffer("scale", scale.float().view(shape))
        self.register_buffer("shift", shift.float().view(shape))

    def forward(self, x: Tensor) -> Tensor:
        if self.overwrite:
            return x.mul_(self.scale).add_(self.shift)
        return x * self.scale + self.shift


class StandaloneLayer(nn.Module):
    """A layer that quantizes its input and rescales its output itself, for networks that cannot be traced."""

    def __init__(self, layer: _Layer, largest: float) -> None:
        super().__init__()
        quantizer = layer.input_quantizer
        self.levels = QuantizeActivation(quantizer) if isinstance(quantizer, FixedQuantizer) else QuantizeImage(layer, largest)
        self.matmul = IntegerMatmul(layer)
        self.rescale = _rescaling(layer, self.levels.scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.rescale(self.matmul(self.levels(x)))


def integer_inference_network(quantized: QuantizedNetwork, spec: ModelSpec) -> nn.Module:
    """The quantized network in evaluation mode, frozen, computing with integers; `quantized` stays unchanged.

    spec: of the network; its shape, mean and standard deviation bound the values that its first layers read. Normalized images
    `(N, *spec.shape)` -> scores `(N, classes)`. They equal those of `quantized`, except where rounding errors of its float sums move a
    value to another level.
    Raises ModelError if a range has not been set.
    """
    return to_integer_inference(integer_network(quantized), quantized.traced, spec)


def to_integer_inference(network: nn.Module, traced: bool, spec: ModelSpec) -> nn.Module:
    """`integer_inference_network` of a network made by `integer_network`, which is modified. traced: as in QuantizedNetwork."""
    with torch.no_grad():
        largest = _largest_inputs(network, spec)
        if traced:
            assert isinstance(network, fx.GraphModule)
            _Lowering(network, largest).run()
        else:
            replace_kind(network, (IntegerConv2d, IntegerLinear), lambda layer: StandaloneLayer(layer, max(largest.get(layer, [0.0]))))
        replace_kind(network, nn.BatchNorm2d, _standalone_batch_norm)
    return network.eval().requires_grad_(False)


def _largest_inputs(network: nn.Module, spec: ModelSpec) -> dict[nn.Module, list[float]]:
    """Layer -> the maximum absolute value that each of its calls reads, for a black image, a white one, and noise between them.

    An image has no larger values, nor has what a monotonic function, such as a normalization, makes of them.
    """
    tensor = next(itertools.chain(network.parameters(), network.buffers()))
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (spec.mean, spec.std))
    pixels = torch.rand(3, *spec.shape, generator=torch.Generator().manual_seed(0))
    pixels[0], pixels[1] = 0.0, 1.0
    found: dict[nn.Module, list[float]] = {}
    layers = {layer: layer for layer in network.modules() if isinstance(layer, _Layer)}
    with hooked(layers, before_forward=lambda layer, inputs: found.setdefault(layer, []).append(float(inputs[0].abs().max()))):
        network(((pixels - mean) / std).to(tensor.device, memory_format=torch.channels_last))
    return found


def _rescaling(layer: _Layer, input_scale: Tensor, batch_norm: nn.BatchNorm2d | None = None) -> ChannelAffine:
    """Maps the integer sums of a layer to its output or, with `batch_norm`, to the output of the BatchNorm that follows."""
    scale, shift = with_batch_norm(input_scale.double() * layer.integer_weight.scale.double(), layer, batch_norm)
    return ChannelAffine(scale, shift, 4 if isinstance(layer, IntegerConv2d) else 2, overwrite=True)


def with_batch_norm(scale: Tensor, layer: _Layer, batch_norm: nn.BatchNorm2d | None) -> tuple[Tensor, Tensor]:
    """What sums of a layer are multiplied with, and what is added, to get the output of the BatchNorm after it: float64 `(C,)` each.

    scale: what they are multiplied with to get the output of the layer without its bias, float64 `(C,)`.
    """
    shift = torch.zeros_like(scale) if layer.bias is None else layer.bias.double()
    if batch_norm is None:
        return scale, shift
    factor, offset = _affine_of(batch_norm)
    return scale * factor, shift * factor + offset


def is_affine(layer: nn.Module | None) -> bool:
    """Whether it is a BatchNorm layer that computes a x + b, followed by its built-in activation if it has one."""
    known = isinstance(layer, nn.BatchNorm2d) and (computes_as(layer, nn.BatchNorm2d) or has_activation_inside(layer))
    return known and layer.running_mean is not None  # type: ignore[union-attr]


def _affine_of(layer: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """a and b of a BatchNorm layer, float64 `(C,)`."""
    return batch_norm_affine(copy.deepcopy(layer).double())


def _activation_of(layer: Any) -> nn.Module:
    return layer.act if has_activation_inside(layer) else nn.Identity()


def _standalone_batch_norm(layer: nn.BatchNorm2d) -> nn.Module:
    """The replacement of a BatchNorm layer that is not folded into the layer before it; an unknown kind stays as it is."""
    return nn.Sequential(ChannelAffine(*_affine_of(layer), dimensions=4), _activation_of(layer)) if is_affine(layer) else layer


def _reads_shape_only(node: fx.Node) -> bool:
    """Whether the result of a node does not depend on the values of its input."""
    return node.args[1] in _SHAPE_ATTRIBUTES if node.target is getattr else node.target in _SHAPE_METHODS


class _Lowering:
    """Rewrites the graph of a network so that its layers compute with integers."""

    def __init__(self, network: fx.GraphModule, largest: Mapping[nn.Module, Sequence[float]]) -> None:
        """largest: as `_largest_inputs` returns it."""
        self.network, self.graph = network, network.graph
        self.largest = {layer: iter(calls) for layer, calls in largest.items()}
        self.modules: dict[Any, nn.Module] = dict(network.named_modules(remove_duplicate=False))
        self.scales: dict[fx.Node, Tensor] = {}  # nodes that output levels -> the value of one level
        self.dequantized: dict[fx.Node, fx.Node] = {}  # such a node -> the node that dequantizes it
        self.added = 0

    def run(self) -> None:
        """Goes through the nodes in order: each outputs levels if it can, and reads dequantized values if it must."""
        for node in list(self.graph.nodes):
            module = self.modules.get(node.target) if node.op == "call_module" else None
            if isinstance(module, FixedQuantizer):
                node.target = self._add(QuantizeActivation(module))
                self.scales[node] = module.scale
            elif isinstance(module, _Layer):
                self._lower_layer(node, module)
            elif self._preserves_levels(node):
                self.scales[node] = self.scales[node.all_input_nodes[0]]
            elif not _reads_shape_only(node):
                for source in node.all_input_nodes:
                    if source in self.scales:
                        node.replace_input_with(source, self._dequantize(source))
        self.graph.lint()
        self.network.recompile()
        self.network.delete_all_unused_submodules()

    def _add(self, module: nn.Module) -> str:
        name = f"integer_{self.added}"
        self.added += 1
        self.modules[name] = module
        self.network.add_submodule(name, module)
        return name

    def _preserves_levels(self, node: fx.Node) -> bool:
        if not is_value_preserving(node, self.modules) or not node.all_input_nodes or node.all_input_nodes[0] not in self.scales:
            return False
        return node.target not in _SPLITTING or all(user.target is operator.getitem for user in node.users)

    def _dequantize(self, source: fx.Node) -> fx.Node:
        if source not in self.dequantized:
            with self.graph.inserting_after(source):
                self.dequantized[source] = self.graph.call_module(self._add(Dequantize(self.scales[source])), (source,))
        return self.dequantized[source]

    def _lower_layer(self, node: fx.Node, layer: _Layer) -> None:
        """Replaces a layer by an integer matmul and a rescaling, with the following BatchNorm if that is the only reader."""
        (source,) = node.all_input_nodes
        largest = next(self.largest[layer])
        if source not in self.scales:
            image = QuantizeImage(layer, largest)
            with self.graph.inserting_before(node):
                levels = self.graph.call_module(self._add(image), (source,))
            node.replace_input_with(source, levels)
            source, self.scales[levels] = levels, image.scale
        user = next(iter(node.users)) if len(node.users) == 1 else None
        follower: Any = self.modules.get(user.target) if user is not None and user.op == "call_module" else None
        batch_norm = follower if is_affine(follower) else None
        with self.graph.inserting_after(node):
            rescaled = self.graph.call_module(self._add(_rescaling(layer, self.scales[source], batch_norm)), (node,))
        node.target = self._add(IntegerMatmul(layer))
        node.replace_all_uses_with(rescaled, delete_user_cb=lambda other: other is not rescaled)
        if batch_norm is not None and user is not None:
            user.target = self._add(_activation_of(batch_norm))
