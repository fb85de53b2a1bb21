"""Runs in background threads, one each; they wait their turn in the store's line; a page that is closed or reloaded changes nothing."""

import logging
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor

from core.config import RunConfig
from core.errors import CoreError, RunError
from core.runs.control import LocalControl
from core.runs.events import StoreReporter
from core.runs.execution import cause, perform, runs_at_once, wait_for_turn
from core.runs.state import RunState
from core.runs.store import RunStore
from core.runs.worker_process import ProcessControl, Worker, end

SECONDS_BETWEEN_TRIES = 1.0
_log = logging.getLogger(__name__)


class RunManager:
    """Starts runs and hands out their controls. One object for each process and store.

    isolated: each run is computed in a process of its own (see process.py); otherwise in a thread of this one. What a person can do is
    the same.

    At its start, runs that a dead process left behind are marked INTERRUPTED. Raises ConfigError for a bad RUNS_AT_ONCE.
    """

    def __init__(self, store: RunStore, isolated: bool = False) -> None:
        self.store = store
        self._isolated = isolated
        self._idle: list[Worker] = []
        self.at_once = runs_at_once()
        self._controls: dict[str, LocalControl] = {}
        self._threads: dict[str, threading.Thread] = {}
        self._closed = False
        self._lock = threading.Lock()  # so that no run is started behind the end
        self.store.mark_interrupted()
        # torch takes seconds to import: here, while a person still looks at the first page, which must not wait for it
        # processes inherit the priority of the thread that starts them, and whoever starts a run may have lowered its own
        self._starter = ThreadPoolExecutor(1, "starter")
        if isolated:
            self._idle.append(self._new_worker())
        else:
            threading.Thread(target=_import_engine, name="import", daemon=True).start()

    def start(self, config: RunConfig, name: str = "", user: str = "") -> str:
        """Queues a run and returns its id. Raises RunError after `close`."""
        name = name or default_name(config)
        with self._lock:
            if self._closed:
                raise RunError(f"run {name!r} comes too late, as the server is closing: allowed are runs before that")
            run_id = self.store.create(config, name, user)
            self._begin(run_id, self._control(run_id))
        return run_id

    def take_over(self, run_id: str, owner: str) -> None:
        """Computes an unfinished run that another process hands over. Raises RunError when it is not that one's."""
        with self._lock:
            self.store.take_over(run_id, owner)
            self._begin(run_id, self._control(run_id))

    def _control(self, run_id: str) -> LocalControl:
        if self._isolated:
            return ProcessControl()
        return LocalControl(on_pause=lambda paused: self._paused(run_id, paused), past=self.store.changes(run_id))

    def resume(self, run_id: str) -> None:
        """Queues a run again that was stopped, interrupted or has failed; it goes on from its last checkpoint.

        What was turned before is turned again at the same iterations, unless it is turned anew. Raises RunError for any other run.
        """
        with self._lock:
            if self._closed:
                raise RunError(f"run {run_id!r} comes too late, as the server is closing: allowed are runs before that")
            control = self._control(run_id)
            self.store.resume(run_id)
            self._begin(run_id, control)

    def _begin(self, run_id: str, control: LocalControl) -> None:
        self._controls[run_id] = control
        # a daemon, so that Ctrl-C ends the server; what it leaves behind is found at the next start
        thread = self._threads[run_id] = threading.Thread(target=self._work, args=(run_id, control), name=run_id, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            # a run that nobody works on would hold up the line for ever
            del self._controls[run_id], self._threads[run_id]
            self.store.set_state(run_id, RunState.FAILED, cause(error, self.store), traceback.format_exc())
            raise RunError(f"run {run_id!r} found no thread ({error}): allowed is to resume it when others have ended") from error

    def control(self, run_id: str) -> LocalControl:
        """The control of a run that this process has queued or running. Raises RunError when there is none."""
        control = self._controls.get(run_id)
        if control is None:
            raise RunError(f"run {run_id!r} is {self.store.run(run_id).state}: allowed is a run that this server is working on")
        return control

    def controls(self, run_id: str) -> bool:
        """Whether this process has the run queued or running."""
        return run_id in self._controls

    def waiting(self, run_id: str) -> int:
        """How many runs come before a queued one, those of other processes included."""
        return len(self.store.ahead(run_id))

    def wait(self, run_id: str, timeout: float | None = None) -> None:
        """Blocks until this process is done with the run."""
        thread = self._threads.get(run_id)
        if thread is not None:
            thread.join(timeout)

    def close(self, timeout: float = 30.0) -> None:
        """Stops what runs and what waits, and ends the threads."""
        with self._lock:
            self._closed = True
            threads = list(self._threads.values())
            for control in list(self._controls.values()):
                control.stop()
        for thread in threads:
            thread.join(timeout)
        for worker in self._idle:
            worker.close()
        self._starter.shutdown()

    def _paused(self, run_id: str, paused: bool) -> None:
        if paused:
            self.store.set_state(run_id, RunState.PAUSED)
        else:
            # others went first meanwhile
            control = self._controls[run_id]
            self.store.requeue(run_id)
            wait_for_turn(self.store, run_id, lambda: control.stopping, self.at_once)
            if not control.stopping:
                self.store.set_state(run_id, RunState.RUNNING)

    def _work(self, run_id: str, control: LocalControl) -> None:
        try:
            if isinstance(control, ProcessControl):
                self._relay(run_id, control)
            else:
                perform(self.store, run_id, StoreReporter(self.store, run_id), control, lambda: control.stopping, self.at_once)
        except CoreError:
            _log.info("run %s ended early", run_id, exc_info=True)  # its state says why
        except Exception as error:
            _log.exception("run %s ended early", run_id)
            self._write_down(run_id, cause(error, self.store), traceback.format_exc())
        finally:
            with self._lock:
                # it may have been resumed since its end was written down, and then they are another's
                if self._controls.get(run_id) is control:
                    del self._controls[run_id], self._threads[run_id]

    def _new_worker(self) -> Worker:
        return self._starter.submit(Worker, self.store.folder).result()

    def _relay(self, run_id: str, control: ProcessControl) -> None:
        """Has the run computed by a process, when it is its turn."""
        wait_for_turn(self.store, run_id, lambda: control.stopping, self.at_once)
        if control.stopping:
            self.store.set_state(run_id, RunState.STOPPED)
            return
        with self._lock:
            worker = self._idle.pop() if self._idle else None
        if worker is None or not worker.alive():
            worker = self._new_worker()
        code = worker.compute(run_id, self.store.owner, control)
        if code is not None:
            worker.close()
            self.store.set_state(run_id, RunState.INTERRUPTED, end(code))
            return
        with self._lock:
            # one is kept for the next run, which begins at once then
            keep = not self._closed and not self._idle
            if keep:
                self._idle.append(worker)
        if not keep:
            worker.close()

    def _write_down(self, run_id: str, error: str, where: str) -> None:
        """Whatever ended a run, it says so: if not at once, as when the disk has no room for a word, then as soon as it can."""
        while not self._closed:
            try:
                if not self.store.run(run_id).state.is_finished():
                    self.store.set_state(run_id, RunState.FAILED, error, where)
                return
            except Exception:
                _log.exception("the end of run %s could not be written down yet", run_id)
                time.sleep(SECONDS_BETWEEN_TRIES)


def _import_engine() -> None:
    import core.pipeline  # noqa: F401


def default_name(config: RunConfig) -> str:
    """What a run is called that nobody named."""
    widths = " ".join(f"W{bits}A{bits}" for bits in config.bits)
    source = "given images" if config.images_from else " + ".join(config.methods)
    own = len(config.training.layer_bits)
    widths += f", {own} layer{'s' if own > 1 else ''} changed" if widths and own else ""
    return f"{config.model.rsplit('/', 1)[-1]}, {source}" + (f", {widths}" if widths else "")
