"""The network as generation runs it: each convolution fused with its BatchNorm layer, the batch statistics and the activation.

BatchNorm in evaluation mode is a scale a and a shift for each channel, which are folded into the convolution before it:

    y = a conv(x) + b,    a = gamma / sqrt(running var + eps),    b = beta - a running mean

The input of the BatchNorm layer is (y - b) / a, so its statistics follow from those of y, and only y is saved for the backward pass, which
goes through activation, statistics and BatchNorm in one kernel (kernels.py).
"""

import copy
import operator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from core.errors import ModelError
from core.generation.bn_statistics import (
    BatchStatistics,
    collect_statistics,
    empty_statistics,
    observed_statistics,
    with_batch,
)
from core.generation.fused import kernels
from core.models.full_precision import batch_norm_affine, batch_norm_layers
from core.models.tracing import LayerTracer, computes_as, has_activation_inside

_SMALLEST_SCALE = 1e-3  # of a channel, relative to its shift: below it, the input cannot be recovered from the output
_RELU = (0.0, float("inf"))
_ACTIVATIONS = {nn.ReLU: _RELU, nn.ReLU6: (0.0, 6.0), F.relu: _RELU, torch.relu: _RELU, F.relu6: (0.0, 6.0), "relu": _RELU, "relu_": _RELU}
_IDENTITIES = (nn.Identity, nn.Dropout, nn.Dropout2d)
_WRITING = {"iadd", "isub", "imul", "itruediv"}
_ADDITIONS = {operator.add, operator.iadd, torch.add}


@dataclass(frozen=True)
class _Geometry:
    """The geometry of a convolution, and the interval that its activation clamps to; None: no activation. per_image: whether statistics
    are those of each image.
    """

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    activation: kernels.Activation
    per_image: bool = False


class _Fused(torch.autograd.Function):
    """(x, residual or None, weight, bias) -> (z, mean, variance, z again): z = clamp(conv(x) + residual, low, high), statistics before it.

    Differentiable in x and the residual. backward() runs only once, because it overwrites the saved convolution output. If z has two
    consumers, give each its own copy: their gradients are then summed in the kernel.
    """

    @staticmethod
    def forward(ctx, x, residual, weight, bias, layer: kernels.BatchNormAffine, geometry: _Geometry):  # type: ignore[override]
        g = geometry
        y = F.conv2d(x, weight, bias, g.stride, g.padding, g.dilation, g.groups).contiguous(memory_format=torch.channels_last)
        output, mean, variance = kernels.forward(y, residual, layer, g.activation, g.per_image)
        ctx.geometry, ctx.shape, ctx.layer = g, x.shape, layer
        ctx.set_materialize_grads(False)
        # y shows what the activation clamped, unless a residual was added
        ctx.save_for_backward(y, mean, weight, output if residual is not None else None)
        return output, mean, variance, output.detach()

    @staticmethod
    def backward(ctx, grad, grad_mean, grad_variance, grad_again):  # type: ignore[override]
        y, mean, weight, output = ctx.saved_tensors
        g = ctx.geometry
        grads = [own for own in (grad, grad_again) if own is not None] or [torch.zeros_like(y)]
        statistics = mean, *(torch.zeros_like(mean) if own is None else own for own in (grad_mean, grad_variance))
        grad_y, passed = kernels.backward(y, grads, output, ctx.layer, statistics, g.activation)
        # only the shape of the convolution's input matters here
        x = torch.empty(ctx.shape, dtype=y.dtype, device=y.device, memory_format=torch.channels_last)
        grad_x = torch.ops.aten.convolution_backward(
            grad_y, x, weight, None, g.stride, g.padding, g.dilation, False, [0, 0], g.groups, [True, False, False]
        )[0]
        return grad_x, passed, None, None, None, None


def _formulas(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, layer: kernels.BatchNormAffine, geometry: _Geometry
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `_Fused` computes, in plain operations for torch.compile, which fuses them."""
    g = geometry
    y = F.conv2d(x, weight, bias, g.stride, g.padding, g.dilation, g.groups)
    variance, mean = torch.var_mean(y, dim=(0, 2, 3))
    z = y if residual is None else y + residual
    if g.activation is not None:
        z = F.relu(z) if g.activation == _RELU else torch.clamp(z, *kernels.clamp_ends(g.activation))
    return z, (mean - layer.shift) / layer.scale, variance / layer.scale.square(), z


class FusedConvolution(nn.Module):
    """A convolution with its BatchNorm layer in evaluation mode and its activation; also returns the statistics of the BatchNorm input."""

    weight: Tensor
    bias: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(self, convolution: nn.Conv2d, layer: nn.BatchNorm2d, activation: tuple[float, float] | None, per_image: bool) -> None:
        super().__init__()
        scale, shift = batch_norm_affine(layer)
        weight = convolution.weight.detach() * scale.view(-1, 1, 1, 1)
        own = convolution.bias.detach() * scale if convolution.bias is not None else 0.0
        self.register_buffer("weight", weight.contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", shift + own)
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)
        assert not isinstance(convolution.padding, str)
        strides = convolution.stride, convolution.padding, convolution.dilation
        self.geometry = _Geometry(*strides, convolution.groups, activation, per_image)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The output, `observed_statistics` of the input of the BatchNorm layer, and the output for a second consumer."""
        layer = kernels.BatchNormAffine(self.scale, self.shift)
        function = _formulas if torch.compiler.is_compiling() else _Fused.apply  # a compiler fuses the formulas itself
        output, mean, variance, again = function(x, residual, self.weight, self.bias, layer, self.geometry)
        if self.geometry.per_image:
            mean, variance = with_batch(mean, variance, output.shape[2] * output.shape[3])
        return output, mean, variance, again


class AffineStatistics(nn.Module):
    """A BatchNorm layer in evaluation mode that cannot be folded into a convolution; also returns the statistics of its input."""

    scale: Tensor
    shift: Tensor

    def __init__(self, layer: nn.BatchNorm2d, per_image: bool) -> None:
        super().__init__()
        self.per_image = per_image
        scale, shift = batch_norm_affine(layer)
        self.register_buffer("scale", scale.view(1, -1, 1, 1))
        self.register_buffer("shift", shift.view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The output, and `observed_statistics` of `x`."""
        return torch.addcmul(self.shift, x, self.scale), *observed_statistics(x, self.per_image)


class ObservedLayer(nn.Module):
    """A subclass of BatchNorm that computes something else; also returns the statistics of its input."""

    def __init__(self, layer: nn.BatchNorm2d, per_image: bool) -> None:
        super().__init__()
        self.layer, self.per_image = layer, per_image

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The output, and `observed_statistics` of `x`."""
        mean, variance = observed_statistics(x, self.per_image)
        return self.layer(x), mean, variance


class HookedNetwork:
    """The unchanged network with hooks that collect its statistics, for networks that torch.fx cannot trace."""

    def __init__(self, network: nn.Module, per_image: bool = False) -> None:
        empty_statistics(network)  # raises for a network without BatchNorm
        self.network, self._per_image = network, per_image

    def __call__(self, images: Tensor) -> tuple[Tensor, BatchStatistics]:
        with collect_statistics(self.network, self._per_image) as statistics:
            return self.network(images), statistics


class FusedNetwork:
    """A copy of the network built from the modules above. per_image: also with the statistics of each image.

    Raises ModelError when it has no BatchNorm layer, and what torch.fx raises.
    """

    def __init__(self, network: nn.Module, per_image: bool = False) -> None:
        self._statistics = empty_statistics(network)
        self.module, self._order = _fuse(network, per_image)

    def __call__(self, images: Tensor) -> tuple[Tensor, BatchStatistics]:
        """Logits `(N, classes)` of normalized images `(N, C, H, W)`, and the batch statistics of that pass."""
        logits, means, variances = self.module(images)
        statistics = BatchStatistics(self._statistics.names, self._statistics.running)
        statistics.clear()
        for index, mean, variance in zip(self._order, means, variances):
            statistics.add(index, mean, variance)
        return logits, statistics


def with_statistics(network: nn.Module, per_image: bool = False) -> FusedNetwork | HookedNetwork:
    """The fastest form of `network` that returns its batch statistics, per_image: also those of each image.

    Raises ModelError when it has no BatchNorm layer.
    """
    try:
        return FusedNetwork(network, per_image)
    except ModelError:
        raise
    except Exception:  # torch.fx raises whatever the network's own code raises for a proxy
        return HookedNetwork(network, per_image)


def _fuse(network: nn.Module, per_image: bool) -> tuple[fx.GraphModule, list[int]]:
    """The graph of the network with its BatchNorm layers replaced, and the index of the layer of each pair of statistics."""
    network = copy.deepcopy(network)  # some networks cache what they computed, and would keep tracing proxies
    traced = fx.GraphModule(network, LayerTracer().trace(network))
    numbers = {id(layer): index for index, layer in enumerate(batch_norm_layers(network).values())}
    _remove_identities(traced)
    _split_off_activations(traced, numbers)
    modules: dict[Any, nn.Module] = dict(traced.named_modules(remove_duplicate=False))
    graph, order, means, variances = traced.graph, [], [], []
    for position, node in enumerate(n for n in list(graph.nodes) if n.op == "call_module" and id(modules[n.target]) in numbers):
        layer = modules[node.target]
        assert isinstance(layer, nn.BatchNorm2d)
        before = node.args[0]
        after, activation, residual = node, None, None
        if not computes_as(layer, nn.BatchNorm2d):
            new: nn.Module = ObservedLayer(layer, per_image)
            arguments: tuple[Any, ...] = (before,)
        elif _can_fold(before, layer, modules):
            after, activation, residual = _followers(node, modules)
            new = FusedConvolution(modules[before.target], layer, activation, per_image)  # type: ignore[arg-type]
            arguments = (before.args[0],) if residual is None else (before.args[0], residual)
        else:
            new, arguments = AffineStatistics(layer, per_image), (before,)
        name = f"fused_{position}"
        traced.add_submodule(name, new)
        with graph.inserting_before(after):
            call = graph.call_module(name, arguments)
            output, mean, variance = (graph.call_function(operator.getitem, (call, i)) for i in range(3))
        after.replace_all_uses_with(output)
        if isinstance(new, FusedConvolution) and len(output.users) > 1:
            with graph.inserting_after(output):
                again = graph.call_function(operator.getitem, (call, 3))
            next(iter(output.users)).replace_input_with(output, again)
            _protect_from_writes(graph, again, modules)
        _protect_from_writes(graph, output, modules)
        order.append(numbers[id(layer)])
        means.append(mean)
        variances.append(variance)
    last = next(n for n in graph.nodes if n.op == "output")
    last.args = ((last.args[0], means, variances),)
    graph.eliminate_dead_code()
    graph.lint()
    traced.recompile()
    traced.delete_all_unused_submodules()
    return traced, order


def _remove_identities(traced: fx.GraphModule) -> None:
    """Removes modules that do nothing in evaluation mode, because they would separate what can be fused."""
    modules = dict(traced.named_modules(remove_duplicate=False))
    for node in list(traced.graph.nodes):
        if node.op == "call_module" and type(modules[node.target]) in _IDENTITIES:
            node.replace_all_uses_with(node.all_input_nodes[0])
            traced.graph.erase_node(node)


def _split_off_activations(traced: fx.GraphModule, numbers: dict[int, int]) -> None:
    """Splits timm's BatchNorm layers with a built-in activation into two nodes, and adds the new layers to `numbers`."""
    modules = dict(traced.named_modules(remove_duplicate=False))
    for position, node in enumerate(n for n in list(traced.graph.nodes) if n.op == "call_module" and id(modules[n.target]) in numbers):
        layer = modules[node.target]
        if not has_activation_inside(layer):
            continue
        plain = nn.BatchNorm2d(layer.num_features, layer.eps, affine=layer.affine, device="meta").eval()
        plain.weight, plain.bias, plain.running_mean, plain.running_var = layer.weight, layer.bias, layer.running_mean, layer.running_var
        numbers[id(plain)] = numbers[id(layer)]
        name = f"batch_norm_{position}"
        traced.add_submodule(name, plain)
        if type(layer.act) not in _IDENTITIES:
            # under a separate name, because the original layer belongs to the network
            traced.add_submodule(f"activation_{position}", layer.act)
            with traced.graph.inserting_after(node):
                activation = traced.graph.call_module(f"activation_{position}", (node,))
            node.replace_all_uses_with(activation, delete_user_cb=lambda user, own=activation: user is not own)
        node.target = name


def _protect_from_writes(graph: fx.Graph, output: fx.Node, modules: dict[Any, nn.Module]) -> None:
    """Gives consumers that would write into the output in place a copy of it, because the backward pass needs the output."""
    for user in list(output.users):
        module = modules.get(user.target) if user.op == "call_module" else None
        method = user.target if user.op == "call_method" else ""
        writes = (
            getattr(module, "inplace", False)
            or user.kwargs.get("inplace", False)
            or str(method).endswith("_")
            or (user.op == "call_function" and str(getattr(user.target, "__name__", "")).rstrip("_") in _WRITING)
            or (user.op == "call_function" and True in user.args)
        )
        if writes:
            with graph.inserting_before(user):
                copy = graph.call_method("clone", (output,))
            user.replace_input_with(output, copy)


def _can_fold(before: Any, layer: nn.BatchNorm2d, modules: dict[Any, nn.Module]) -> bool:
    """Whether `before` is a convolution that feeds only this layer, and no channel is scaled to almost zero."""
    if not (isinstance(before, fx.Node) and before.op == "call_module" and len(before.users) == 1):
        return False
    convolution = modules[before.target]
    if not computes_as(convolution, nn.Conv2d) or convolution.padding_mode != "zeros" or isinstance(convolution.padding, str):
        return False
    scale, _ = batch_norm_affine(layer)
    assert layer.running_var is not None
    spread = scale.abs() * layer.running_var.sqrt()
    level = layer.bias.detach().abs() if layer.affine else torch.zeros_like(spread)
    return bool((spread > _SMALLEST_SCALE * level).all() and (scale != 0).all())


def _followers(node: fx.Node, modules: dict[Any, nn.Module]) -> tuple[fx.Node, tuple[float, float] | None, fx.Node | None]:
    """What follows a BatchNorm layer: the last node that can be fused with it, its activation, and the residual added before that."""
    activation_node = _only_user(node)
    activation = _activation(activation_node, modules)
    if activation is not None:
        assert activation_node is not None
        return activation_node, activation, None
    addition = activation_node
    if (
        addition is None
        or addition.op != "call_function"
        or addition.target not in _ADDITIONS
        or addition.kwargs
        or len(addition.args) != 2
    ):
        return node, None, None
    other = addition.args[1] if addition.args[0] is node else addition.args[0]
    activation_node = _only_user(addition)
    activation = _activation(activation_node, modules)
    # if two BatchNorm layers are summed, the later one fuses the addition, when the other's output exists
    if activation is None or not isinstance(other, fx.Node) or other is node or node < other:
        return node, None, None
    assert activation_node is not None
    return activation_node, activation, other


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _activation(node: fx.Node | None, modules: dict[Any, nn.Module]) -> tuple[float, float] | None:
    """The interval that the node clamps to, if it is an activation that only clamps."""
    if node is None or node.op not in ("call_module", "call_function", "call_method"):
        return None
    key = type(modules[node.target]) if node.op == "call_module" else node.target
    return _ACTIVATIONS.get(key)  # type: ignore[call-overload]
