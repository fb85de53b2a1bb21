"""What the engine says while it works, and what it asks: two small protocols at the bottom of the import order.

The engine announces records and pictures to a Reporter and asks a Live for new values between two iterations; it knows neither
the store nor the page. Both are passed in. The classes here are the ones for nobody listening.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

TEST = "test"  # stage of the records of accuracy during a training, which are none of its steps


class Reporter(Protocol):
    """Takes what the engine announces. Methods must return quickly and never raise because of who listens."""

    def stage(self, name: str, total: int, done: int = 0) -> None:
        """A stage begins; it will have `total` steps, of which `done` were taken before the run was interrupted."""

    def record(self, stage: str, lane: str, step: int, values: Mapping[str, Any]) -> None:
        """Figures of one step. lane: which curve of the stage, such as the optimizer; values: numbers or lists of numbers.

        Each counts as a step of the stage that was announced last, but for those of TEST.
        """

    def images(self, lane: str, step: int, images: Tensor, labels: Tensor, keep: bool) -> None:
        """Current synthetic images, uint8 `(N, 3, H, W)`; keep: a snapshot worth keeping, otherwise only the latest counts."""

    def wants_images(self, lane: str) -> bool:
        """Whether `images` would be looked at now; saves the engine the conversion."""

    def change(self, lane: str, step: int, name: str, value: float) -> None:
        """A live value took effect at this step."""

    def result(self, name: str, value: Any) -> None:
        """A final figure, or a dictionary of them, fit for JSON."""

    def rewind(self, stage: str, lane: str, step: int) -> None:
        """The lane goes on after `step`: what was announced of it later is forgotten, as it comes again."""

    def flush(self) -> None:
        """Everything announced so far must outlive a power cut when this returns."""


class Live(Protocol):
    """What a person turns while the engine works."""

    def checkpoint(self) -> None:
        """Called between two steps: blocks while paused, raises RunStopped when stopped."""

    def values(self, lane: str, step: int) -> Mapping[str, float]:
        """The live values that hold from this step on; a knob that nobody touched is absent."""


class Silent:
    """A Reporter for nobody."""

    def stage(self, name: str, total: int, done: int = 0) -> None:
        """Nobody listens."""

    def record(self, stage: str, lane: str, step: int, values: Mapping[str, Any]) -> None:
        """Nobody listens."""

    def images(self, lane: str, step: int, images: Tensor, labels: Tensor, keep: bool) -> None:
        """Nobody looks."""

    def wants_images(self, lane: str) -> bool:
        return False

    def change(self, lane: str, step: int, name: str, value: float) -> None:
        """Nobody listens."""

    def result(self, name: str, value: Any) -> None:
        """Nobody listens."""

    def rewind(self, stage: str, lane: str, step: int) -> None:
        """Nothing to forget."""

    def flush(self) -> None:
        """Nothing is kept."""


class Untouched:
    """A Live that nobody turns."""

    def checkpoint(self) -> None:
        """Never paused, never stopped."""

    def values(self, lane: str, step: int) -> Mapping[str, float]:
        return {}


class Both:
    """A Reporter that tells two others."""

    def __init__(self, first: Reporter, second: Reporter) -> None:
        self._both = (first, second)

    def stage(self, name: str, total: int, done: int = 0) -> None:
        """To both."""
        for one in self._both:
            one.stage(name, total, done)

    def record(self, stage: str, lane: str, step: int, values: Mapping[str, Any]) -> None:
        """To both."""
        for one in self._both:
            one.record(stage, lane, step, values)

    def images(self, lane: str, step: int, images: Tensor, labels: Tensor, keep: bool) -> None:
        """To both."""
        for one in self._both:
            one.images(lane, step, images, labels, keep)

    def wants_images(self, lane: str) -> bool:
        return any(one.wants_images(lane) for one in self._both)

    def change(self, lane: str, step: int, name: str, value: float) -> None:
        """To both."""
        for one in self._both:
            one.change(lane, step, name, value)

    def result(self, name: str, value: Any) -> None:
        """To both."""
        for one in self._both:
            one.result(name, value)

    def rewind(self, stage: str, lane: str, step: int) -> None:
        """To both."""
        for one in self._both:
            one.rewind(stage, lane, step)

    def flush(self) -> None:
        """Both."""
        for one in self._both:
            one.flush()
