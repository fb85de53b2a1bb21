"""Computes one run from its place in the queue to its end, in the calling thread: for executors and for the command line."""

import logging
import os
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from core import layout
from core.checkpoints import SECONDS_BETWEEN
from core.errors import ConfigError, CoreError, RunError, RunInterrupted, RunStopped, StoreError, first_line, quoted
from core.files import is_full
from core.reporting import Control, Reporter
from core.runs.control import LocalControl
from core.runs.output_folder import deliver
from core.runs.places import check_places
from core.runs.records import Records
from core.runs.state import RunState
from core.runs.store import RunStore
from core.runs.store_errors import store_error

AT_ONCE_VARIABLE = "RUNS_AT_ONCE"
SECONDS_BETWEEN_TRIES = 1.0
_SECONDS_BETWEEN_LOOKS = 0.25
_SECONDS_BETWEEN_CENSUSES = 3.0
_log = logging.getLogger(__name__)


def runs_at_once() -> int:
    """How many runs this machine computes at the same time: RUNS_AT_ONCE, or one, because one run uses all cores or the GPU.

    Raises ConfigError when the variable is not a whole number from 1 to 1024.
    """
    text = os.environ.get(AT_ONCE_VARIABLE) or "1"
    if not text.isdecimal() or len(text) > 4 or not 1 <= int(text) <= 1024:
        raise ConfigError(f"{AT_ONCE_VARIABLE} must be a whole number, 1 to 1024, got {quoted(text)}")
    return int(text)


def wait_for_turn(store: RunStore, run_id: str, stopping: Callable[[], bool], at_once: int, queued: bool = True) -> None:
    """Blocks until fewer than `at_once` runs are ahead of this one, or `stopping()`. queued: see RunStore.ahead.

    Meanwhile marks runs whose process has died, so that they do not block the queue.
    """
    looked = time.monotonic()
    pause = threading.Event()
    while not stopping() and len(store.ahead(run_id, queued)) >= at_once:
        if time.monotonic() - looked > _SECONDS_BETWEEN_CENSUSES:
            store.mark_interrupted()
            looked = time.monotonic()
        pause.wait(_SECONDS_BETWEEN_LOOKS)


class _InTurn:
    """A Control that also pauses its run while more runs than may run at once are ahead of it, which only branches get to be."""

    def __init__(
        self, control: Control, store: RunStore, run_id: str, reporter: Reporter, stopping: Callable[[], bool], at_once: int
    ) -> None:
        self._control, self._store, self._run_id, self._reporter = control, store, run_id, reporter
        self._stopping, self._at_once = stopping, at_once
        self._looked = time.monotonic()

    def pause_point(self) -> None:
        """Lets branches go first, then does what the control does."""
        if time.monotonic() - self._looked > _SECONDS_BETWEEN_LOOKS:
            # not those that are still loading the engine
            wait_for_turn(self._store, self._run_id, self._stopping, self._at_once, queued=False)
            self._looked = time.monotonic()
        if isinstance(self._control, LocalControl) and self._control.paused:
            self._reporter.pausing()
        self._control.pause_point()

    def values(self, method: str, step: int) -> Mapping[str, float]:
        """Those of the control."""
        return self._control.values(method, step)


def queued_control(store: RunStore, run_id: str, at_once: int) -> LocalControl:
    """The control of a run that this process computes: a run that pauses lets others go first, and queues again to continue."""

    def on_pause(paused: bool) -> None:
        if paused:
            store.set_state(run_id, RunState.PAUSED)
            return
        store.requeue(run_id)
        wait_for_turn(store, run_id, lambda: control.stopping, at_once)
        if not control.stopping:
            store.set_state(run_id, RunState.RUNNING)

    control = LocalControl(on_pause, past=Records(store.database).past(run_id))
    return control


def perform(
    store: RunStore,
    run_id: str,
    reporter: Reporter,
    control: Control,
    stopping: Callable[[], bool] = lambda: False,
    at_once: int = 1,
    prepared: Any = None,
    every: float = SECONDS_BETWEEN,
    batches: Any = None,
) -> dict[str, Any]:
    """Waits for the run's turn, computes it, writes what its command asked for, and stores how it ended.

    prepared, batches: see core.pipeline.execute. every: seconds between two resume states. Returns the result, with what `deliver` adds.
    Raises what ended the run, after storing it: RunStopped, CoreError (StoreError for a full disk), or any other exception.
    """

    def compute() -> tuple[dict[str, Any], Control]:
        wait_for_turn(store, run_id, stopping, at_once)
        if stopping():
            raise RunStopped("the run was stopped before it began")
        from core.pipeline import execute  # torch takes seconds to import, so not before the run's turn

        store.set_state(run_id, RunState.RUNNING)
        folder = store.run_folder(run_id)
        folder.mkdir(exist_ok=True)
        config = store.config(run_id)
        if store.run(run_id).attempt > 1 and not (folder / layout.RESULT).exists():
            check_places(run_id, config)
        in_turn = _InTurn(control, store, run_id, reporter, stopping, at_once)
        branch_at = store.run(run_id).branch_at
        keep_plan = partial(store.set_config, run_id)
        return execute(config, folder, reporter, in_turn, prepared, every, keep_plan, branch_at, batches), in_turn

    return to_its_end(store, run_id, reporter, compute)


def to_its_end(store: RunStore, run_id: str, reporter: Reporter, compute: Callable[[], tuple[dict[str, Any], Control]]) -> dict[str, Any]:
    """Calls `compute`, writes what the command of the run asked for, and stores how the run ended. Returns and raises as `perform` does.

    compute: computes the run, wherever, and returns its result and the control under which files are exported. It raises RunInterrupted
    when the place that computed the run is gone.
    """
    with store.database.patient():
        try:
            result, control = compute()
            delivered = deliver(store, store.run(run_id), reporter, control)
            store.set_state(run_id, RunState.COMPLETE)
        except RunStopped:
            store.set_state(run_id, RunState.STOPPED)
            raise
        except KeyboardInterrupt:
            store.set_state(run_id, RunState.INTERRUPTED, "it was interrupted from the keyboard")
            raise
        except RunInterrupted as error:
            store.set_state(run_id, RunState.INTERRUPTED, str(error))
            raise
        except BaseException as error:
            store.set_state(run_id, RunState.FAILED, describe_error(error, store), traceback.format_exc())
            of_store = _of_store(error, store)
            if of_store is not None:
                raise of_store from error
            raise
        # last, so that a run whose process is killed before it is complete has nothing to compute again
        store.remove_resume_state(run_id)
        return {**result, **delivered}


def attempt(store: RunStore, run_id: str, compute: Callable[[], object], closed: Callable[[], bool] = lambda: False) -> None:
    """Calls `compute`, logs the exception that ended the run, and makes sure that the run has a final state.

    If the state cannot be stored, for example because the disk is full, tries again until it can be, or until `closed()`.
    """
    number = 0
    with store.database.patient():
        try:
            number = store.run(run_id).attempt
            compute()
        except Exception as error:
            if isinstance(error, CoreError) and not isinstance(error, StoreError):
                _log.info("run %s ended early", run_id, exc_info=True)  # its state has the reason
                return
            _log.exception("run %s ended early", run_id)
            _store_failure(store, run_id, number, describe_error(error, store), traceback.format_exc(), closed)


def _store_failure(store: RunStore, run_id: str, attempt: int, error: str, where: str, closed: Callable[[], bool]) -> None:
    while not closed():
        try:
            run = store.run(run_id)
            # it may have been resumed since its end was stored
            if not run.state.is_finished() and attempt in (0, run.attempt):
                store.set_state(run_id, RunState.FAILED, error, where)
            return
        except RunError:
            return  # the run was deleted
        except Exception:
            _log.exception("could not store the final state of run %s yet", run_id)
            time.sleep(SECONDS_BETWEEN_TRIES)


def _of_store(error: BaseException, store: RunStore) -> StoreError | None:
    """The sentence for a run that ended because the runs folder could not be read or written; None for any other error."""
    if isinstance(error, CoreError) and not isinstance(error, StoreError):
        return None  # it names what was full, such as the disk of --out
    if is_full(error):
        return StoreError(
            f"the disk that holds {store.folder} is full: free some space and resume the run, which continues from its last resume state"
        )
    return StoreError(str(error)) if isinstance(error, StoreError) else store_error(error, store.folder)


def describe_error(error: BaseException, store: RunStore) -> str:
    """Why a run ended, in one human-readable line."""
    of_store = _of_store(error, store)
    if of_store is not None:
        return str(of_store)
    if isinstance(error, CoreError):
        return str(error)
    message = first_line(error)  # the traceback has the rest
    return message if message == type(error).__name__ else f"{type(error).__name__}: {message}"
