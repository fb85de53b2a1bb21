"""Tracing of networks with torch.fx, and recognition of layers derived from torch's own."""

import threading
from collections.abc import Callable
from typing import Any

from torch import fx, nn

_tracing = threading.Lock()
_CONTAINERS = ("torch.nn.modules.module", "torch.nn.modules.container")


class LayerTracer(fx.Tracer):
    """Does not trace into layers derived from torch's own, whereas torch.fx stops only at torch's own layers.

    Derived layers often cannot be traced, for example timm's padding that depends on the image size, and tracing into them would hide
    convolutions and BatchNorm layers from the passes that look for them in the graph.

    While it traces, torch.fx intercepts the calls of all modules, also those of a run in another thread: these are passed on.
    """

    def trace(self, root: Any, concrete_args: Any = None) -> fx.Graph:
        with _tracing:
            self._thread = threading.get_ident()
            return super().trace(root, concrete_args)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: Any) -> Any:
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        return super().is_leaf_module(module, qualified_name) or any(
            base.__module__.startswith("torch.nn.modules.") and base.__module__ not in _CONTAINERS for base in type(module).__mro__
        )


def computes_as(layer: nn.Module, base: type[nn.Module]) -> bool:
    """Whether `layer` is an instance of `base`, a layer class of torch, and computes the same function."""
    own = type(layer)
    return isinstance(layer, base) and all(
        getattr(own, name, None) is getattr(base, name, None) for name in ("forward", "_conv_forward", "__call__")
    )


def has_activation_inside(layer: nn.Module) -> bool:
    """Whether `layer` is timm's BatchNorm2d with a built-in activation, `layer.act`."""
    if not isinstance(layer, nn.BatchNorm2d) or computes_as(layer, nn.BatchNorm2d):
        return False
    from timm.layers import BatchNormAct2d  # slow to import, but already imported if the network has such a layer

    return computes_as(layer, BatchNormAct2d)
