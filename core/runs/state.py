"""The states of a run."""

from enum import StrEnum


class RunState(StrEnum):
    """QUEUED -> RUNNING <-> PAUSED -> COMPLETE, STOPPED (on request), FAILED (an error) or INTERRUPTED (its process died).

    A paused run that continues is QUEUED first, and so is a stopped, failed or interrupted run that is resumed.
    """

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETE = "complete"
    STOPPED = "stopped"
    FAILED = "failed"
    INTERRUPTED = "interrupted"

    def is_finished(self) -> bool:
        """Whether the run does not continue by itself."""
        return self not in (RunState.QUEUED, RunState.RUNNING, RunState.PAUSED)

    def can_resume(self) -> bool:
        """Whether the run ended before it was complete."""
        return self in (RunState.STOPPED, RunState.FAILED, RunState.INTERRUPTED)
