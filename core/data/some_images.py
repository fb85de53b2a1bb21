"""A few images of a set that a run made, in one file or in shards, without reading the others. Imports no torch."""

import math
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from core.data.archives import MANIFEST_BYTES
from core.data.manifests import parse_manifest
from core.data.shards import SHARDS, Shards, samples_of, shard_files
from core.errors import DataError
from core.files import read_bounded
from core.layout import IMAGES_FILE, MANIFEST


class SomeImages:
    """The images of the set in `folder`, to be looked at. total: how many there are; 0 for a set that is not there, or in another format,
    such as a folder of the user."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / IMAGES_FILE
        self._shards: list[Path] = []
        self._starts: list[int] = [0]  # numbers of the first image of each shard, and of one after the last
        self.total = 0
        try:
            if self._file.is_file():
                with safe_open(self._file, "numpy") as file:
                    self.total = min(file.get_slice(name).get_shape()[0] for name in ("images", "labels"))
            elif (folder / MANIFEST).is_file():
                manifest = parse_manifest(read_bounded(folder / MANIFEST, MANIFEST_BYTES))
                if shards := shard_files(folder, manifest):
                    counts = [int(one["images"]) for one in manifest[SHARDS]]
                    self._shards, self._starts = shards, [0, *np.cumsum(counts).tolist()]
                    self.total = self._starts[-1]
        except (OSError, SafetensorError, DataError, ValueError, LookupError, TypeError):
            self.total = 0  # deleted meanwhile, or no image set

    def labels(self) -> np.ndarray | None:
        """All labels, int64 `(N,)`; None for a set in shards, of which they are read with the images, and for one that is not there."""
        if self._shards or not self.total:
            return None
        with safe_open(self._file, "numpy") as file:
            found: np.ndarray = file.get_tensor("labels")
        return found

    def spread(self, most: int) -> list[int]:
        """Numbers of `most` images, or of all if there are fewer, spread over the set: evenly or, in shards, the first ones of each, which
        are found at once."""
        if not self._shards:
            return np.unique(np.linspace(0, self.total - 1, min(most, self.total)).round().astype(int)).tolist()
        chosen = np.unique(np.linspace(0, len(self._shards) - 1, min(most, len(self._shards))).round().astype(int)).tolist()
        each = range(math.ceil(most / len(chosen)))
        found = [self._starts[shard] + place for place in each for shard in chosen if self._starts[shard] + place < self._starts[shard + 1]]
        return sorted(found[:most])

    def read(self, numbers: Sequence[int]) -> tuple[np.ndarray, np.ndarray] | None:
        """The images with these numbers, uint8 `(n, C, H, W)`, and their labels int64 `(n,)`; None if the set lacks one of them."""
        if not len(numbers) or not all(0 <= number < self.total for number in numbers):
            return None
        try:
            if self._shards:
                return self._read_shards(numbers)
            with safe_open(self._file, "numpy") as file:
                images, labels = file.get_slice("images"), file.get_slice("labels")
                return (
                    np.concatenate([images[number : number + 1] for number in numbers]),
                    np.concatenate([labels[number : number + 1] for number in numbers]),
                )
        except (OSError, SafetensorError, DataError, ValueError):  # deleted meanwhile, or no image set
            return None

    def _read_shards(self, numbers: Sequence[int]) -> tuple[np.ndarray, np.ndarray] | None:
        shard_of = np.searchsorted(self._starts, numbers, side="right") - 1
        samples = []
        for shard in np.unique(shard_of).tolist():
            wanted = {number - self._starts[shard] for number, own in zip(numbers, shard_of) if own == shard}
            seen = enumerate(islice(samples_of(self._shards[shard]), max(wanted) + 1))
            samples += [(self._starts[shard] + index, shard, sample) for index, sample in seen if index in wanted]
        places = {number: place for place, (number, _, _) in enumerate(samples)}
        if not all(number in places for number in numbers):
            return None
        found = Shards(self._shards, ((shard, sample) for _, shard, sample in samples))
        chosen = np.array([places[number] for number in numbers])
        return found.read(chosen), found.labels[chosen]
