"""What becomes of a run."""

from enum import StrEnum


class RunState(StrEnum):
    """QUEUED -> RUNNING <-> PAUSED -> COMPLETE, STOPPED (asked for), FAILED (an error) or INTERRUPTED (its process died).

    A paused run that goes on is QUEUED again, and so is one that is resumed after it was stopped, failed or was interrupted.
    """

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETE = "complete"
    STOPPED = "stopped"
    FAILED = "failed"
    INTERRUPTED = "interrupted"

    def is_finished(self) -> bool:
        """Whether nothing more will happen to it by itself."""
        return self not in (RunState.QUEUED, RunState.RUNNING, RunState.PAUSED)

    def can_resume(self) -> bool:
        """Whether there is something left to be done, and nobody at it."""
        return self in (RunState.STOPPED, RunState.FAILED, RunState.INTERRUPTED)
