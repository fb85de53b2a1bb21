"""What becomes of a run."""

from enum import StrEnum


class RunState(StrEnum):
    """QUEUED -> RUNNING <-> PAUSED -> COMPLETE, STOPPED (asked for), FAILED (an error) or INTERRUPTED (its process died)."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETE = "complete"
    STOPPED = "stopped"
    FAILED = "failed"
    INTERRUPTED = "interrupted"

    def is_finished(self) -> bool:
        """Whether nothing more will happen to it."""
        return self not in (RunState.QUEUED, RunState.RUNNING, RunState.PAUSED)
