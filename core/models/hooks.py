"""Forward hooks that are removed at the end of a block."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import nn

Key = TypeVar("Key")


@contextmanager
def hooked(
    modules: Mapping[Key, nn.Module],
    on_forward: Callable[[Key, Any, Any], None] | None = None,
    before_forward: Callable[[Key, Any], None] | None = None,
) -> Iterator[None]:
    """Within the block, each forward pass of one of these modules calls `on_forward(key, inputs, output)` at its end.

    before_forward: called as `before_forward(key, inputs)` when the pass begins. inputs: the tuple of positional arguments. A module that
    runs several times calls them each time; a module with two keys calls them for both.
    """
    handles = []
    try:
        for key, module in modules.items():
            if before_forward is not None:
                handles.append(module.register_forward_pre_hook(_pre_hook(before_forward, key)))
            if on_forward is not None:
                handles.append(module.register_forward_hook(_hook(on_forward, key)))
        yield
    finally:
        for handle in handles:
            handle.remove()


# The hooks return None, because torch takes any other value as the new input or output.


def _pre_hook(call: Callable[[Key, Any], None], key: Key) -> Callable[[nn.Module, Any], None]:
    def hook(_module: nn.Module, inputs: Any) -> None:
        call(key, inputs)

    return hook


def _hook(call: Callable[[Key, Any, Any], None], key: Key) -> Callable[[nn.Module, Any, Any], None]:
    def hook(_module: nn.Module, inputs: Any, output: Any) -> None:
        call(key, inputs, output)

    return hook
