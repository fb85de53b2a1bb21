"""Weights that a program computes from its own tensors, such as those of weight norm and spectral norm: computed once, when it is read."""

import itertools
from typing import Any

import torch
from torch import Tensor, fx

from core.models.programs.layers import HeldTensor

_TRANSPOSES = (torch.permute, torch.transpose, torch.ops.aten.t.default)
_PARAMETRIZATIONS = ".parametrizations."  # torch.nn.utils.parametrize keeps the originals of NAME below NAME.parametrizations


class Folding:
    """Computes nodes of a graph that depend on nothing but tensors of the program."""

    def __init__(self, tensors: dict[str, Tensor], elements: int) -> None:
        """tensors: those of the program by name, to which results are added. elements: limit on the size of a tensor."""
        self.tensors, self._elements = tensors, elements
        self._values: dict[str, Tensor] = dict(tensors)
        self._found: dict[fx.Node, str | None] = {}  # node -> name of its value
        self._names: dict[
            tuple[Any, str], str
        ] = {}  # function and arguments -> name: a layer that is called twice computes its weight twice

    def held(self, value: Any, attribute: str) -> Any:
        """The tensor that a node computes, under the name OWNER.attribute if that is free; `value` itself if it is no such node.

        Raises ValueError for a tensor above the limit, and whatever the function raises.
        """
        if not isinstance(value, fx.Node) or (name := self._computed(value)) is None or self._values[name].dtype != torch.float32:
            return value
        if value.target in _TRANSPOSES and self._values[name].ndim == 2:
            inner = self.held(value.args[0], attribute)
            swapped = value.target(torch.empty(2, 3, device="meta"), *value.args[1:], **value.kwargs).shape == (3, 2)  # type: ignore[operator]
            return HeldTensor(inner.name, inner.transposed != swapped)
        if name in self.tensors:
            return HeldTensor(name)
        owner = _owner(value)
        names = (f"{owner}{attribute}{number or ''}" for number in itertools.count())
        free = next(one for one in names if one not in self.tensors or self.tensors[one] is self._values[name])
        self.tensors[free] = self._values[name]
        return HeldTensor(free)

    def _computed(self, node: fx.Node) -> str | None:
        """Name of the value of a node in `_values`; None if it depends on the images."""
        if node not in self._found:
            self._found[node] = self._compute(node)
        return self._found[node]

    def _compute(self, node: fx.Node) -> str | None:
        if node.op == "get_attr":
            return str(node.target)
        sources = {source: self._computed(source) for source in node.all_input_nodes}
        if node.op not in ("call_function", "call_method") or not sources or None in sources.values():
            return None
        arguments = fx.node.map_arg((node.args, node.kwargs), lambda source: f"tensor {sources[source]}")
        key = (node.target, repr(arguments))
        if key not in self._names:
            result = self._run(node, lambda source: self._values[str(sources[source])].to("meta"))
            if not isinstance(result, Tensor):
                return None
            if result.numel() > self._elements:
                raise ValueError(f"a tensor of {result.numel():,} elements at {node.name}, must be at most {self._elements:,}")
            self._names[key] = f"{len(self._values)}"  # no name of an attribute
            self._values[self._names[key]] = self._run(node, lambda source: self._values[str(sources[source])])
        return self._names[key]

    @torch.no_grad()
    def _run(self, node: fx.Node, value: Any) -> Any:
        args, keywords = fx.node.map_arg((node.args, node.kwargs), value)
        function = getattr(torch.Tensor, node.target) if isinstance(node.target, str) else node.target
        return function(*args, **keywords)


def erase_unread(graph: fx.Graph) -> None:
    """Removes functions and tensors that nothing reads. Unlike torch's `eliminate_dead_code`, it needs no modules."""
    for node in reversed(graph.nodes):
        if not node.users and node.op in ("call_function", "call_method", "get_attr"):
            graph.erase_node(node)


def _owner(node: fx.Node) -> str:
    """The module, with a dot at its end, whose tensor a calculation begins with."""
    while node.op != "get_attr":
        node = node.all_input_nodes[0]
    name = str(node.target)
    owner = name.partition(_PARAMETRIZATIONS)[0] if _PARAMETRIZATIONS in name else name.rpartition(".")[0]
    return f"{owner}." if owner else ""
