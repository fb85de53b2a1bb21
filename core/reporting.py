"""What the engine says while it works, and what it asks: two small protocols at the bottom of the import order.

The engine announces records and pictures to a Reporter and asks a Live for new values between two iterations; it knows neither
the store nor the page. Both are passed in. The classes here are the ones for nobody listening.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Reporter(Protocol):
    """Takes what the engine announces. Methods must return quickly and never raise because of who listens."""

    def stage(self, name: str, total: int) -> None:
        """A stage begins; it will have `total` steps."""

    def record(self, stage: str, lane: str, step: int, values: Mapping[str, Any]) -> None:
        """Figures of one step. lane: which curve of the stage, such as the optimizer; values: numbers or lists of numbers."""

    def images(self, lane: str, step: int, images: Tensor, labels: Tensor, keep: bool) -> None:
        """Current synthetic images, uint8 `(N, 3, H, W)`; keep: a snapshot worth keeping, otherwise only the latest counts."""

    def wants_images(self, lane: str) -> bool:
        """Whether `images` would be looked at now; saves the engine the conversion."""

    def change(self, lane: str, step: int, name: str, value: float) -> None:
        """A live value took effect at this step."""

    def result(self, name: str, value: Any) -> None:
        """A final figure, or a dictionary of them, fit for JSON."""


class Live(Protocol):
    """What a person turns while the engine works."""

    def checkpoint(self) -> None:
        """Called between two steps: blocks while paused, raises RunStopped when stopped."""

    def values(self, lane: str, step: int) -> Mapping[str, float]:
        """The live values that hold from this step on; a knob that nobody touched is absent."""


class Silent:
    """A Reporter for nobody."""

    def stage(self, name: str, total: int) -> None:
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


class Untouched:
    """A Live that nobody turns."""

    def checkpoint(self) -> None:
        """Never paused, never stopped."""

    def values(self, lane: str, step: int) -> Mapping[str, float]:
        return {}
