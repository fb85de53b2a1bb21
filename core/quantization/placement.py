"""Where quantizers go: the paper's placement, found in the network's graph.

Every tensor that enters a convolution or linear layer is quantized once, at the operation that produces it, so that its other readers,
such as a residual addition, also see the quantized values. The image itself is not quantized, nor what is computed from it before the
first layers (dataflow.py). In the graph, several uses of one ReLU module are separate nodes, each with its own quantizer. If a network
cannot be traced, the input of each layer is quantized instead.
"""

import copy
import operator
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from core.config import TrainingConfig
from core.errors import ModelError, UnknownNameError, first_line, quoted
from core.models.hooks import hooked
from core.models.replacement import replace_modules
from core.models.tracing import LayerTracer, computes_as
from core.quantization.dataflow import image_readers, image_scales
from core.quantization.layers import (
    ActivationQuantizer,
    QuantizedConv2d,
    QuantizedLayer,
    QuantizedLinear,
    convolution_arguments,
    from_module,
)
from core.quantization.ranges.base import RangeFactory, range_method

# Operations whose output contains only values of their first input, so that quantizing their input or their output is the same.
_VALUE_PRESERVING_MODULES = (
    nn.Identity,
    nn.ZeroPad2d,  # every grid contains zero
    nn.Flatten,
    nn.Unflatten,
    nn.Dropout,
    nn.Dropout2d,
    nn.MaxPool2d,
    nn.PixelShuffle,
    nn.ChannelShuffle,
)
_VALUE_PRESERVING_CALLS = {
    torch.flatten, torch.reshape, torch.permute, torch.transpose, torch.squeeze, torch.unsqueeze, torch.chunk, torch.split,
    torch.max_pool2d, F.max_pool2d, F.dropout, operator.getitem,
    "flatten", "view", "reshape", "permute", "transpose", "squeeze", "unsqueeze", "contiguous", "chunk", "split", "expand",
}  # fmt: skip


@dataclass
class QuantizedNetwork:
    """A network with quantizers, which are not yet calibrated.

    traced: False if the graph could not be traced and the input of each layer is quantized instead. note: the reason for that, and the
    kinds of layers whose weights stay in full precision; empty if neither applies.
    layers: in the order in which a forward pass reaches them; names: their names. inputs: layer name -> the quantizer of its input;
    layers that read the image have none.
    """

    network: nn.Module
    traced: bool
    note: str
    activations: list[ActivationQuantizer]
    layers: list[QuantizedConv2d | QuantizedLinear]
    names: list[str] = field(default_factory=list)
    inputs: dict[str, ActivationQuantizer] = field(default_factory=dict)

    @property
    def weight_size(self) -> int:
        """Size of all quantized weights in bits, without scales and zero points."""
        return sum(layer.weight.numel() * layer.weight_quantizer.bits for layer in self.layers)


def quantize_network(network: nn.Module, config: TrainingConfig, example: Tensor) -> QuantizedNetwork:
    """A copy of `network` with quantizers for the bit widths and range method of `config`; `network` itself stays unchanged.

    example: normalized images `(N, C, H, W)`, run once to find the order of the layers.
    Raises ModelError if there is no Conv2d or Linear layer or a layer cannot be replaced, UnknownNameError if `config.layer_bits` or
    `layer_weight_bits` names a layer that does not exist.
    """
    network = copy.deepcopy(network).eval().requires_grad_(True)
    _prepare(network, example)
    names = _layers_in_order(network, example)
    if not names:
        raise ModelError(f"{type(network).__name__} must have at least one Conv2d or Linear layer, got none")
    _check_names(config, names)
    for name in names:
        _check_forward(name, network.get_submodule(name))
    ends = {names[0], names[-1]} if config.first_last_8bit else set()
    own_bits = dict.fromkeys(ends, 8) | dict(config.layer_bits)
    new_range = range_method(config)
    notes: list[str] = []
    read_by_functions: list[str] = []
    at_inputs: dict[str, ActivationQuantizer] = {}
    try:
        # tracing a copy: a network may cache results, and would keep the tracer's proxies
        result: nn.Module = _trace(copy.deepcopy(network), names)
    except Exception as error:  # torch.fx raises whatever the network's own code raises for a proxy
        notes.append(f"the network cannot be traced ({first_line(error)}), so activations are quantized at each layer's input")
        at_inputs = _quantize_inputs(network, names, own_bits, config, new_range, example)
        activations, inputs, result = list(at_inputs.values()), at_inputs, network
    else:
        assert isinstance(result, fx.GraphModule)
        read_by_functions = _keep_parameters_of_functions(result, names)
        activations, inputs = _quantize_producers(result, names, ends, config, new_range, example)
    traced = not notes
    if others := _other_weights(network):
        notes.append(f"weights in full precision: {others}")
    if read_by_functions:
        notes.append(f"in full precision where a function reads them: {', '.join(read_by_functions)}")
    weight_bits = own_bits | dict(config.layer_weight_bits)
    layers = {name: from_module(result.get_submodule(name), weight_bits.get(name, config.weight_bits), new_range) for name in names}
    for name, quantizer in at_inputs.items():
        layers[name].input_quantizer = quantizer
    replace_modules(result, {result.get_submodule(name): layer for name, layer in layers.items()})
    return QuantizedNetwork(result.eval(), traced, "; ".join(notes), activations, list(layers.values()), list(layers), inputs)


def check_layer_bits(network: nn.Module, config: TrainingConfig, example: Tensor) -> None:
    """Raises UnknownNameError if bit widths by layer name one that the network does not have, as `quantize_network` does."""
    if config.layer_bits or config.layer_weight_bits:
        network = copy.deepcopy(network).eval()
        _prepare(network, example)
        _check_names(config, _layers_in_order(network, example))


def _check_names(config: TrainingConfig, names: Sequence[str]) -> None:
    for knob in ("layer_bits", "layer_weight_bits"):
        for name, _ in getattr(config, knob):
            if name not in names:
                raise UnknownNameError(f"layer in {knob}", name, names)


def _other_weights(network: nn.Module) -> str:
    """Kinds of modules other than Conv2d and Linear that have weights, with their number; empty if there are none."""
    kinds = Counter(
        type(module).__name__
        for module in network.modules()
        if not isinstance(module, (nn.Conv2d, nn.Linear, *QuantizedLayer)) and any(p.ndim > 1 for p in module.parameters(recurse=False))
    )
    return ", ".join(f"{kind} ({number})" for kind, number in kinds.items())


def _trace(network: nn.Module, names: Sequence[str]) -> fx.GraphModule:
    """The graph of the network. Raises whatever torch.fx raises, and ValueError if one of the layers `names` is not in the graph."""
    traced = fx.GraphModule(network, LayerTracer().trace(network))
    found = {node.target for node in traced.graph.nodes if node.op == "call_module"}
    hidden = next((name for name in names if name not in found), None)
    if hidden is not None:
        raise ValueError(f"layer {hidden!r} is inside a module that is not traced")
    return traced


def _keep_parameters_of_functions(traced: fx.GraphModule, names: Sequence[str]) -> list[str]:
    """Gives parameters of layers that functions read as well a second name, because integer layers do not have them; returns the first.

    A tied weight is read like this, for example the transposed one of a linear layer.
    """
    nodes = [node for node in traced.graph.nodes if node.op == "get_attr" and node.target.rpartition(".")[0] in names]
    for number, node in enumerate(nodes):
        traced.register_parameter(f"tied_parameter_{number}", traced.get_parameter(node.target))
    read = sorted({node.target for node in nodes})
    for number, node in enumerate(nodes):
        node.target = f"tied_parameter_{number}"
    return read


class ChannelScale(nn.Module):
    """`weight * x + bias` with a factor and an offset for each channel: a normalization that was written as a convolution."""

    def __init__(self, source: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = source.weight, source.bias  # (C, 1, 1, 1), (C,)

    def forward(self, x: Tensor) -> Tensor:
        """x: `(N, C, H, W)`; returns the same shape."""
        x = x * self.weight.reshape(-1, 1, 1)
        return x if self.bias is None else x + self.bias.reshape(-1, 1, 1)


def _prepare(network: nn.Module, example: Tensor) -> None:
    """Leaves only convolutions that are layers, with fixed padding: `_layers_in_order` finds what is to be quantized."""
    _fix_padding(network, example)
    replace_modules(network, {one: ChannelScale(one) for one in image_scales(network, example).values()})


def _fix_padding(network: nn.Module, example: Tensor) -> None:
    """Replaces timm's convolutions whose padding depends on the input size by plain ones, padded for the size of `example`.

    Raises ModelError if one of them reads several sizes.
    """
    flexible = {n: m for n, m in network.named_modules() if isinstance(m, nn.Conv2d) and not computes_as(m, nn.Conv2d)}
    if not flexible:
        return
    from timm.layers.conv2d_same import Conv2dSame, pad_same_arg  # slow to import, but already imported if the network has such a layer

    flexible = {name: layer for name, layer in flexible.items() if computes_as(layer, Conv2dSame)}
    for name, sizes in _inputs_of(network, flexible, example, lambda x: tuple(x.shape[-2:])).items():
        layer = flexible[name]
        if len(set(sizes)) > 1:
            raise ModelError(f"input of layer {name!r} must have one size, because its padding depends on it, got {quoted(sizes)}")
        left, right, top, bottom = pad_same_arg(*map(list, (sizes[0], layer.kernel_size, layer.stride, layer.dilation)))
        plain = nn.Conv2d(**convolution_arguments(layer) | {"padding": 0, "padding_mode": "zeros"}, bias=layer.bias is not None)
        plain.weight, plain.bias = layer.weight, layer.bias
        replace_modules(network, {layer: nn.Sequential(nn.ZeroPad2d((left, right, top, bottom)), plain)})


def _check_forward(name: str, layer: nn.Module) -> None:
    """Raises ModelError for a derived layer that computes something else, which a quantized layer cannot replace."""
    fits = computes_as(layer, nn.Conv2d if isinstance(layer, nn.Conv2d) else nn.Linear)
    if not fits and isinstance(layer, nn.Linear):
        from timm.layers import Linear  # computes the same; written for TorchScript

        fits = computes_as(layer, Linear)
    if not fits:
        raise ModelError(
            f"layer {name!r} must be a Conv2d or Linear as torch defines them, got {type(layer).__name__} with its own forward"
        )


def _layers_in_order(network: nn.Module, example: Tensor) -> list[str]:
    """Names of the Conv2d and Linear layers in the order in which a forward pass first reaches them."""
    layers = {name: module for name, module in network.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))}
    return list(_inputs_of(network, layers, example, lambda x: None))


def _inputs_of(
    network: nn.Module, modules: Mapping[str, nn.Module], example: Tensor, look: Callable[[Tensor], Any]
) -> dict[str, list[Any]]:
    """`look(input)` for each input of these modules in one forward pass, by name, in the order in which the pass first reaches them."""
    seen: dict[str, list[Any]] = {}

    def note(name: str, inputs: Any) -> None:
        seen.setdefault(name, []).append(look(inputs[0]))

    with hooked(modules, before_forward=note), torch.no_grad():
        network(example)
    return seen


def _quantize_producers(
    traced: fx.GraphModule, names: Sequence[str], ends: set[str], config: TrainingConfig, new_range: RangeFactory, example: Tensor
) -> tuple[list[ActivationQuantizer], dict[str, ActivationQuantizer]]:
    """Inserts one quantizer after each node that produces the input of a layer.

    Returns all quantizers, and layer name -> the quantizer of its input; for a layer that is called several times, of its first input.
    """
    modules: dict[Any, nn.Module] = dict(traced.named_modules())
    reads_image = {name: iter(calls) for name, calls in image_readers(traced, {name: modules[name] for name in names}, example).items()}
    own_bits = dict(config.layer_bits)
    bits: dict[fx.Node, int] = {}
    producers: dict[str, fx.Node] = {}
    for node in traced.graph.nodes:
        if node.op == "call_module" and isinstance(modules[node.target], (nn.Conv2d, nn.Linear)):
            if next(reads_image[node.target]):
                continue
            producer = _producer(node.all_input_nodes[0], modules)
            # a tensor that several layers read is quantized once, at the largest bit width that one of them requires
            usual = 8 if node.target in ends and _is_last(node, traced, modules) else config.input_bits
            bits[producer] = max(own_bits.get(node.target, usual), bits.get(producer, 0))
            producers.setdefault(node.target, producer)
    quantizers = {producer: ActivationQuantizer(width, new_range) for producer, width in bits.items()}
    for index, (producer, quantizer) in enumerate(quantizers.items()):
        name = f"activation_quantizer_{index}"
        traced.add_submodule(name, quantizer)
        with traced.graph.inserting_after(producer):
            quantized = traced.graph.call_module(name, (producer,))
        for user in [user for user in producer.users if user is not quantized]:
            user.replace_input_with(producer, quantized)
    traced.graph.lint()
    traced.recompile()
    return list(quantizers.values()), {name: quantizers[producer] for name, producer in producers.items()}


def _is_last(node: fx.Node, traced: fx.GraphModule, modules: dict[Any, nn.Module]) -> bool:
    """Whether `node` is the last layer. The first one needs no such check, because it reads the image, which is not quantized."""
    layers = [n for n in traced.graph.nodes if n.op == "call_module" and isinstance(modules[n.target], (nn.Conv2d, nn.Linear))]
    return node is layers[-1]


def _producer(node: fx.Node, modules: dict[Any, nn.Module]) -> fx.Node:
    """The node that computes the values of `node`: the first one before it that is not value-preserving."""
    while is_value_preserving(node, modules) and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return node


def is_value_preserving(node: fx.Node, modules: Mapping[Any, nn.Module]) -> bool:
    """Whether the output of a node contains only values of its first input, and zeros. modules: by their names in the graph."""
    if node.op == "call_module":
        return isinstance(modules[node.target], _VALUE_PRESERVING_MODULES)
    return node.op in ("call_function", "call_method") and node.target in _VALUE_PRESERVING_CALLS


def _quantize_inputs(
    network: nn.Module,
    names: Sequence[str],
    own_bits: Mapping[str, int],
    config: TrainingConfig,
    new_range: RangeFactory,
    example: Tensor,
) -> dict[str, ActivationQuantizer]:
    """Without a graph: layer name -> the quantizer of its input, for all layers except those that read the image."""
    reads_image = image_readers(network, {name: network.get_submodule(name) for name in names}, example)
    return {name: ActivationQuantizer(own_bits.get(name, config.input_bits), new_range) for name in names if not all(reads_image[name])}
