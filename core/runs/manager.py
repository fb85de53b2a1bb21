"""Runs in the background: starts them, hands out their controls, and waits for their end."""

import os
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from core.config import RunConfig
from core.errors import RunError
from core.files import remove_abandoned
from core.models.registry import own_name
from core.runs.branches import create_branch
from core.runs.cluster.connection import ADDRESS_VARIABLE
from core.runs.control import LocalControl
from core.runs.execution import attempt, describe_error
from core.runs.executors import CLUSTER_EXECUTOR, Executor, make_executor
from core.runs.run import CLUSTER
from core.runs.state import RunState
from core.runs.store import RunStore


class RunManager:
    """Starts runs and hands out their controls. Use one manager for each process and store.

    executor: a name in EXECUTORS, the place where runs are computed that name no other. What a person can do with a run is the same
    everywhere.

    Closing or reloading a page has no effect on runs. The constructor marks runs that a dead process left behind as INTERRUPTED,
    and removes temporary folders. It raises ConfigError for a bad RUNS_AT_ONCE, and UnknownNameError for an unknown executor.
    """

    def __init__(self, store: RunStore, executor: str = "threads") -> None:
        self.store = store
        self._controls: dict[str, LocalControl] = {}
        self._threads: dict[str, threading.Thread] = {}
        self._closed = False
        self._lock = threading.Lock()  # so that no run starts after `close`
        self.store.mark_interrupted()
        remove_abandoned()
        self._default = executor
        self._executors: dict[str, Executor] = {executor: make_executor(executor, store)}

    def start(
        self, config: RunConfig, name: str = "", user: str = "", changes: Sequence[Mapping[str, Any]] = (), executor: str = ""
    ) -> str:
        """Queues a run and returns its id. name: empty chooses one. changes: live changes that it is to make, as the store lists them.
        executor: a name in EXECUTORS; empty: the manager's.

        Raises RunError after `close`, and for an executor that cannot be used now.
        """
        name = name or default_name(config)
        return self._start(name, lambda: self.store.create(config, name, user, changes=changes), executor)

    def branch(self, run_id: str, at: int, values: Mapping[str, float], user: str = "") -> str:
        """Queues a branch of a run before all other runs and returns its id. Raises RunError after `close`, and as `create_branch` does."""
        return self._start(run_id, lambda: create_branch(self.store, run_id, at, values, user))

    def remove_branch(self, branch_id: str, timeout: float = 30.0) -> None:
        """Stops a branch and deletes it permanently. Raises RunError for a run that is no branch, and if it does not stop within
        `timeout` seconds.
        """
        if not self.store.run(branch_id).parent:
            raise RunError(f"run to remove must be a branch, got {branch_id!r}")
        if branch_id in self._controls:
            self._controls[branch_id].stop()
            self.wait(branch_id, timeout)
        self.store.delete(branch_id)

    def _start(self, name: str, create: Callable[[], str], executor: str = "") -> str:
        with self._lock:
            self._require_open(name)
            place = self._place(executor)  # first, so that a cluster that cannot be reached leaves no run behind
            run_id = create()
            self._begin(run_id, place, place.control(run_id))
        return run_id

    def _place(self, executor: str) -> Executor:
        """The executor of that name. Others than the manager's are made when they are first used."""
        name = executor or self._default
        if name not in self._executors:
            self._executors[name] = make_executor(name, self.store)
        return self._executors[name]

    def resume(self, run_id: str) -> None:
        """Queues a stopped, failed or interrupted run again; it continues from its last resume state, on the cluster if it was there.

        Earlier live changes are applied again at the same iterations, unless the knob is set again. Raises RunError for any other run.
        """
        with self._lock:
            self._require_open(run_id)
            place = self._place(self._executor_of(run_id))
            control = place.control(run_id)
            self.store.resume(run_id)
            self._begin(run_id, place, control)

    def _executor_of(self, run_id: str) -> str:
        """Where a run that is resumed belongs: to the cluster that computed it, as long as there is one, or to the manager's executor."""
        on_cluster = os.environ.get(ADDRESS_VARIABLE) and self.store.result(run_id, CLUSTER) is not None
        return CLUSTER_EXECUTOR if on_cluster else ""

    def _require_open(self, run: str) -> None:
        if self._closed:
            raise RunError(f"run {run!r} cannot start because the server is closing: start it again later")

    def _begin(self, run_id: str, place: Executor, control: LocalControl) -> None:
        self._controls[run_id] = control
        # a daemon, so that Ctrl-C ends the server; the next start marks its runs as interrupted
        thread = self._threads[run_id] = threading.Thread(target=self._work, args=(run_id, place, control), name=run_id, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            # a run that is never computed would block the queue forever
            del self._controls[run_id], self._threads[run_id]
            self.store.set_state(run_id, RunState.FAILED, describe_error(error, self.store), traceback.format_exc())
            raise RunError(f"run {run_id!r} cannot start without a thread ({error}): resume it when others have ended") from error

    def control(self, run_id: str) -> LocalControl:
        """The control of a run that this manager has queued or running. Raises RunError for any other run."""
        control = self._controls.get(run_id)
        if control is None:
            raise RunError(f"run {run_id!r} must be queued or running on this server, but is {self.store.run(run_id).state}")
        return control

    def controls(self, run_id: str) -> bool:
        """Whether this manager has the run queued or running."""
        return run_id in self._controls

    def pauses(self, run_id: str) -> bool:
        """Whether this manager has the run queued or running, and it rests or is to rest at its next step."""
        control = self._controls.get(run_id)
        return control is not None and control.paused

    def waiting(self, run_id: str) -> int:
        """How many runs, of all processes, are ahead of a queued one."""
        return len(self.store.ahead(run_id))

    def wait(self, run_id: str, timeout: float | None = None) -> None:
        """Blocks until this manager is done with the run, or `timeout` seconds have passed."""
        thread = self._threads.get(run_id)
        if thread is not None:
            thread.join(timeout)

    def close(self, timeout: float = 30.0) -> None:
        """Stops all runs, waits up to `timeout` seconds for each of them, and closes the executors."""
        with self._lock:
            self._closed = True
            threads = list(self._threads.values())
            for control in list(self._controls.values()):
                control.stop()
        for thread in threads:
            thread.join(timeout)
        for executor in self._executors.values():
            executor.close()

    def _work(self, run_id: str, place: Executor, control: LocalControl) -> None:
        try:
            attempt(self.store, run_id, lambda: place.compute(run_id, control), lambda: self._closed)
        finally:
            with self._lock:
                # if the run was resumed since its end was stored, these belong to its next attempt
                if self._controls.get(run_id) is control:
                    del self._controls[run_id], self._threads[run_id]


def default_name(config: RunConfig, images: str = "") -> str:
    """The name of a run that was started without one: network, methods or the name of given images, and bit widths."""
    widths = " ".join(f"W{bits}A{bits}" for bits in config.bits)
    source = images or ("given images" if config.images_from else " + ".join(config.methods))
    own = len(config.training.layer_bits)
    widths += f", {own} layer{'s' if own > 1 else ''} changed" if widths and own else ""
    widths += f", at most {config.training.size:g} kB" if widths and config.training.size else ""
    return f"{own_name(config.model)}, {source}" + (f", {widths}" if widths else "")
