"""What the engine says while it works, and what it asks: two small protocols at the bottom of the import order.

The engine announces records and pictures to a Reporter and asks a Live for new values between two iterations; it knows neither
the store nor the page. Both are passed in. The classes here are the ones for nobody listening.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, eq=False)
class Frame:
    """One moment of a method, as a watcher sees it: the first N images of the current batch after `step`, and what that step knew.

    Everything but `images` is of the forward pass that the step computed anyway, so it belongs to the images as they entered the step:
    shifted and mirrored at random, and not yet moved. Fields that are None were not written down, as in runs of earlier versions.
    """

    step: int  # counted from 1 over all batches
    images: np.ndarray  # uint8 (N, 3, H, W)
    labels: np.ndarray  # int64 (N,), the assigned classes
    predicted: np.ndarray | None = None  # int64 (N,), the class that the teacher sees
    confidence: np.ndarray | None = None  # float32 (N,), its softmax probability of that class, 0 to 1
    # float32 (C,), of the whole batch: what enters the BatchNorm layers, end to end as in RunningStatistics, the variance unbiased;
    # NaN for a layer that did not run, the mean over its passes for one that ran several times
    means: np.ndarray | None = None
    variances: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class RunningStatistics:
    """What the BatchNorm layers of the network remember of its training: all of them end to end, in the order of their names."""

    channels: list[int]  # of each layer; they add up to C
    means: np.ndarray  # float32 (C,)
    variances: np.ndarray  # float32 (C,), unbiased


TEST = "test"  # stage of the records of accuracy during a training, which are none of its steps


class Reporter(Protocol):
    """Takes what the engine announces. Methods must return quickly and never raise because of who listens."""

    def stage(self, name: str, total: int, done: int = 0) -> None:
        """A stage begins; it will have `total` steps, of which `done` were taken before the run was interrupted."""

    def record(self, stage: str, series: str, step: int, values: Mapping[str, Any]) -> None:
        """Figures of one step. series: which curve of the stage, such as the method; values: numbers or lists of numbers.

        Each counts as a step of the stage that was announced last, but for those of TEST.
        """

    def images(self, method: str, frame: Frame, keep: bool) -> None:
        """Current synthetic images; keep: a moment worth keeping, otherwise only the latest counts."""

    def wants_images(self, method: str) -> bool:
        """Whether `images` would be looked at now; saves the engine the conversion."""

    def running_statistics(self, statistics: RunningStatistics) -> None:
        """What the batch statistics of the frames are to come to; once a run."""

    def change(self, method: str, step: int, name: str, value: float) -> None:
        """A live value took effect at this step."""

    def result(self, name: str, value: Any) -> None:
        """A final figure, or a dictionary of them, fit for JSON."""

    def rewind(self, stage: str, series: str, step: int) -> None:
        """The series goes on after `step`: what was announced of it later is forgotten, as it comes again."""

    def flush(self) -> None:
        """Everything announced so far must outlive a power cut when this returns."""


class Live(Protocol):
    """What a person turns while the engine works."""

    def checkpoint(self) -> None:
        """Called between two steps: blocks while paused, raises RunStopped when stopped."""

    def values(self, method: str, step: int) -> Mapping[str, float]:
        """The live values that hold from this step on; a knob that nobody touched is absent."""


class Silent:
    """A Reporter for nobody."""

    def stage(self, name: str, total: int, done: int = 0) -> None:
        """Nobody listens."""

    def record(self, stage: str, series: str, step: int, values: Mapping[str, Any]) -> None:
        """Nobody listens."""

    def images(self, method: str, frame: Frame, keep: bool) -> None:
        """Nobody looks."""

    def wants_images(self, method: str) -> bool:
        return False

    def running_statistics(self, statistics: RunningStatistics) -> None:
        """Nobody looks."""

    def change(self, method: str, step: int, name: str, value: float) -> None:
        """Nobody listens."""

    def result(self, name: str, value: Any) -> None:
        """Nobody listens."""

    def rewind(self, stage: str, series: str, step: int) -> None:
        """Nothing to forget."""

    def flush(self) -> None:
        """Nothing is kept."""


class Untouched:
    """A Live that nobody turns."""

    def checkpoint(self) -> None:
        """Never paused, never stopped."""

    def values(self, method: str, step: int) -> Mapping[str, float]:
        return {}


class Both:
    """A Reporter that tells two others."""

    def __init__(self, first: Reporter, second: Reporter) -> None:
        self._both = (first, second)

    def stage(self, name: str, total: int, done: int = 0) -> None:
        """To both."""
        for one in self._both:
            one.stage(name, total, done)

    def record(self, stage: str, series: str, step: int, values: Mapping[str, Any]) -> None:
        """To both."""
        for one in self._both:
            one.record(stage, series, step, values)

    def images(self, method: str, frame: Frame, keep: bool) -> None:
        """To both."""
        for one in self._both:
            one.images(method, frame, keep)

    def wants_images(self, method: str) -> bool:
        return any(one.wants_images(method) for one in self._both)

    def running_statistics(self, statistics: RunningStatistics) -> None:
        """To both."""
        for one in self._both:
            one.running_statistics(statistics)

    def change(self, method: str, step: int, name: str, value: float) -> None:
        """To both."""
        for one in self._both:
            one.change(method, step, name, value)

    def result(self, name: str, value: Any) -> None:
        """To both."""
        for one in self._both:
            one.result(name, value)

    def rewind(self, stage: str, series: str, step: int) -> None:
        """To both."""
        for one in self._both:
            one.rewind(stage, series, step)

    def flush(self) -> None:
        """Both."""
        for one in self._both:
            one.flush()
