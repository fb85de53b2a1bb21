"""Where quantizers go: the paper's placement, found in the network's graph.

Every tensor that enters a convolution or linear layer is quantized once, where it is produced, so that whatever else reads it, such
as a residual addition, sees the quantized values too. The image itself is not quantized. The graph also tells places apart that
share one ReLU module. A network that cannot be traced is quantized at each layer's input instead.
"""

import copy
import operator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from core.config import QuantizationConfig
from core.errors import ModelError
from core.quantization.layers import ActivationQuantizer, QuantizedConv2d, QuantizedLinear, from_module

# operations whose output holds only values of their first input: quantizing before them is quantizing after them
_VALUE_PRESERVING_MODULES = (
    nn.Identity,
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
    """A network with quantizers in place, not yet calibrated.

    traced: False when the graph could not be read and each layer's input is quantized instead; `note` says why.
    """

    network: nn.Module
    traced: bool
    note: str
    activations: list[ActivationQuantizer]
    layers: list[QuantizedConv2d | QuantizedLinear]


def quantize_network(network: nn.Module, config: QuantizationConfig, example: Tensor) -> QuantizedNetwork:
    """A copy of `network` with quantizers for the widths and range method of `config`; `network` itself is left alone.

    example: normalised images `(N, C, H, W)`, used to find the order of the layers.
    Raises ModelError when there is no Conv2d or Linear layer.
    """
    network = copy.deepcopy(network).eval().requires_grad_(True)
    names = _layers_in_order(network, example)
    if not names:
        raise ModelError(f"{type(network).__name__} has no Conv2d or Linear layer: allowed are networks with at least one")
    ends = {names[0], names[-1]} if config.first_last_8bit else set()
    for name in names:
        _check_forward(name, network.get_submodule(name))
    try:
        traced = fx.GraphModule(network, _Tracer().trace(network))
    except Exception as error:  # torch.fx raises whatever the network's own code raises when it meets a proxy
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        note = f"the network cannot be traced ({reason}), so activations are quantized at each layer's input"
        at_inputs = _quantize_inputs(network, names, ends, config, example)
        activations, result = list(at_inputs.values()), network
    else:
        note, at_inputs = "", {}
        activations, result = _quantize_producers(traced, ends, config), traced
    layers = []
    for name in names:
        bits = 8 if name in ends else config.weight_bits
        layer = from_module(network.get_submodule(name), bits, config.range)
        existing = result.get_submodule(name)
        if isinstance(existing, (QuantizedConv2d, QuantizedLinear)):
            continue
        if name in at_inputs:
            layer.input_quantizer = at_inputs[name]
        _replace(result, name, layer)
        layers.append(layer)
    return QuantizedNetwork(result.eval(), not note, note, activations, layers)


class _Tracer(fx.Tracer):
    """Keeps every Conv2d and Linear whole, classes derived from them included, where torch.fx keeps only torch's own."""

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        return isinstance(module, (nn.Conv2d, nn.Linear)) or super().is_leaf_module(module, qualified_name)


def _check_forward(name: str, layer: nn.Module) -> None:
    """A derived layer that computes something of its own cannot be replaced by a quantized one."""
    base = nn.Conv2d if isinstance(layer, nn.Conv2d) else nn.Linear
    if type(layer).forward is not base.forward or (
        isinstance(layer, nn.Conv2d) and type(layer)._conv_forward is not nn.Conv2d._conv_forward
    ):
        raise ModelError(
            f"layer {name!r} is a {type(layer).__name__} with a forward of its own: allowed are Conv2d and Linear as torch has them"
        )


def _layers_in_order(network: nn.Module, example: Tensor) -> list[str]:
    """Names of the Conv2d and Linear layers in the order in which a forward pass reaches them first."""
    order: list[str] = []
    handles = []
    for name, module in network.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):

            def hook(_module, _inputs, name=name) -> None:
                if name not in order:
                    order.append(name)

            handles.append(module.register_forward_pre_hook(hook))
    try:
        with torch.no_grad():
            network(example)
    finally:
        for handle in handles:
            handle.remove()
    return order


def _quantize_producers(traced: fx.GraphModule, ends: set[str], config: QuantizationConfig) -> list[ActivationQuantizer]:
    """Inserts one quantizer behind every node that produces what a layer reads."""
    modules: dict[Any, nn.Module] = dict(traced.named_modules())
    wanted: dict[fx.Node, int] = {}
    for node in traced.graph.nodes:
        if node.op == "call_module" and isinstance(modules[node.target], (nn.Conv2d, nn.Linear)):
            producer = _producer(node.all_input_nodes[0], modules)
            if producer.op in ("placeholder", "get_attr"):
                continue
            # where several layers read one tensor it is quantized once, at the widest width that one of them asks for
            bits = 8 if node.target in ends and _is_last(node, traced, modules) else config.activation_bits
            wanted[producer] = max(bits, wanted.get(producer, 0))
    quantizers = []
    for index, (producer, bits) in enumerate(wanted.items()):
        quantizer = ActivationQuantizer(bits, config.range)
        name = f"activation_quantizer_{index}"
        traced.add_submodule(name, quantizer)
        with traced.graph.inserting_after(producer):
            quantized = traced.graph.call_module(name, (producer,))
        # everyone but the quantizer itself now reads the quantized tensor
        for user in [user for user in producer.users if user is not quantized]:
            user.replace_input_with(producer, quantized)
        quantizers.append(quantizer)
    traced.graph.lint()
    traced.recompile()
    return quantizers


def _is_last(node: fx.Node, traced: fx.GraphModule, modules: dict[Any, nn.Module]) -> bool:
    """Whether no layer comes after `node`; the first layer reads the image, which is not quantized."""
    layers = [n for n in traced.graph.nodes if n.op == "call_module" and isinstance(modules[n.target], (nn.Conv2d, nn.Linear))]
    return node is layers[-1]


def _producer(node: fx.Node, modules: dict[Any, nn.Module]) -> fx.Node:
    """The node whose values `node` only passes on."""
    while True:
        passes_on = (node.op == "call_module" and isinstance(modules[node.target], _VALUE_PRESERVING_MODULES)) or (
            node.op in ("call_function", "call_method") and node.target in _VALUE_PRESERVING_CALLS
        )
        if not passes_on or not node.all_input_nodes:
            return node
        node = node.all_input_nodes[0]


def _quantize_inputs(
    network: nn.Module, names: list[str], ends: set[str], config: QuantizationConfig, example: Tensor
) -> dict[str, ActivationQuantizer]:
    """Without a graph: for every layer but those that read the image itself, the quantizer of its input."""
    reads_image: dict[str, bool] = {}
    handles = []
    for name in names:

        def hook(_module, inputs, name=name) -> None:
            # a view of the image, such as it flattened, is still the image
            reads_image[name] = inputs[0].untyped_storage().data_ptr() == example.untyped_storage().data_ptr()

        handles.append(network.get_submodule(name).register_forward_pre_hook(hook))
    try:
        with torch.no_grad():
            network(example)
    finally:
        for handle in handles:
            handle.remove()
    return {
        name: ActivationQuantizer(8 if name in ends else config.activation_bits, config.range) for name in names if not reads_image[name]
    }


def _replace(network: nn.Module, name: str, new: nn.Module) -> None:
    """Puts `new` wherever the module `name` hangs, under every name that it has."""
    old = network.get_submodule(name)
    for parent in network.modules():
        for child_name, child in list(parent.named_children()):
            if child is old:
                setattr(parent, child_name, new)
