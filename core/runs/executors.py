"""Places where runs are computed.

To add one: a class with the methods of `Executor`, and a row in EXECUTORS. `RunManager(store, executor=NAME)` then uses it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from core.errors import UnknownNameError
from core.runs.control import LocalControl
from core.runs.events import StoreReporter
from core.runs.execution import perform, queued_control, runs_at_once, wait_for_turn
from core.runs.state import RunState
from core.runs.store import RunStore
from core.runs.worker_process import ProcessControl, Worker, describe_exit, import_engine


class Executor(Protocol):
    """A place where runs are computed, for example the processes of this machine. Built by a factory from the store of the runs.

    **Threads.** `RunManager` calls `compute` from a thread of its own for each run, possibly several at the same time, and the other
    methods from any thread.

    **Queue.** `RunManager` calls `compute` as soon as a run is queued. The executor decides when it starts, normally with
    `execution.wait_for_turn`, and sets the state: RUNNING when it starts, PAUSED and QUEUED again around a pause.

    **Owner.** A run belongs to the process that queued it, in the sense of owner.py. A place in another process takes it over with
    `RunStore.adopt`, or leaves it to that process; other processes mark it INTERRUPTED when its owner dies.

    **Progress.** Records, images and results go to the store (`events.StoreReporter`). The place therefore needs access to the store's
    folder.

    **Pause, step, stop and live values.** `control` returns the object through which people request them, from any thread, also before
    the run has started. The engine must see a request at its next pause point. A stop ends the run as STOPPED. The changes that
    the store lists for a resumed run must be applied again at their iterations (`LocalControl(past=...)`), or its results differ.

    **The end of a run.** `compute` returns, or raises, only when nothing computes the run any more. By then the store has its final
    state; an exception that is not a CoreError makes `RunManager` store FAILED, if the run has no final state.

    **The end of the place.** If the place dies, `compute` must notice, store INTERRUPTED with a human-readable reason, and return; the run
    can then be resumed and continues from its last resume state. If this process dies, the place must stop computing its runs.
    `close` is called when all runs have been stopped; it must not leave processes behind.
    """

    def control(self, run_id: str) -> LocalControl:
        """The control of a run that is queued or about to be. Must not raise, because the run would never be computed."""

    def compute(self, run_id: str, control: LocalControl) -> None:
        """Waits for the run's turn and computes it; blocks until it has ended. control: what `control` returned for it."""

    def close(self) -> None:
        """Releases what the executor holds."""


class ThreadExecutor:
    """Computes runs in threads of this process. Raises ConfigError for a bad RUNS_AT_ONCE."""

    def __init__(self, store: RunStore) -> None:
        self._store, self._at_once = store, runs_at_once()
        threading.Thread(target=import_engine, name="import", daemon=True).start()

    def control(self, run_id: str) -> LocalControl:
        """A control in this process."""
        return queued_control(self._store, run_id, self._at_once)

    def compute(self, run_id: str, control: LocalControl) -> None:
        """Computes the run in the calling thread. Raises what ended it early, after storing that."""
        perform(self._store, run_id, StoreReporter(self._store, run_id), control, lambda: control.stopping, self._at_once)

    def close(self) -> None:
        """Nothing to release: the threads belong to the manager."""


class ProcessExecutor:
    """Computes each run in a worker process of this machine, see worker_process.py. Raises ConfigError for a bad RUNS_AT_ONCE.

    One idle worker is kept, so that the next run starts at once.
    """

    def __init__(self, store: RunStore) -> None:
        self._store, self._at_once = store, runs_at_once()
        self._lock = threading.Lock()
        self._closed = False
        # a process inherits the priority of the thread that starts it, and whoever starts a run may have lowered its own
        self._starter = ThreadPoolExecutor(1, "starter")
        self._idle = [self._new_worker()]

    def control(self, run_id: str) -> LocalControl:
        """A control that sends requests to the worker."""
        return ProcessControl()

    def compute(self, run_id: str, control: LocalControl) -> None:
        """Hands the run to a worker when it is its turn, and waits for the end."""
        assert isinstance(control, ProcessControl)
        wait_for_turn(self._store, run_id, lambda: control.stopping, self._at_once)
        if control.stopping:
            self._store.set_state(run_id, RunState.STOPPED)
            return
        with self._lock:
            worker = self._idle.pop() if self._idle else None
        if worker is None or not worker.is_alive():
            worker = self._new_worker()
        code = worker.compute(run_id, self._store.owner, control)
        if code is not None:
            worker.close()
            self._store.set_state(run_id, RunState.INTERRUPTED, describe_exit(code))
            return
        with self._lock:
            keep = not self._closed and not self._idle
            if keep:
                self._idle.append(worker)
        if not keep:
            worker.close()

    def _new_worker(self) -> Worker:
        return self._starter.submit(Worker, self._store.folder).result()

    def close(self) -> None:
        """Ends the idle worker; one that still computes ends after its run."""
        with self._lock:
            self._closed = True
        for worker in self._idle:
            worker.close()
        self._starter.shutdown()


def _ray(store: RunStore, address: str = "") -> Executor:
    from core.runs.cluster.connection import connect

    connect(address)  # first, because it says how to install Ray
    from core.runs.cluster.executor import RayExecutor

    return RayExecutor(store)


# name -> how to make one
CLUSTER_EXECUTOR = "ray"
EXECUTORS: dict[str, Callable[[RunStore], Executor]] = {
    "processes": ProcessExecutor,
    "threads": ThreadExecutor,
    CLUSTER_EXECUTOR: _ray,
}
_RAY_ADDRESS = "ray://"


def make_executor(name: str, store: RunStore) -> Executor:
    """The executor of that name, or the cluster at ray://HOST:PORT.

    Raises UnknownNameError for a name that EXECUTORS does not have, RunError for a cluster that cannot be used.
    """
    if name.startswith(_RAY_ADDRESS):
        return _ray(store, name)
    if name not in EXECUTORS:
        raise UnknownNameError("executor", name, [*EXECUTORS, f"{_RAY_ADDRESS}HOST:PORT"])
    return EXECUTORS[name](store)
