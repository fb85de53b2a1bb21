"""Runs in background threads: one at a time, the others wait their turn; a page that is closed or reloaded changes nothing."""

import logging
import queue
import threading
import traceback

from core.config import RunConfig
from core.errors import CoreError, RunError, RunStopped
from core.runs.events import StoreReporter
from core.runs.live import LiveControl
from core.runs.state import RunState
from core.runs.store import RunStore

_log = logging.getLogger(__name__)


class RunManager:
    """Starts runs and hands out their controls. One object for each process and store.

    One run computes at a time: it uses every core, and two at once would only be slower each. At its start, runs that a dead
    process left behind are marked INTERRUPTED.
    """

    def __init__(self, store: RunStore) -> None:
        self.store = store
        self._controls: dict[str, LiveControl] = {}
        self._done: dict[str, threading.Event] = {}
        self._queue: queue.Queue[str | None] = queue.Queue()
        self._closed = False
        self._lock = threading.Lock()  # so that no run is queued behind the end
        self.store.mark_interrupted()
        # a daemon, so that Ctrl-C ends the server; what it leaves behind is found at the next start
        self._worker = threading.Thread(target=self._work, name="runs", daemon=True)
        self._worker.start()

    def start(self, config: RunConfig, name: str = "") -> str:
        """Queues a run and returns its id. Raises RunError after `close`."""
        name = name or _default_name(config)
        with self._lock:
            if self._closed:
                raise RunError(f"run {name!r} comes too late, as the server is closing: allowed are runs before that")
            run_id = self.store.create(config, name)
            self._controls[run_id] = LiveControl(on_pause=lambda paused: self._paused(run_id, paused))
            self._done[run_id] = threading.Event()
            self._queue.put(run_id)
        return run_id

    def control(self, run_id: str) -> LiveControl:
        """The control of a run that this process has queued or running. Raises RunError when there is none."""
        control = self._controls.get(run_id)
        if control is None:
            raise RunError(f"run {run_id!r} is {self.store.run(run_id).state}: allowed is a run that this server is working on")
        return control

    def controls(self, run_id: str) -> bool:
        """Whether this process has the run queued or running."""
        return run_id in self._controls

    def waiting(self, run_id: str) -> int:
        """How many runs come before a queued one."""
        ahead = [run for run in self.store.runs() if run.id in self._controls and not run.state.is_finished()]
        order = sorted(ahead, key=lambda run: run.created)
        return next((place for place, run in enumerate(order) if run.id == run_id), 0)

    def wait(self, run_id: str, timeout: float | None = None) -> None:
        """Blocks until this process is done with the run."""
        done = self._done.get(run_id)
        if done is not None:
            done.wait(timeout)

    def close(self, timeout: float = 30.0) -> None:
        """Stops what runs and what waits, and ends the worker."""
        with self._lock:
            self._closed = True
            for control in list(self._controls.values()):
                control.stop()
            self._queue.put(None)
        self._worker.join(timeout)

    def _paused(self, run_id: str, paused: bool) -> None:
        self.store.set_state(run_id, RunState.PAUSED if paused else RunState.RUNNING)

    def _work(self) -> None:
        # torch takes seconds to import: here, while a person still looks at the first page, which must not wait for it
        import core.pipeline  # noqa: F401

        while (run_id := self._queue.get()) is not None:
            try:
                self._execute(run_id)
            except Exception:  # the store could not even take its end, as when the disk is full: the next run may fare better
                _log.exception("the end of run %s could not be written down", run_id)

    def _execute(self, run_id: str) -> None:
        from core.pipeline import execute

        control = self._controls[run_id]
        try:
            if control.stopping:
                raise RunStopped("the run was stopped before it began")
            self.store.set_state(run_id, RunState.RUNNING)
            execute(self.store.run(run_id).config, self.store.run_folder(run_id), StoreReporter(self.store, run_id), control)
            self.store.set_state(run_id, RunState.COMPLETE)
        except RunStopped:
            self.store.set_state(run_id, RunState.STOPPED)
        except CoreError as error:
            self.store.set_state(run_id, RunState.FAILED, str(error), traceback.format_exc())
        except Exception as error:  # whatever it is, the run says so and the worker goes on with the next
            self.store.set_state(run_id, RunState.FAILED, f"{type(error).__name__}: {error}", traceback.format_exc())
        finally:
            del self._controls[run_id]
            self._done.pop(run_id).set()


def _default_name(config: RunConfig) -> str:
    widths = " ".join(f"W{bits}A{bits}" for bits in config.bits)
    source = "given images" if config.images_from else " + ".join(config.optimizers)
    return f"{config.generation.model.rsplit('/', 1)[-1]}, {source}" + (f", {widths}" if widths else "")
