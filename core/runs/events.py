"""From what the engine announces to what the store keeps."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from core.reporting import TEST
from core.runs.store import RunStore

if TYPE_CHECKING:
    from torch import Tensor

SECONDS_BETWEEN_FRAMES = 0.5


class StoreReporter:
    """A Reporter that writes everything into the store; of the pictures at most two a second and lane, besides those to keep."""

    def __init__(self, store: RunStore, run_id: str) -> None:
        self._store, self._run_id = store, run_id
        self._last_frame: dict[str, float] = {}

    def stage(self, name: str, total: int, done: int = 0) -> None:
        """Shown as what the run is doing."""
        self._store.set_stage(self._run_id, name, total, done)

    def record(self, stage: str, lane: str, step: int, values: Mapping[str, Any]) -> None:
        """One record."""
        self._store.append(self._run_id, stage, lane, step, values, counted=stage != TEST)

    def images(self, lane: str, step: int, images: Tensor, labels: Tensor, keep: bool) -> None:
        """One frame."""
        self._last_frame[lane] = time.monotonic()
        self._store.save_frame(self._run_id, lane, step, images.contiguous().numpy(), labels.numpy(), keep)

    def wants_images(self, lane: str) -> bool:
        """Whether the last frame is old enough."""
        return time.monotonic() - self._last_frame.get(lane, float("-inf")) >= SECONDS_BETWEEN_FRAMES

    def change(self, lane: str, step: int, name: str, value: float) -> None:
        """One change."""
        self._store.add_change(self._run_id, lane, step, name, value)

    def result(self, name: str, value: Any) -> None:
        """One result."""
        self._store.set_result(self._run_id, name, value)

    def rewind(self, stage: str, lane: str, step: int) -> None:
        """Records and pictures after `step` are gone."""
        self._store.rewind(self._run_id, stage, lane, step)

    def flush(self) -> None:
        """Waits for the disk."""
        self._store.sync()
