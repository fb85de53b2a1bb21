"""Reporter receives progress from the engine; Control supplies pause, stop and parameter changes.

The engine is passed one of each and knows neither the store nor the dashboard. This module has the two protocols and their
implementations that do nothing or only forward; core.runs has those for stored runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, eq=False)
class Frame:
    """A snapshot of a method for viewers: the first N images of the current batch after `step`, with the measurements of that step.

    All fields except `images` come from the forward pass of the step itself, so they describe the images as they entered the step:
    randomly shifted and flipped, before the update. Fields that are None were not recorded, as in runs of earlier versions.
    """

    step: int  # counted from 1 over all batches
    images: np.ndarray  # uint8 (N, C, H, W)
    labels: np.ndarray  # int64 (N,), the assigned classes
    predicted: np.ndarray | None = None  # int64 (N,), the class that the teacher predicts
    confidence: np.ndarray | None = None  # float32 (N,), its softmax probability of that class, 0 to 1
    # float32 (C,), of the inputs of the BatchNorm layers over the whole batch, concatenated as in RunningStatistics; variances unbiased.
    # NaN for a layer that did not run; the mean over the passes for a layer that ran several times
    means: np.ndarray | None = None
    variances: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class RunningStatistics:
    """The running statistics of all BatchNorm layers of the network, concatenated in the order of the layers' names."""

    channels: list[int]  # of each layer; their sum is C
    means: np.ndarray  # float32 (C,)
    variances: np.ndarray  # float32 (C,), unbiased


WARNING = "warning"  # results named WARNING/... are sentences for people, about what may be unexpected in the other results
TEST = "test"  # stage of the accuracy records during training, which are not training steps


class Reporter(Protocol):
    """Receives what the engine announces.

    **Speed.** The engine calls these methods between two steps and waits for them, so they must return quickly.

    **Errors.** A method that raises ends the run. A reporter must not raise because a viewer is gone or slow.

    **Threads.** One run calls its reporter from one thread at a time.
    """

    def stage(self, name: str, total: int, done: int = 0) -> None:
        """A stage begins. It has `total` steps, of which `done` were taken before the run was interrupted."""

    def record(self, stage: str, series: str, step: int, values: Mapping[str, Any]) -> None:
        """The numbers of one step.

        series: which curve of the stage, such as the method. values: numbers or lists of numbers. Each record counts as one step of
        the stage announced last, except records of TEST.
        """

    def images(self, method: str, frame: Frame, keep: bool) -> None:
        """The current synthetic images. keep: store them permanently; otherwise only the latest frame is needed."""

    def wants_images(self, method: str) -> bool:
        """Whether a call of `images` would be used now. Saves the engine the conversion when it would not."""

    def unwanted_images(self, method: str, make: Callable[[], Frame]) -> None:
        """The current images were not wanted. make: returns them until the next iteration, for a run that pauses before it."""

    def pausing(self) -> None:
        """The run is about to pause."""

    def running_statistics(self, statistics: RunningStatistics) -> None:
        """The running statistics, which the batch statistics of the frames should match. Called once in a run."""

    def change(self, method: str, step: int, name: str, value: float) -> None:
        """A live value took effect at this step."""

    def result(self, name: str, value: Any) -> None:
        """A final value, or a dictionary of them, that JSON can represent."""

    def rewind(self, stage: str, series: str, step: int) -> None:
        """The series resumes after `step`. Discard what was announced of it for later steps: it will be announced again."""

    def flush(self) -> None:
        """Everything announced so far must survive a power failure once this returns."""


class Control(Protocol):
    """Pauses, stops and changes a run while the engine works. The engine asks between two steps, from the run's thread."""

    def pause_point(self) -> None:
        """Blocks while the run is paused. Raises RunStopped when it was stopped."""

    def values(self, method: str, step: int) -> Mapping[str, float]:
        """The live values that apply from this step on, by knob; knobs that were not changed are absent."""


class NullReporter:
    """A Reporter that discards everything. Base class for reporters that need only some of the methods."""

    def stage(self, name: str, total: int, done: int = 0) -> None:
        """Ignored."""

    def record(self, stage: str, series: str, step: int, values: Mapping[str, Any]) -> None:
        """Ignored."""

    def images(self, method: str, frame: Frame, keep: bool) -> None:
        """Ignored."""

    def wants_images(self, method: str) -> bool:
        """Never."""
        return False

    def unwanted_images(self, method: str, make: Callable[[], Frame]) -> None:
        """Ignored."""

    def pausing(self) -> None:
        """Ignored."""

    def running_statistics(self, statistics: RunningStatistics) -> None:
        """Ignored."""

    def change(self, method: str, step: int, name: str, value: float) -> None:
        """Ignored."""

    def result(self, name: str, value: Any) -> None:
        """Ignored."""

    def rewind(self, stage: str, series: str, step: int) -> None:
        """Ignored."""

    def flush(self) -> None:
        """Ignored."""


class NoControl:
    """A Control that never pauses, stops or changes anything."""

    def pause_point(self) -> None:
        """Returns at once."""

    def values(self, method: str, step: int) -> Mapping[str, float]:
        """No values."""
        return {}


def _forwarded(name: str) -> Callable[..., None]:
    """The method `name` of TeeReporter: calls that method of each reporter."""

    def forward(self: TeeReporter, *arguments: Any, **keywords: Any) -> None:
        for reporter in self.reporters:
            getattr(reporter, name)(*arguments, **keywords)

    forward.__name__ = name
    return forward


class TeeReporter:
    """A Reporter that passes every call on to several reporters, in the order given."""

    def __init__(self, *reporters: Reporter) -> None:
        self.reporters = reporters

    stage = _forwarded("stage")
    record = _forwarded("record")
    images = _forwarded("images")
    unwanted_images = _forwarded("unwanted_images")
    pausing = _forwarded("pausing")
    running_statistics = _forwarded("running_statistics")
    change = _forwarded("change")
    result = _forwarded("result")
    rewind = _forwarded("rewind")
    flush = _forwarded("flush")

    def wants_images(self, method: str) -> bool:
        """Whether any of the reporters wants images."""
        return any(reporter.wants_images(method) for reporter in self.reporters)
