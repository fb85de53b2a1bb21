"""The features that a network classifies: the input of its last layer."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from core.models.hooks import hooked


@contextmanager
def classified_features(network: nn.Module) -> Iterator[list[Tensor]]:
    """Within the block, the list has the features `(N, F)` of the last forward pass: the input of the linear layer that ran last or, in a
    network without one, the positions' mean of the input of the convolution that ran last. Empty if there is neither.
    """
    found: list[Tensor] = []
    layers: list[nn.Module] = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    layers = layers or [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]

    def keep(_number: int, inputs: tuple[Tensor, ...]) -> None:
        found[:] = [inputs[0].mean(dim=(2, 3)) if inputs[0].ndim == 4 else inputs[0].flatten(1)]

    with hooked(dict(enumerate(layers)), before_forward=keep):
        yield found
