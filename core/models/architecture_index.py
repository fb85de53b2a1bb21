"""The index of architectures: how many tensors of each shape the classifiers of the three zoos have. Imports no torch.

Only what does not depend on the number of classes is in it. Names and order are not: the few architectures that share their shapes are told
apart by building them. `python -m core.recipes.architecture_index` makes the file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from core.files import atomic_write
from core.models.registry import ASSETS

FILE = ASSETS / "architectures.npz"
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Entry:
    """An architecture in the index. shapes: of its tensors that do not depend on the number of classes, without counters; others: number of
    those that do."""

    architecture: str
    shapes: Counter[Shape]
    others: int


class ArchitectureIndex:
    """Compares the tensors of a file with every architecture at once."""

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        self.architectures: list[str] = bytes(arrays["architectures"]).decode().split("\n")
        sizes, ends = arrays["sizes"].tolist(), np.cumsum(arrays["dimensions"]).tolist()
        self._numbers = {tuple(sizes[start:end]): number for number, (start, end) in enumerate(zip([0, *ends], ends))}
        self._kinds, self._counts = arrays["kinds"].astype(np.int64), arrays["counts"].astype(np.int64)
        self._starts = np.concatenate([[0], np.cumsum(arrays["lengths"])[:-1]])
        self._totals = np.add.reduceat(self._counts, self._starts)
        self._others = arrays["others"].astype(np.int64)

    def sizes(self) -> dict[str, int]:
        """Architecture -> number of its tensors without counters."""
        return dict(zip(self.architectures, (self._totals + self._others).tolist()))

    def shares(self, shapes: Counter[Shape]) -> np.ndarray:
        """For each architecture, the share of tensors, 0 to 1, that a file with these shapes has in common with it."""
        present = np.zeros(len(self._numbers), np.int64)
        for shape, count in shapes.items():
            if shape in self._numbers:
                present[self._numbers[shape]] = count
        common = np.add.reduceat(np.minimum(self._counts, present[self._kinds]), self._starts)
        return common / np.maximum(self._totals, shapes.total() - self._others)

    def likely(self, groups: Iterable[Counter[Shape]], most: int) -> list[tuple[str, float]]:
        """The `most` architectures with the largest share of any of the groups, and those that share as much as the last; largest first."""
        best = np.max([self.shares(shapes) for shapes in groups], axis=0)
        order = [place for place in np.argsort(-best, kind="stable") if best[place] > 0]
        least = min(best[order[min(most, len(order)) - 1]], best[order[0]]) if order else 0.0
        return [(self.architectures[place], float(best[place])) for place in order if best[place] >= least][: 4 * most]


@cache
def load_index(file: Path = FILE) -> ArchitectureIndex:
    """The index in assets/."""
    with np.load(file) as arrays:
        return ArchitectureIndex(dict(arrays))


def save_index(entries: Sequence[Entry], file: Path) -> None:
    """Writes an index, atomically; each shape once, and its number wherever it occurs."""
    shapes = sorted({shape for entry in entries for shape in entry.shapes})
    numbers = {shape: number for number, shape in enumerate(shapes)}
    rows = [sorted((numbers[shape], count) for shape, count in entry.shapes.items()) for entry in entries]
    arrays: dict[str, Any] = {
        "architectures": np.frombuffer("\n".join(entry.architecture for entry in entries).encode(), np.uint8),
        "sizes": np.array([size for shape in shapes for size in shape], np.int32),
        "dimensions": np.array([len(shape) for shape in shapes], np.uint8),
        "kinds": np.array([number for row in rows for number, _ in row], np.int32),
        "counts": np.array([count for row in rows for _, count in row], np.int16),
        "lengths": np.array([len(row) for row in rows], np.int32),
        "others": np.array([entry.others for entry in entries], np.int16),
    }
    with atomic_write(file) as partial, partial.open("wb") as opened:
        np.savez_compressed(opened, **arrays)
