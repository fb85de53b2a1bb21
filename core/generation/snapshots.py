"""The images saved so far, and the iterations whose images are kept for the iteration slider."""

import math
from collections.abc import Iterator
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from core.config import GenerationConfig
from core.errors import CoreError
from core.files import atomic_write

KEPT_ITERATIONS = 50  # evenly spaced over a run, plus about as many first iterations and snapshots: 26 MB for 200 steps of two methods


class Snapshots:
    """The images saved so far, one batch at a time: in memory or, given a folder, in one file each, so that they outlive the process."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._kept: list[tuple[Tensor, Tensor]] = []
        self._count = 0

    def add(self, pixels: Tensor, labels: Tensor) -> None:
        """Saves uint8 `(n, C, H, W)` and int64 `(n,)`, both on the CPU."""
        if self._folder is None:
            self._kept.append((pixels, labels))
        else:
            self._folder.mkdir(parents=True, exist_ok=True)
            with atomic_write(self._path(self._count)) as partial:
                save_file({"images": pixels, "labels": labels}, partial)
        self._count += 1

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for index in range(self._count):
            if self._folder is None:
                yield self._kept[index]
            else:
                tensors = load_file(self._path(index))
                yield tensors["images"], tensors["labels"]

    def resume_after(self, count: int) -> None:
        """Continues after the first `count` files; later ones are written again. Raises CoreError when one of them is missing."""
        for index in range(count):
            if not self._path(index).is_file():
                raise CoreError(f"{self._path(index)} is missing: the resume state needs all images that were saved before it")
        self._count = count

    def _path(self, index: int) -> Path:
        assert self._folder is not None
        return self._folder / f"{index:06d}.safetensors"


def kept_steps(config: GenerationConfig) -> frozenset[int]:
    """The steps, counted from 1 over all batches, whose images are kept for the iteration slider.

    Evenly spaced; the first iteration and the snapshots of every batch or, with many batches, of every n-th; and the last step. Depends
    on the config alone, so that all methods and a resumed run agree.
    """
    batches, iterations = len(config.batches), config.iterations
    steps = batches * iterations
    every = math.ceil(steps / KEPT_ITERATIONS)
    every_batch = math.ceil(batches * (1 + config.snapshots) / KEPT_ITERATIONS)
    special = (batch * iterations + each for batch in range(0, batches, every_batch) for each in (1, *config.snapshot_iterations))
    return frozenset((*range(every, steps, every), *special, steps))
