"""What is known of a batch before it is computed, and what it leaves behind: a batch may be computed anywhere (apart.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from core.config import GenerationConfig
from core.reporting import Frame


@dataclass(frozen=True)
class Task:
    """A batch to compute. index: its number. values: all live values before it. changes: live changes in it, {"step", "name", "value"}."""

    index: int
    values: Mapping[str, float]
    changes: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, eq=False)
class Batch:
    """What a batch leaves behind.

    saved: pixels uint8 `(n, C, H, W)` with labels int64 `(n,)`, in the order in which they were saved. agreeing: of these images, how many
    the network gives their label. records: of each iteration. frames: those that are kept, and that of the last iteration. values, scale,
    first_layers, last_layers, seconds: as in the state of the loop, the latter three of this batch. kernels: with which it was computed.
    """

    index: int
    saved: Sequence[tuple[np.ndarray, np.ndarray]]
    agreeing: int
    records: Sequence[Mapping[str, Any]]
    frames: Sequence[Frame]
    changes: Sequence[Mapping[str, Any]]
    values: Mapping[str, float]
    scale: float | None
    first_layers: Sequence[list[float]]
    last_layers: Sequence[list[float]]
    seconds: float
    kernels: str


class Batches(Protocol):
    """Computes batches, several at once, where there is room for them."""

    def results(self, method: str, config: GenerationConfig, tasks: Iterator[Task], idle: Callable[[], None]) -> Iterator[Batch]:
        """The batch of each task, in their order. A task is taken when there is room for it. idle: called while nothing is ready; may
        raise to stop early. A batch whose worker dies is computed again."""
