"""Channel attention of residual blocks, and how far that of two networks differs: FA of HAST (Li et al., CVPR 2023)."""

import operator
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from core.models.full_precision import batch_norm_layers
from core.models.hooks import hooked

_ADDITIONS = {operator.add, operator.iadd, torch.add, "add", "add_"}


def body_layers(network: nn.Module) -> list[str]:
    """Names of the BatchNorm layers that end the bodies of the residual blocks, before the addition; of all BatchNorm layers if the network
    has no graph (torch.fx) or no such block.

    Of two branches that are added, the one with more BatchNorm layers behind it is the body.
    """
    layers = batch_norm_layers(network)
    found: list[str] = []
    if isinstance(network, fx.GraphModule):
        depths: dict[fx.Node, int] = {}
        for node in network.graph.nodes:
            before = node.all_input_nodes
            depths[node] = max((depths[one] for one in before), default=0) + (node.op == "call_module" and node.target in layers)
            if node.target in _ADDITIONS and len(before) == 2 and (name := _last_layer(node, depths, layers)):
                found.append(name)
    return list(dict.fromkeys(found)) or list(layers)


def _last_layer(addition: fx.Node, depths: Mapping[fx.Node, int], layers: Mapping[str, nn.Module]) -> str:
    """The last BatchNorm layer before an addition, on the way with the most of them; "" if there is none."""
    node = addition
    while node.all_input_nodes:
        node = max(node.all_input_nodes, key=depths.__getitem__)
        if node.op == "call_module" and node.target in layers:
            return str(node.target)
    return ""


def channel_attention(features: Tensor) -> Tensor:
    """`(N, C, H, W)` -> `(N, C)`: the mean square of each channel, of unit length over the channels of an image."""
    return F.normalize(features.square().mean(dim=(2, 3)), dim=1)


@contextmanager
def channel_attentions(network: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Within the block, collects the channel attention of the output of each of these layers, by name; that of the last pass."""
    found: dict[str, Tensor] = {}

    def keep(name: str, _inputs: object, output: Tensor) -> None:
        # of a copy, because an addition in place may follow
        found[name] = channel_attention(output.clone())

    with hooked({name: network.get_submodule(name) for name in layers}, keep):
        yield found


def attention_loss(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> Tensor:
    """FA: sum over layers of the mean squared difference of channel attentions `(N, C)`."""
    return torch.stack([F.mse_loss(student[name], attention) for name, attention in teacher.items()]).sum()
