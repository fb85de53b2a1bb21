"""Runs in a process of their own, so that they share neither interpreter nor memory with whoever watches.

A server that draws pages for twenty people keeps its interpreter busy, and a network that is computed in the same one waits for it
after each operation: measured, the job fell to a tenth of its speed. A job that is killed because memory ran out would take the server
with it. So the server starts `python -m core.runs.computing FOLDER` and talks to it in lines of JSON: down go {"run": id, "owner": name},
{"set": [knob, value, methods]} and {"do": "pause" | "resume" | "step" | "stop"}, up comes {"ended": id}. Everything else goes through
the store, as it does between any two processes. A process whose server has died ends at once, as its standard input does.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from core.runs.control import LocalControl

_ROOT = Path(__file__).parents[2]
# How often a thread of OpenMP looks for the others before it sleeps, instead of some milliseconds long: when something else has taken the
# core of one, it can go on at another's.
_SPINS = "20000"


class ProcessControl(LocalControl):
    """The control of a run that another process computes. What is turned before that process has begun, it is told when it does."""

    def __init__(self) -> None:
        super().__init__()
        self._telling = threading.Lock()
        self._untold: list[dict[str, Any]] = []
        self._send: Callable[[dict[str, Any]], None] | None = None

    def attach(self, send: Callable[[dict[str, Any]], None]) -> None:
        """From now on messages are sent, those that were kept first."""
        with self._telling:
            for message in self._untold:
                send(message)
            self._untold, self._send = [], send

    def _tell(self, message: dict[str, Any]) -> None:
        with self._telling:
            if self._send is None:
                self._untold.append(message)
            else:
                self._send(message)

    def set(self, name: str, value: float, methods: Sequence[str]) -> None:
        super().set(name, value, methods)
        self._tell({"set": [name, value, list(methods)]})

    def pause(self) -> None:
        super().pause()
        self._tell({"do": "pause"})

    def resume(self) -> None:
        super().resume()
        self._tell({"do": "resume"})

    def step(self) -> None:
        super().step()
        self._tell({"do": "step"})

    def stop(self) -> None:
        super().stop()
        self._tell({"do": "stop"})


class Worker:
    """A process that computes one run after the other. It has torch loaded soon after it was started, before it is needed."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "core.runs.computing", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={
                "GOMP_SPINCOUNT": _SPINS,
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
            },
            text=True,
            bufsize=1,
            # Ctrl-C is for the server; this one ends with it
            start_new_session=True,
        )

    @property
    def number(self) -> int:
        """What the operating system calls it."""
        return self._process.pid

    def alive(self) -> bool:
        """Whether it can be given a run."""
        return self._process.poll() is None

    def compute(self, run_id: str, owner: str, control: ProcessControl) -> int | None:
        """Blocks until the run has ended and returns None, or until the process has died and returns its exit code."""
        assert self._process.stdout is not None
        self._send({"run": run_id, "owner": owner})
        control.attach(self._send)
        for line in self._process.stdout:
            if json.loads(line).get("ended") == run_id:
                return None
        return self._process.wait()

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        # one that has died is noticed by whoever waits for it
        with contextlib.suppress(OSError, ValueError):
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()

    def close(self, timeout: float = 10.0) -> None:
        """Ends the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                assert pipe is not None
                pipe.close()
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def end(code: int) -> str:
    """How a process ended, for a person."""
    if code == -9:
        return "the process that computed it was killed, as happens when memory runs out: try a smaller batch_size, or resume it"
    return f"the process that computed it ended with {'signal' if code < 0 else 'code'} {abs(code)}: it can be resumed"
