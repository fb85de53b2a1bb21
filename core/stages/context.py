"""What every stage of a run needs in addition to its input."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from core.checkpoints import Checkpoints
from core.errors import RunStopped
from core.generation.batches import Batches
from core.reporting import Control, Reporter


@dataclass(frozen=True)
class Context:
    """reporter receives progress; control supplies pause, stop and parameter changes; checkpoints: resume states; None keeps none.

    batches: computes the batches of a generation elsewhere; None: they are computed here.
    """

    reporter: Reporter
    control: Control
    checkpoints: Checkpoints | None = None
    batches: Batches | None = None

    def saved_state(self, stage: str) -> dict[str, Any] | None:
        """The resume state of a stage that was interrupted; None to begin at its start."""
        return self.checkpoints.state(stage) if self.checkpoints else None

    def save(self, stage: str, state: Callable[[], Mapping[str, Any]]) -> None:
        """Saves the state of a stage now."""
        if self.checkpoints is not None:
            self.checkpoints.save(stage, state())

    def between_steps(self, stage: str, state: Callable[[], Mapping[str, Any]]) -> None:
        """Saves the state when it is time to. When the run is stopped here, it can be resumed from here. Raises RunStopped."""
        if self.checkpoints is not None and self.checkpoints.due():
            self.save(stage, state)
        try:
            self.control.pause_point()
        except RunStopped:
            self.save(stage, state)
            raise
