"""A run on a node: computes it in an actor of Ray, and keeps what it announces until the process that started the run takes it."""

from __future__ import annotations

import queue
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray

from core.barriers import share_cores
from core.config import RunConfig
from core.errors import CoreError, first_line
from core.files import temporary_folder
from core.memory import keep_memory
from core.reporting import Frame, RunningStatistics
from core.runs.cluster.connection import versions
from core.runs.cluster.files import PIECE, Changes, Sent, linked, moved, must_be_on_the_node
from core.runs.control import LocalControl
from core.runs.events import FramePace
from core.runs.state import RunState

_WAITING = 1000  # events; a run that is ahead of its reader by more waits
_SECONDS = 0.5  # for which a call waits for the first event
_GATHERED = 0.04  # seconds after it in which more come along
_AT_ONCE = 500  # events
Event = tuple[str, tuple[Any, ...]]  # name, arguments; see Outbox and executor.py


@dataclass(frozen=True)
class Job:
    """What a node needs to compute a run, or the rest of it.

    config: its plain values, with the paths of the machine that started it. inputs: option, as in `files.inputs` -> its path there, and
    its files if they are sent. folder: the run's folder. past: see LocalControl. every, branch_at: see core.pipeline.execute.
    """

    config: Mapping[str, Any]
    inputs: Mapping[str, tuple[str, Sent | None]]
    folder: Sent
    past: Sequence[Mapping[str, Any]]
    every: float
    branch_at: int


class Outbox(FramePace):
    """A Reporter that keeps what is announced, in its order, until it is taken. Blocks the run while there is too much."""

    def __init__(self) -> None:
        super().__init__()
        self._events: queue.Queue[Callable[[], Event]] = queue.Queue(_WAITING)

    def put(self, name: str, *arguments: Any) -> None:
        """An event."""
        self._events.put(lambda: (name, arguments))

    def put_later(self, make: Callable[[], Event]) -> None:
        """An event that is made when it is taken."""
        self._events.put(make)

    @property
    def is_empty(self) -> bool:
        """Whether everything was taken."""
        return self._events.empty()

    def take(self) -> list[Event]:
        """The next events; none if nothing happens for a moment."""
        found: list[Event] = []
        try:
            found.append(self._events.get(timeout=_SECONDS)())
            time.sleep(_GATHERED)
            size = 0
            while len(found) < _AT_ONCE and size < PIECE:
                found.append(self._events.get_nowait()())
                size += sum(len(argument) for argument in found[-1][1] if isinstance(argument, bytes))
        except queue.Empty:
            pass
        return found

    def stage(self, name: str, total: int, done: int = 0) -> None:
        super().stage(name, total, done)
        self.put("stage", name, total, done)

    def record(self, stage: str, series: str, step: int, values: Mapping[str, Any]) -> None:
        super().record(stage, series, step, values)
        self.put("record", stage, series, step, dict(values))

    def images(self, method: str, frame: Frame, keep: bool) -> None:
        super().images(method, frame, keep)
        self.put("images", method, frame, keep)

    def running_statistics(self, statistics: RunningStatistics) -> None:
        self.put("running_statistics", statistics)

    def change(self, method: str, step: int, name: str, value: float) -> None:
        super().change(method, step, name, value)
        self.put("change", method, step, name, value)

    def result(self, name: str, value: Any) -> None:
        self.put("result", name, value)

    def rewind(self, stage: str, series: str, step: int) -> None:
        super().rewind(stage, series, step)
        self.put("rewind", stage, series, step)

    def flush(self) -> None:
        self.put("flush")


class _Shipping:
    """A Control that sends the files of a new resume state before it does what the control does."""

    def __init__(self, control: LocalControl, outbox: Outbox, ship: Callable[[], None]) -> None:
        self._control, self._outbox, self._ship = control, outbox, ship

    def pause_point(self) -> None:
        self._ship()
        if self._control.paused:
            self._outbox.pausing()
        self._control.pause_point()

    def values(self, method: str, step: int) -> Mapping[str, float]:
        return self._control.values(method, step)


class NodeRun:
    """One run on a node. The process that started it calls `about`, then `begin`, then `take` until the run has ended."""

    def __init__(self) -> None:
        share_cores()
        keep_memory()
        self._outbox = Outbox()
        self._control = LocalControl(self._on_pause)
        self._node = ray.util.get_node_ip_address()
        self._taken: tuple[int, list[Event]] = (0, [])

    def about(self) -> dict[str, Any]:
        """The versions here, and which node this is."""
        return {"versions": versions(), "ip": self._node, "node": ray.get_runtime_context().get_node_id()}

    def begin(self, job: Job) -> None:
        """Starts computing."""
        self._control = LocalControl(self._on_pause, past=job.past)
        threading.Thread(target=self._compute, args=(job,), name="run", daemon=True).start()

    @ray.method(concurrency_group="events")
    def take(self, number: int) -> list[Event]:
        """The events of batch `number`, counted from 1; a batch whose answer was lost can be taken again until the next one is."""
        if number != self._taken[0]:
            self._taken = number, self._outbox.take()
        return self._taken[1]

    @ray.method(concurrency_group="requests")
    def request(self, message: Mapping[str, Any]) -> None:
        """Pauses, resumes, steps or stops the run, or sets a live value, as worker_process.py describes the messages."""
        if "set" in message:
            self._control.set(*message["set"])
        else:
            getattr(self._control, message["do"])()

    def _on_pause(self, paused: bool) -> None:
        self._outbox.put("state", RunState.PAUSED if paused else RunState.RUNNING)

    def _compute(self, job: Job) -> None:
        try:
            with temporary_folder() as temporary:
                self._outbox.put("ended", self._result(job, temporary))
        except BaseException as error:
            message = str(error) if isinstance(error, CoreError) else f"{type(error).__name__}: {first_line(error)}"
            kind = type(error).__name__ if isinstance(error, CoreError) else ""
            self._outbox.put("failed", kind, message, list(getattr(error, "paste", ())), traceback.format_exc())

    def _result(self, job: Job, temporary: Path) -> dict[str, Any]:
        config = self._with_inputs(job, temporary / "inputs")
        folder = temporary / "run"
        folder.mkdir()
        job.folder.unpack(folder, ray.get)
        from core.pipeline import execute

        changes = Changes(folder)
        ship = partial(self._ship, changes, folder, temporary / "links")
        control = _Shipping(self._control, self._outbox, lambda: ship() if changes.has_resume_state else None)

        def keep_plan(plan: RunConfig) -> None:
            self._outbox.put("config", plan.to_dict())

        try:
            return execute(config, folder, self._outbox, control, None, job.every, keep_plan, job.branch_at)
        finally:
            ship()
            while not self._outbox.is_empty:  # files are read when they are taken
                time.sleep(_GATHERED)

    def _with_inputs(self, job: Job, folder: Path) -> RunConfig:
        """The config with the paths of this node. Raises RunError for what was not sent and is not here."""
        config = RunConfig.from_dict(job.config)
        places = {}
        for option, (path, sent) in job.inputs.items():
            if sent is not None:
                place = folder / option
                sent.unpack(place, ray.get)
                places[option] = str(place / Path(path).relative_to(sent.base))
            elif not Path(path).exists():
                raise must_be_on_the_node(option, path, self._node)
        self._outbox.put("places", places)
        return moved(config, places)

    def _ship(self, changes: Changes, folder: Path, links: Path) -> None:
        """Sends the files that are new."""
        names, resume_files = changes.take()
        for name, link in zip(names, linked(folder, names, links)):
            size = link.stat().st_size
            for offset in range(0, max(size, 1), PIECE):
                self._outbox.put_later(partial(_piece, name, link, offset, offset + PIECE >= size))
        self._outbox.put("files", resume_files)


def _piece(name: str, link: Path, offset: int, is_last: bool) -> Event:
    with link.open("rb") as file:
        file.seek(offset)
        content = file.read(PIECE)
    if is_last:
        link.unlink()
    return "piece", (name, content, offset == 0)
