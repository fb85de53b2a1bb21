"""Runs in separate processes, so that they share neither interpreter nor memory with the server. Both ends are in this file.

**Why.** A server that draws pages for twenty people keeps its interpreter busy, and a network computed in the same interpreter waits for
it after each operation: measured, the run fell to a tenth of its speed. A run that is killed because memory ran out would also end the
server.

**Protocol.** The server starts `python -m core.runs.worker_process FOLDER` and exchanges lines of JSON with it. To the worker:
{"run": id, "owner": name}, {"set": [knob, value, methods]} and {"do": "pause" | "resume" | "step" | "stop"}. From the worker:
{"ended": id}. Everything else goes through the store. The worker exits when its standard input ends, which it does when the server dies.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

from core.barriers import SPIN_COUNT, share_cores
from core.errors import CoreError, RunError, StoreError
from core.memory import keep_memory
from core.processes import module_command, module_environment
from core.runs.control import LocalControl
from core.runs.database import DATABASE
from core.runs.events import StoreReporter
from core.runs.execution import attempt, describe_error, perform, queued_control, runs_at_once
from core.runs.state import RunState
from core.runs.store import RunStore

# in the server


class ProcessControl(LocalControl):
    """The control of a run that a worker process computes. Requests made before the worker has the run are sent when it does."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._unsent: list[dict[str, Any]] = []
        self._send: Callable[[dict[str, Any]], None] | None = None

    def attach(self, send: Callable[[dict[str, Any]], None]) -> None:
        """Sends the messages that were kept, and from now on every message at once."""
        with self._lock:
            for message in self._unsent:
                send(message)
            self._unsent, self._send = [], send

    def _request(self, message: dict[str, Any]) -> None:
        with self._lock:
            if self._send is None:
                self._unsent.append(message)
            else:
                self._send(message)

    def set(self, name: str, value: float, methods: Sequence[str]) -> None:
        super().set(name, value, methods)
        self._request({"set": [name, value, list(methods)]})

    def pause(self) -> None:
        super().pause()
        self._request({"do": "pause"})

    def resume(self) -> None:
        super().resume()
        self._request({"do": "resume"})

    def step(self) -> None:
        super().step()
        self._request({"do": "step"})

    def stop(self) -> None:
        super().stop()
        self._request({"do": "stop"})


class Worker:
    """A process that computes one run at a time. It loads the engine as soon as it starts, before the first run."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            module_command("core.runs.worker_process", str(folder)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"GOMP_SPINCOUNT": SPIN_COUNT, **module_environment()},
            bufsize=1,
            # Ctrl-C must reach the server only; the worker ends with it
            start_new_session=True,
            encoding="utf-8",
        )

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def is_alive(self) -> bool:
        """Whether the process is running."""
        return self._process.poll() is None

    def compute(self, run_id: str, owner: str, control: ProcessControl) -> int | None:
        """Computes a run of the process `owner`. Blocks until the run has ended, or the worker has died.

        Returns None when the run has ended, otherwise the exit code of the worker.
        """
        assert self._process.stdout is not None
        self._send({"run": run_id, "owner": owner})
        control.attach(self._send)
        for line in self._process.stdout:
            if json.loads(line).get("ended") == run_id:
                return None
        return self._process.wait()

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        # `compute` notices a worker that has died
        with contextlib.suppress(OSError, ValueError):
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()

    def close(self, timeout: float = 10.0) -> None:
        """Ends the process; kills it after `timeout` seconds."""
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                assert pipe is not None
                pipe.close()
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def describe_exit(code: int) -> str:
    """How a worker process ended, in one human-readable line."""
    if code == -9:
        return "its process was killed, probably because memory ran out: choose a smaller batch_size, or resume the run"
    return f"its process ended with {'signal' if code < 0 else 'code'} {abs(code)}: you can resume the run"


# in the worker


class _WorkerRuns:
    """The runs of a worker process: carries out the messages of the server. output: where the answers go. rehearsal: ends before a run."""

    def __init__(self, store: RunStore, output: TextIO, rehearsal: threading.Thread) -> None:
        self._store, self._output, self._rehearsal = store, output, rehearsal
        self._at_once = runs_at_once()
        self._current = ""
        self._controls: dict[str, LocalControl] = {}  # of runs that have not ended

    def receive(self, message: dict[str, Any]) -> None:
        """Carries out one message. Requests for a run that has ended are ignored. Raises CoreError for a bad value."""
        if "run" in message:
            self._current = message["run"]
            self._start(self._current, message["owner"])
            return
        control = self._controls.get(self._current)
        if control is None:
            return
        if "set" in message:
            control.set(*message["set"])
        else:
            getattr(control, message["do"])()

    def _start(self, run_id: str, owner: str) -> None:
        try:
            self._store.adopt(run_id, owner)
        except RunError:  # another process has taken the run, or it was deleted
            self._report_end(run_id)
            return
        control = self._controls[run_id] = queued_control(self._store, run_id, self._at_once)
        try:
            threading.Thread(target=self._compute, args=(run_id, control), name=run_id, daemon=True).start()
        except RuntimeError as error:  # no more threads
            self._store.set_state(run_id, RunState.FAILED, describe_error(error, self._store), traceback.format_exc())
            self._report_end(run_id)

    def _compute(self, run_id: str, control: LocalControl) -> None:
        self._rehearsal.join()  # side by side, both would take longer
        reporter = StoreReporter(self._store, run_id)
        attempt(self._store, run_id, lambda: perform(self._store, run_id, reporter, control, lambda: control.stopping, self._at_once))
        self._report_end(run_id)

    def _report_end(self, run_id: str) -> None:
        self._controls.pop(run_id, None)
        print(json.dumps({"ended": run_id}), file=self._output, flush=True)


def import_engine() -> None:
    """Imports what computes a run. torch takes seconds, which the first run should not have to wait for."""
    import core.pipeline  # noqa: F401


def _rehearse() -> None:
    """Imports the engine, and does once what its first run would be slower for."""
    from core.pipeline import rehearse

    rehearse()
    gc.freeze()  # what is there now stays; looking for garbage in it would take a third of a second each time


def main(folder: Path) -> None:
    """Computes the runs named on standard input until it ends. Exits with a sentence if the server's folder is gone."""
    if not (folder / DATABASE).exists():  # RunStore would create the folder again
        sys.exit(f"the runs folder {folder} was removed or is not mounted")
    output = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)  # so that nothing a library prints is read as a message
    share_cores()
    keep_memory()
    store = RunStore(folder)
    rehearsal = threading.Thread(target=_rehearse, name="rehearsal", daemon=True)
    rehearsal.start()
    runs = _WorkerRuns(store, output, rehearsal)
    with store.database.patient():
        for line in sys.stdin:
            try:
                runs.receive(json.loads(line))
            except StoreError:
                raise  # the run cannot be taken over: the server notices that this process has ended
            except CoreError as error:
                print(error, file=sys.stderr)
    os._exit(0)  # without waiting for the threads: the server is gone


if __name__ == "__main__":
    main(Path(sys.argv[1]))
