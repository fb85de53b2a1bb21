"""Swing convolution (Jeon et al., GENIE, CVPR 2023): a strided convolution reads its input at a random phase."""

import copy

import torch
from torch import Tensor, nn

_PIXELS = 1  # of reflected padding


class Swing(nn.ReflectionPad2d):
    """Pads the input `(N, C, H, W)` by reflection and crops H x W at `offset`, rows and columns from 0 to 2; 1, 1 changes nothing.

    Inputs of one row or column, which cannot be reflected, stay as they are. A copy of a network has the same `Swing`, so that its offset
    is set in all copies. Derived from a layer of torch, so that tracing does not go into it.
    """

    def __init__(self) -> None:
        super().__init__(_PIXELS)
        self.offset = (_PIXELS, _PIXELS)

    def __deepcopy__(self, memo: dict) -> "Swing":
        return self

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        if min(height, width) <= _PIXELS or self.offset == (_PIXELS, _PIXELS):
            return x
        row, column = self.offset
        padded = super().forward(x)[:, :, row : row + height, column : column + width]
        return padded.contiguous(memory_format=torch.channels_last)


class _Swinging(nn.Module):
    """A convolution behind its swing."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.swing, self.convolution = Swing(), convolution

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(self.swing(x))


class SwingingNetwork:
    """`network`: a copy with the same parameters in which every convolution of a stride above 1 has a swing."""

    def __init__(self, network: nn.Module) -> None:
        tensors = [*network.parameters(), *network.buffers()]
        self.network = copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})
        self._swings: list[Swing] = []
        wrapped: dict[nn.Module, _Swinging] = {}  # one for each convolution, wherever the network has it
        for parent in list(self.network.modules()):
            for name, layer in list(parent.named_children()):
                if isinstance(layer, nn.Conv2d) and max(layer.stride) > 1:
                    wrapped.setdefault(layer, _Swinging(layer))
                    setattr(parent, name, wrapped[layer])
        self._swings = [one.swing for one in wrapped.values()]

    def draw(self, random: torch.Generator) -> None:
        """Another offset for each convolution."""
        offsets = torch.randint(2 * _PIXELS + 1, (len(self._swings), 2), generator=random).tolist()
        for swing, (row, column) in zip(self._swings, offsets):
            swing.offset = (row, column)
