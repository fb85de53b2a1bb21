"""Where quantizers go: the paper's placement, found in the network's graph.

Every tensor that enters a convolution or linear layer is quantized once, where it is produced, so that whatever else reads it, such
as a residual addition, sees the quantized values too. The image itself is not quantized. The graph also tells places apart that
share one ReLU module. A network that cannot be traced is quantized at each layer's input instead.
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
from core.errors import ModelError, UnknownNameError, quoted
from core.models.tracing import LayerTracer, computes_as
from core.quantization.layers import (
    ActivationQuantizer,
    QuantizedConv2d,
    QuantizedLayer,
    QuantizedLinear,
    convolution_arguments,
    from_module,
)

# operations whose output holds only values of their first input: quantizing before them is quantizing after them
_VALUE_PRESERVING_MODULES = (
    nn.Identity,
    nn.ZeroPad2d,  # zero is on every grid
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

    traced: False when the graph could not be read and each layer's input is quantized instead; `note` says why, and which kinds of
    layers keep their weights in full precision.
    names: of the `layers`, in the order in which a forward pass reaches them. inputs: the quantizer of what each of them reads, by name;
    those that read the image itself have none.
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
        """Bits that all quantized weights take together, without scales and zero points."""
        return sum(layer.weight.numel() * layer.weight_quantizer.bits for layer in self.layers)


def quantize_network(network: nn.Module, config: TrainingConfig, example: Tensor) -> QuantizedNetwork:
    """A copy of `network` with quantizers for the widths and range method of `config`; `network` itself is left alone.

    example: normalised images `(N, C, H, W)`, used to find the order of the layers.
    Raises ModelError when there is no Conv2d or Linear layer, UnknownNameError where `config.layer_bits` names one that is not there.
    """
    network = copy.deepcopy(network).eval().requires_grad_(True)
    _fix_padding(network, example)
    names = _layers_in_order(network, example)
    if not names:
        raise ModelError(f"{type(network).__name__} has no Conv2d or Linear layer: allowed are networks with at least one")
    _check_names(config, names)
    ends = {names[0], names[-1]} if config.first_last_8bit else set()
    own = dict.fromkeys(ends, 8) | dict(config.layer_bits)
    for name in names:
        _check_forward(name, network.get_submodule(name))
    try:
        # of a copy: some remember what they have computed, and would keep what stands for it while they are traced
        traced = _trace(copy.deepcopy(network), names)
    except Exception as error:  # torch.fx raises whatever the network's own code raises when it meets a proxy
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        notes = [f"the network cannot be traced ({reason}), so activations are quantized at each layer's input"]
        at_inputs = _quantize_inputs(network, names, own, config, example)
        activations, inputs, result = list(at_inputs.values()), at_inputs, network
    else:
        notes, at_inputs = [], {}
        activations, inputs = _quantize_producers(traced, ends, config)
        result = traced
    is_traced = not notes
    if others := _other_weights(network):
        notes.append(f"weights in full precision: {others}")
    layers = {}
    for name in names:
        layer = from_module(network.get_submodule(name), own.get(name, config.weight_bits), config.range)
        existing = result.get_submodule(name)
        if isinstance(existing, (QuantizedConv2d, QuantizedLinear)):
            continue
        if name in at_inputs:
            layer.input_quantizer = at_inputs[name]
        _replace(result, name, layer)
        layers[name] = layer
    return QuantizedNetwork(result.eval(), is_traced, "; ".join(notes), activations, list(layers.values()), list(layers), inputs)


def check_layer_bits(network: nn.Module, config: TrainingConfig, example: Tensor) -> None:
    """Raises UnknownNameError where `config.layer_bits` names a layer that the network does not have, as `quantize_network` does."""
    if config.layer_bits:
        network = copy.deepcopy(network).eval()
        _fix_padding(network, example)
        _check_names(config, _layers_in_order(network, example))


def _check_names(config: TrainingConfig, names: Sequence[str]) -> None:
    for name, _ in config.layer_bits:
        if name not in names:
            raise UnknownNameError("layer in layer_bits", name, names)


def _other_weights(network: nn.Module) -> str:
    """Which modules but Conv2d and Linear have weights, kind by kind with their number; empty: none."""
    kinds = Counter(
        type(module).__name__
        for module in network.modules()
        if not isinstance(module, (nn.Conv2d, nn.Linear, *QuantizedLayer)) and any(p.ndim > 1 for p in module.parameters(recurse=False))
    )
    return ", ".join(f"{kind} ({number})" for kind, number in kinds.items())


def _trace(network: nn.Module, names: Sequence[str]) -> fx.GraphModule:
    """The graph of the network. Raises whatever torch.fx raises, and ValueError where one of the layers `names` is not in it."""
    traced = fx.GraphModule(network, LayerTracer().trace(network))
    found = {node.target for node in traced.graph.nodes if node.op == "call_module"}
    hidden = next((name for name in names if name not in found), None)
    if hidden is not None:
        raise ValueError(f"layer {hidden!r} is inside one that is not taken apart")
    return traced


def _fix_padding(network: nn.Module, example: Tensor) -> None:
    """timm's convolutions that find their padding from the size of what they read become plain ones, padded as for this size.

    Raises ModelError for one that reads several sizes.
    """
    flexible = {n: m for n, m in network.named_modules() if isinstance(m, nn.Conv2d) and not computes_as(m, nn.Conv2d)}
    if not flexible:
        return
    from timm.layers.conv2d_same import Conv2dSame, pad_same_arg  # takes seconds, which whoever built such a layer has spent already

    flexible = {name: layer for name, layer in flexible.items() if computes_as(layer, Conv2dSame)}
    for name, sizes in _inputs_of(network, list(flexible), example, lambda x: tuple(x.shape[-2:])).items():
        layer = flexible[name]
        if len(set(sizes)) > 1:
            raise ModelError(f"layer {name!r} pads images of several sizes, {quoted(sizes)}: allowed is one size for each layer")
        left, right, top, bottom = pad_same_arg(*map(list, (sizes[0], layer.kernel_size, layer.stride, layer.dilation)))
        plain = nn.Conv2d(**convolution_arguments(layer) | {"padding": 0, "padding_mode": "zeros"}, bias=layer.bias is not None)
        plain.weight, plain.bias = layer.weight, layer.bias
        _replace(network, name, nn.Sequential(nn.ZeroPad2d((left, right, top, bottom)), plain))


def _check_forward(name: str, layer: nn.Module) -> None:
    """A derived layer that computes something of its own cannot be replaced by a quantized one."""
    fits = computes_as(layer, nn.Conv2d if isinstance(layer, nn.Conv2d) else nn.Linear)
    if not fits and isinstance(layer, nn.Linear):
        from timm.layers import Linear  # the same, written for another compiler

        fits = computes_as(layer, Linear)
    if not fits:
        raise ModelError(
            f"layer {name!r} is a {type(layer).__name__} with a forward of its own: allowed are Conv2d and Linear as torch has them"
        )


def _layers_in_order(network: nn.Module, example: Tensor) -> list[str]:
    """Names of the Conv2d and Linear layers in the order in which a forward pass reaches them first."""
    names = [name for name, module in network.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    return list(_inputs_of(network, names, example, lambda x: None))


def _inputs_of(network: nn.Module, names: Sequence[str], example: Tensor, look: Callable[[Tensor], Any]) -> dict[str, list[Any]]:
    """What `look` says of the inputs of the modules `names` in one forward pass, in the order in which it reaches them first."""
    seen: dict[str, list[Any]] = {}
    handles = []
    for name in names:

        def hook(_module, inputs, name=name) -> None:
            seen.setdefault(name, []).append(look(inputs[0]))

        handles.append(network.get_submodule(name).register_forward_pre_hook(hook))
    try:
        with torch.no_grad():
            network(example)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _quantize_producers(
    traced: fx.GraphModule, ends: set[str], config: TrainingConfig
) -> tuple[list[ActivationQuantizer], dict[str, ActivationQuantizer]]:
    """Inserts one quantizer behind every node that produces what a layer reads. Returns them all, and layer -> that of its first input."""
    modules: dict[Any, nn.Module] = dict(traced.named_modules())
    own = dict(config.layer_bits)
    wanted: dict[fx.Node, int] = {}
    readers: dict[str, fx.Node] = {}
    for node in traced.graph.nodes:
        if node.op == "call_module" and isinstance(modules[node.target], (nn.Conv2d, nn.Linear)):
            producer = _producer(node.all_input_nodes[0], modules)
            if producer.op in ("placeholder", "get_attr"):
                continue
            # where several layers read one tensor it is quantized once, at the widest width that one of them asks for
            usual = 8 if node.target in ends and _is_last(node, traced, modules) else config.input_bits
            wanted[producer] = max(own.get(node.target, usual), wanted.get(producer, 0))
            readers.setdefault(node.target, producer)
    quantizers: dict[fx.Node, ActivationQuantizer] = {}
    for index, (producer, bits) in enumerate(wanted.items()):
        quantizer = ActivationQuantizer(bits, config.range)
        name = f"activation_quantizer_{index}"
        traced.add_submodule(name, quantizer)
        with traced.graph.inserting_after(producer):
            quantized = traced.graph.call_module(name, (producer,))
        # everyone but the quantizer itself now reads the quantized tensor
        for user in [user for user in producer.users if user is not quantized]:
            user.replace_input_with(producer, quantized)
        quantizers[producer] = quantizer
    traced.graph.lint()
    traced.recompile()
    return list(quantizers.values()), {name: quantizers[producer] for name, producer in readers.items()}


def _is_last(node: fx.Node, traced: fx.GraphModule, modules: dict[Any, nn.Module]) -> bool:
    """Whether no layer comes after `node`; the first layer reads the image, which is not quantized."""
    layers = [n for n in traced.graph.nodes if n.op == "call_module" and isinstance(modules[n.target], (nn.Conv2d, nn.Linear))]
    return node is layers[-1]


def _producer(node: fx.Node, modules: dict[Any, nn.Module]) -> fx.Node:
    """The node whose values `node` only passes on."""
    while passes_values_on(node, modules) and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return node


def passes_values_on(node: fx.Node, modules: Mapping[Any, nn.Module]) -> bool:
    """Whether what a node puts out are only values of its first input, and zeros; modules: by their names in the graph."""
    if node.op == "call_module":
        return isinstance(modules[node.target], _VALUE_PRESERVING_MODULES)
    return node.op in ("call_function", "call_method") and node.target in _VALUE_PRESERVING_CALLS


def _quantize_inputs(
    network: nn.Module, names: list[str], own: Mapping[str, int], config: TrainingConfig, example: Tensor
) -> dict[str, ActivationQuantizer]:
    """Without a graph: for every layer but those that read the image itself, the quantizer of its input."""
    # a view of the image, such as it flattened, is still the image
    image = example.untyped_storage().data_ptr()
    reads_image = _inputs_of(network, names, example, lambda x: x.untyped_storage().data_ptr() == image)
    inside = [name for name in names if not all(reads_image[name])]
    return {name: ActivationQuantizer(own.get(name, config.input_bits), config.range) for name in inside}


def _replace(network: nn.Module, name: str, new: nn.Module) -> None:
    """Puts `new` wherever the module `name` hangs, under every name that it has."""
    old = network.get_submodule(name)
    for parent in network.modules():
        for child_name, child in list(parent.named_children()):
            if child is old:
                setattr(parent, child_name, new)
