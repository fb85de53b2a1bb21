"""The images of a set: a tensor or, of a set that need not fit into memory, shards."""

import math
from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from core.data.shards import Shards

AT_ONCE = 256  # images that are read together


class ShardedImages:
    """The images of shards, used as a uint8 tensor `(N, C, H, W)` on the CPU is: those that are asked for are read, and none is kept."""

    dtype = torch.uint8

    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        self.shape = torch.Size(shards.shape)

    def __len__(self) -> int:
        return len(self._shards)

    def numel(self) -> int:
        """Bytes of all pixels."""
        return math.prod(self.shape)

    def __getitem__(self, index: Tensor | np.ndarray | slice) -> Tensor:
        """The images of these numbers, uint8 `(n, C, H, W)`. Raises DataError as `Shards.read`."""
        numbers = np.arange(len(self))[index] if isinstance(index, slice) else np.asarray(index)
        return torch.from_numpy(self._shards.read(numbers))

    def split(self, size: int) -> Iterator[Tensor]:
        """All images in order, `size` at once."""
        return (self[start : start + size] for start in range(0, len(self), size))

    def __iter__(self) -> Iterator[Tensor]:
        """Each image, uint8 `(C, H, W)`."""
        return (image for batch in self.split(AT_ONCE) for image in batch)


Images: TypeAlias = Tensor | ShardedImages
