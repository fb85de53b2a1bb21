"""From what the engine announces to what the store keeps."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from core.reporting import TEST, Frame, RunningStatistics
from core.runs.store import RunStore

SECONDS_BETWEEN_FRAMES = 0.5


class StoreReporter:
    """A Reporter that writes everything into the store; of the pictures at most two a second and method, besides those to keep."""

    def __init__(self, store: RunStore, run_id: str) -> None:
        self._store, self._run_id = store, run_id
        self._last_frame: dict[str, float] = {}
        self._steps: dict[str, int] = {}  # that each method has come to
        self._pictured = 0  # the step of the last frame, of whichever method

    def stage(self, name: str, total: int, done: int = 0) -> None:
        """Shown as what the run is doing."""
        self._store.set_stage(self._run_id, name, total, done)

    def record(self, stage: str, series: str, step: int, values: Mapping[str, Any]) -> None:
        """One record."""
        self._steps[series] = step
        self._store.append(self._run_id, stage, series, step, values, counted=stage != TEST)

    def images(self, method: str, frame: Frame, keep: bool) -> None:
        """One frame."""
        self._last_frame[method], self._pictured = time.monotonic(), frame.step
        self._store.save_frame(self._run_id, method, frame, keep)

    def wants_images(self, method: str) -> bool:
        """Whether the last frame is old enough, or another method is seen at the same step: methods are looked at side by side."""
        return (
            self._steps.get(method) == self._pictured
            or time.monotonic() - self._last_frame.get(method, float("-inf")) >= SECONDS_BETWEEN_FRAMES
        )

    def running_statistics(self, statistics: RunningStatistics) -> None:
        """In a file of their own."""
        self._store.save_running_statistics(self._run_id, statistics)

    def change(self, method: str, step: int, name: str, value: float) -> None:
        """One change."""
        self._store.add_change(self._run_id, method, step, name, value)

    def result(self, name: str, value: Any) -> None:
        """One result."""
        self._store.set_result(self._run_id, name, value)

    def rewind(self, stage: str, series: str, step: int) -> None:
        """Records and pictures after `step` are gone."""
        self._store.rewind(self._run_id, stage, series, step)

    def flush(self) -> None:
        """Waits for the disk."""
        self._store.sync()
