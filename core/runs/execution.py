"""One run from its place in the line to its end, in the thread that calls: for the manager's threads and for the command line."""

import os
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

from core.checkpoints import SECONDS_BETWEEN
from core.errors import ConfigError, CoreError, RunStopped, first_line, shown
from core.files import is_full
from core.reporting import Control, Reporter
from core.runs.state import RunState
from core.runs.store import RunStore

AT_ONCE_VARIABLE = "RUNS_AT_ONCE"
_SECONDS_BETWEEN_LOOKS = 0.25
_SECONDS_BETWEEN_CENSUSES = 3.0


def runs_at_once() -> int:
    """How many runs compute at once on this machine: RUNS_AT_ONCE, or one, as one run uses every core or the GPU.

    Raises ConfigError when the variable is no whole number above 0.
    """
    text = os.environ.get(AT_ONCE_VARIABLE) or "1"
    if not text.isdecimal() or len(text) > 4 or not 1 <= int(text) <= 1024:
        raise ConfigError(f"{AT_ONCE_VARIABLE} is {shown(text)}: allowed is a whole number, 1 to 1024")
    return int(text)


def wait_for_turn(store: RunStore, run_id: str, stopping: Callable[[], bool], at_once: int) -> None:
    """Blocks until fewer than `at_once` runs are before this one, or it is stopped. Buries the dead among those before it."""
    looked = time.monotonic()
    pause = threading.Event()
    while not stopping() and len(store.ahead(run_id)) >= at_once:
        if time.monotonic() - looked > _SECONDS_BETWEEN_CENSUSES:
            store.mark_interrupted()
            looked = time.monotonic()
        pause.wait(_SECONDS_BETWEEN_LOOKS)


def perform(
    store: RunStore,
    run_id: str,
    reporter: Reporter,
    control: Control,
    stopping: Callable[[], bool] = lambda: False,
    at_once: int = 1,
    finish: Callable[[], None] = lambda: None,
    prepared: Any = None,
    every: float = SECONDS_BETWEEN,
) -> dict[str, Any]:
    """Waits for the run's turn, computes it, and writes down how it ended. Returns the result.

    finish: done before the run counts as complete, such as copying its files to where they were asked for. every: seconds between
    two checkpoints.
    Raises what ended the run, after it was written down: RunStopped, CoreError, or whatever it was.
    """
    try:
        wait_for_turn(store, run_id, stopping, at_once)
        if stopping():
            raise RunStopped("the run was stopped before it began")
        from core.pipeline import execute  # torch takes seconds to import: not before the run's turn

        store.set_state(run_id, RunState.RUNNING)
        store.run_folder(run_id).mkdir(exist_ok=True)
        result = execute(store.config(run_id), store.run_folder(run_id), reporter, control, prepared, every)
        finish()
        store.set_state(run_id, RunState.COMPLETE)
        return result
    except RunStopped:
        store.set_state(run_id, RunState.STOPPED)
        raise
    except KeyboardInterrupt:
        store.set_state(run_id, RunState.INTERRUPTED, "it was interrupted from the keyboard")
        raise
    except BaseException as error:
        store.set_state(run_id, RunState.FAILED, cause(error, store), traceback.format_exc())
        raise


def cause(error: BaseException, store: RunStore) -> str:
    """What ended a run, for a person."""
    if isinstance(error, CoreError):
        return str(error)
    if is_full(error):
        return f"the disk that holds {store.folder} is full: free some space and resume the run, which goes on from its last checkpoint"
    said = first_line(error)  # the traceback has the rest
    return said if said == type(error).__name__ else f"{type(error).__name__}: {said}"
