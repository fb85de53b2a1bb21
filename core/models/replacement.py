"""Replacement of modules inside a network."""

from collections.abc import Callable, Mapping

from torch import nn


def replace_modules(network: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> None:
    """Replaces each key by its value, under every name that it has inside `network`."""
    for parent in list(network.modules()):
        for name, child in list(parent._modules.items()):  # named_children omits further names of a module
            if child is not None and child in replacements:
                setattr(parent, name, replacements[child])


def replace_kind(network: nn.Module, kind: type[nn.Module] | tuple[type[nn.Module], ...], make: Callable[..., nn.Module]) -> None:
    """Replaces every module of a class inside `network` by `make(module)`, which is called once for each."""
    inside = [module for module in network.modules() if module is not network and isinstance(module, kind)]
    replace_modules(network, {module: make(module) for module in inside})
