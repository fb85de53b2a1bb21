"""Writes what the engine announces into the store."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from core.reporting import TEST, Frame, NullReporter, RunningStatistics
from core.runs.store import RunStore

SECONDS_BETWEEN_FRAMES = 0.5
SECONDS = "seconds"  # the result that says how long a run has been computed, in all its attempts, by a clock that nobody sets


class FramePace(NullReporter):
    """Base class of reporters that send frames on: at most two per second and method of those that need not be kept."""

    def __init__(self) -> None:
        self._last_frame: dict[str, float] = {}
        self._unwanted: dict[str, Callable[[], Frame]] = {}  # newer than the last frame
        self._steps: dict[str, int] = {}  # last step of each series
        self._frame_step = 0  # step of the last frame of any method

    def stage(self, name: str, total: int, done: int = 0) -> None:
        """Frames that were not wanted hold what an earlier stage computed with."""
        self._unwanted.clear()

    def record(self, stage: str, series: str, step: int, values: Mapping[str, Any]) -> None:
        """Notes the step."""
        self._steps[series] = step

    def images(self, method: str, frame: Frame, keep: bool) -> None:
        """Notes the time."""
        self._unwanted.pop(method, None)
        self._last_frame[method], self._frame_step = time.monotonic(), frame.step

    def wants_images(self, method: str) -> bool:
        """Whether the last frame is old enough, or another method has a frame of the same step: pages show methods side by side."""
        return (
            self._steps.get(method) == self._frame_step
            or time.monotonic() - self._last_frame.get(method, float("-inf")) >= SECONDS_BETWEEN_FRAMES
        )

    def unwanted_images(self, method: str, make: Callable[[], Frame]) -> None:
        """Keeps them for a pause."""
        self._unwanted[method] = make

    def pausing(self) -> None:
        """Sends the newest frames, which a viewer looks at while the run rests."""
        for method, make in list(self._unwanted.items()):
            self.images(method, make(), False)

    def change(self, method: str, step: int, name: str, value: float) -> None:
        """The images of the next iteration, which show the effect of a change, are wanted however recent the last ones are."""
        self._last_frame.clear()

    def rewind(self, stage: str, series: str, step: int) -> None:
        """Frames that were not wanted are of later steps."""
        self._unwanted.clear()


class StoreReporter(FramePace):
    """A Reporter that writes everything into the store."""

    def __init__(self, store: RunStore, run_id: str) -> None:
        super().__init__()
        self._store, self._run_id = store, run_id
        self._earlier = 0.0  # seconds of earlier attempts
        self._began: float | None = None

    def stage(self, name: str, total: int, done: int = 0) -> None:
        """Becomes the stage and progress of the run."""
        super().stage(name, total, done)
        if self._began is None:
            self._began, self._earlier = time.monotonic(), self._store.result(self._run_id, SECONDS) or 0.0
        self._store.set_stage(self._run_id, name, total, done)

    def record(self, stage: str, series: str, step: int, values: Mapping[str, Any]) -> None:
        """Appends a record."""
        super().record(stage, series, step, values)
        self._store.append(self._run_id, stage, series, step, values, counted=stage != TEST)

    def images(self, method: str, frame: Frame, keep: bool) -> None:
        """Stores a frame."""
        super().images(method, frame, keep)
        self._store.frames.save(self._run_id, method, frame, keep)

    def running_statistics(self, statistics: RunningStatistics) -> None:
        """Stores them in a file."""
        self._store.frames.save_running_statistics(self._run_id, statistics)

    def change(self, method: str, step: int, name: str, value: float) -> None:
        """Stores a live change."""
        super().change(method, step, name, value)
        self._store.add_change(self._run_id, method, step, name, value)

    def result(self, name: str, value: Any) -> None:
        """Stores a result."""
        self._store.set_result(self._run_id, name, value)

    def rewind(self, stage: str, series: str, step: int) -> None:
        """Deletes records and kept frames after `step`."""
        super().rewind(stage, series, step)
        self._store.rewind(self._run_id, stage, series, step)

    def flush(self) -> None:
        """Stores the seconds so far, and waits until the database is on the disk."""
        if self._began is not None:
            self._store.set_result(self._run_id, SECONDS, round(self._earlier + time.monotonic() - self._began, 3))
        self._store.sync()
