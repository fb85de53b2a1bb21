"""The images saved so far, and the iterations whose images are kept for the iteration slider."""

import math
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from core.config import GenerationConfig
from core.data.shards import SHARD_SUFFIX, about_shards, shard_name, write_shard
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

    def resume_after(self, count: int, images: int) -> None:
        """Continues after the first `count` files, which have `images` images; later ones are written again. Raises CoreError when one of
        them is missing."""
        for index in range(count):
            self._check(self._path(index))
        self._count = count

    def _check(self, path: Path) -> None:
        if not path.is_file():
            raise CoreError(f"{path} is missing: the resume state needs all images that were saved before it")

    def release(self, images: int) -> None:
        """Told that no resume state will be loaded any more that has fewer than `images` images."""

    def _path(self, index: int) -> Path:
        assert self._folder is not None
        return self._folder / f"{index:06d}.safetensors"


class ShardedSnapshots(Snapshots):
    """The images saved so far, as shards of `size` images each in `shards`; in `folder` are only those from which no shard is written yet,
    or that a resume state may still need. A shard is written as soon as its images are there.
    """

    def __init__(self, folder: Path, shards: Path, size: int) -> None:
        super().__init__(folder)
        self._shards, self._size = shards, size
        self._images = self._written = 0
        self._there: deque[tuple[Path, int, int]] = deque()  # files in `folder`, with the numbers of their first image and of that after it

    def add(self, pixels: Tensor, labels: Tensor) -> None:
        path = self._path(self._count)
        super().add(pixels, labels)
        self._there.append((path, self._images, self._images + len(labels)))
        self._images += len(labels)
        while self._images >= (self._written + 1) * self._size:
            self._write()

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        raise NotImplementedError("shards are read with core.data.image_sets")

    def finish(self) -> list[dict[str, Any]]:
        """Writes the last shard, which may have fewer images; returns the entry of the manifest on all of them."""
        if self._images > self._written * self._size:
            self._write()
        self._remove_others()
        files = [self._shards / shard_name(number) for number in range(self._written)]
        return about_shards(files, [min(self._size, self._images - number * self._size) for number in range(self._written)])

    def _write(self) -> None:
        first = self._written * self._size
        self._shards.mkdir(parents=True, exist_ok=True)
        with atomic_write(self._shards / shard_name(self._written)) as partial:
            write_shard(partial, first, self._between(first, first + self._size))
        self._written += 1

    def _between(self, first: int, end: int) -> Iterator[tuple[np.ndarray, int]]:
        """Images and labels with the numbers from `first` to `end`, which is not included, as far as they are there."""
        for path, own, own_end in self._there:
            if own < end and own_end > first:
                tensors, chosen = load_file(path), slice(max(0, first - own), end - own)
                yield from zip(tensors["images"][chosen].numpy(), tensors["labels"][chosen].tolist(), strict=True)

    def resume_after(self, count: int, images: int) -> None:
        self._count, self._images, self._written = count, images, images // self._size
        for number in range(self._written):
            self._check(self._shards / shard_name(number))
        self._remove_others()
        self._there.clear()
        end = images
        while end > self._written * self._size:
            count -= 1
            path = self._path(count)
            self._check(path)
            with safe_open(path, "pt") as file:
                own = int(file.get_slice("labels").get_shape()[0])
            self._there.appendleft((path, end - own, end))
            end -= own

    def _remove_others(self) -> None:
        """Removes the shards that an earlier attempt wrote of images that are made again, or not any more."""
        names = {shard_name(number) for number in range(self._written)}
        for path in self._shards.glob(f"*{SHARD_SUFFIX}"):
            if path.name not in names:
                path.unlink()

    def release(self, images: int) -> None:
        while self._there and self._there[0][2] <= images // self._size * self._size:
            self._there.popleft()[0].unlink(missing_ok=True)


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
