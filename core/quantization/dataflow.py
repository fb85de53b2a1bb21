"""Which layers read the image, found by following the tensors of one forward pass.

What a layer reads is an activation only if it was computed by another layer. A network may normalize its images itself, with arithmetic or
a BatchNorm layer or one factor and offset a channel, written as a convolution, and pool, cut, resize or convert them: the layer behind that
still reads the image.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from core.models.hooks import hooked
from core.models.tracing import computes_as

_CONSTANT, _WEIGHT, _IMAGE, _ACTIVATION = range(4)  # where the values of a tensor come from; of several sources, the largest
# Operations that make an activation of an image and a weight, as functions have them that are not a module of their own.
_PRODUCTS = frozenset({"convolution", "linear", "mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "mkldnn_rnn_layer", "_cudnn_rnn"})


def image_readers(network: nn.Module, layers: Mapping[str, nn.Module], example: Tensor) -> dict[str, list[bool]]:
    """Name of a layer -> for each of its calls in one forward pass, whether it reads the image; in the order of the first calls.

    network: contains `layers`, and stays unchanged. example: images `(N, C, H, W)`.
    """
    found: dict[str, list[bool]] = {}

    def begins(name: str, inputs: Any) -> None:
        found.setdefault(name, []).append(flow.source(inputs[0]) < _ACTIVATION)

    def ends(name: str, _inputs: Any, output: Any) -> None:
        if not _scales_channels(layers[name]):
            flow.mark(output, _ACTIVATION)

    with _Flow(network, example) as flow, hooked(layers, ends, begins), torch.no_grad():
        network(example)
    return found


def image_scales(network: nn.Module, example: Tensor) -> dict[str, nn.Conv2d]:
    """The convolutions that only scale and shift each channel of the image, by name: a normalization, not layers that were trained.

    network and example as in `image_readers`.
    """
    scales = {name: one for name, one in network.named_modules() if isinstance(one, nn.Conv2d) and _scales_channels(one)}
    calls = image_readers(network, scales, example) if scales else {}
    return {name: scales[name] for name, reads_image in calls.items() if all(reads_image)}


def _scales_channels(layer: nn.Module) -> bool:
    """Whether each output channel is its own input channel times one weight, plus a bias."""
    if not isinstance(layer, nn.Conv2d) or not computes_as(layer, nn.Conv2d):
        return False
    return _is_diagonal(layer.weight, layer.groups) and layer.stride == (1, 1) and layer.padding in ((0, 0), "same", "valid")


def _is_diagonal(weight: Tensor, groups: int) -> bool:
    return weight.shape == (groups, 1, 1, 1)


class _Flow(TorchDispatchMode):
    """While it is active, knows where the values of every tensor come from.

    By storage, so that views and operations in place are followed as well. The weak references keep the address of a storage from being
    used again, but not its memory.
    """

    def __init__(self, network: nn.Module, image: Tensor) -> None:
        super().__init__()
        self._sources: dict[StorageWeakRef, int] = {}
        for parameter in network.parameters():
            self.mark(parameter, _WEIGHT)
        self.mark(image, _IMAGE)

    def source(self, tensor: Tensor) -> int:
        return self._sources.get(StorageWeakRef(tensor.untyped_storage()), _CONSTANT)

    def mark(self, tensor: Tensor, source: int) -> None:
        self._sources[StorageWeakRef(tensor.untyped_storage())] = max(source, self.source(tensor))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        read = {self.source(value) for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)}
        source = max(read, default=_CONSTANT)
        name = func.overloadpacket.__name__
        is_product = name in _PRODUCTS and not (name == "convolution" and _is_diagonal(args[1], args[8]))
        if source == _IMAGE and _WEIGHT in read and is_product:
            source = _ACTIVATION
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self.mark(value, source)
        return result
