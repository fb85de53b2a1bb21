"""Runs on a Ray cluster. Ray decides on which node and when a run is computed; what it announces comes back here, into the store."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayError, RayTaskError, RuntimeEnvSetupError

from core import errors, layout
from core.checkpoints import SECONDS_BETWEEN
from core.config import RunConfig
from core.errors import CoreError, RunError, RunInterrupted, RunStopped, first_line
from core.reporting import WARNING, Control, Reporter
from core.runs.cluster import files
from core.runs.cluster.connection import check_versions, needed_resources
from core.runs.cluster.node import Event, Job, NodeRun
from core.runs.control import LocalControl
from core.runs.events import StoreReporter
from core.runs.execution import to_its_end
from core.runs.places import each_text
from core.runs.records import Records
from core.runs.run import CLUSTER
from core.runs.state import RunState
from core.runs.store import RunStore
from core.runs.worker_process import ProcessControl

RETRIES = 3  # in a row without a new resume state
_SECONDS = 0.5  # between two looks whether a run that waits for a node is to be stopped
_UNREACHABLE = 60.0  # seconds after which a node that does not answer counts as gone
_OUT_OF_MEMORY = "running low on memory"  # in the message about a worker that Ray ended for that reason
# a node may announce these to the reporter
_REPORTED = ("stage", "record", "images", "running_statistics", "change", "result", "rewind", "flush")


class WorkerLostError(Exception):
    """The process that computed a run is gone; its text says why."""


class ClusterControl(ProcessControl):
    """The control of a run on a cluster, which may be computed by several workers, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self._requested: list[tuple[str, float, list[str]]] = []

    def set(self, name: str, value: float, methods: Sequence[str]) -> None:
        self._requested.append((name, value, list(methods)))
        super().set(name, value, methods)

    def detach(self, made: Sequence[Mapping[str, Any]]) -> None:
        """Keeps messages again, for the next worker: values that the lost one has not used, and a pause. made: the changes in the store."""
        known = {(change["name"], change["value"], change["method"]) for change in made}
        with self._lock:
            self._send = None
            kept = [
                {"set": [name, value, left]}
                for name, value, methods in self._requested
                if (left := [method for method in methods if (name, value, method) not in known])
            ]
            self._unsent = [*kept, *([{"do": "pause"}] if self.paused else []), *([{"do": "stop"}] if self.stopping else [])]


class RayExecutor:
    """Computes each run in an actor of a Ray cluster. Runs do not wait for those of this machine, but for free CPUs and GPUs.

    The process must be connected (connection.connect). A run whose worker or node dies is continued elsewhere from its last resume state,
    at most RETRIES times in a row, and a warning of the run says so. A paused run keeps its CPUs and GPUs.
    """

    def __init__(self, store: RunStore) -> None:
        self._store = store
        self._sent: dict[str, tuple[Any, files.Sent]] = {}  # inputs in the object store: path -> when it was changed, files
        self._lock = threading.Lock()

    def control(self, run_id: str) -> LocalControl:
        """A control that sends requests to the worker."""
        return ClusterControl()

    def compute(self, run_id: str, control: LocalControl) -> None:
        """Computes the run on the cluster. Raises what ended it early, after storing that."""
        self.perform(run_id, control, StoreReporter(self._store, run_id), SECONDS_BETWEEN)

    def close(self) -> None:
        """Nothing to release: the workers end with their runs, and the connection with this process."""

    def perform(self, run_id: str, control: LocalControl, reporter: Reporter, every: float) -> dict[str, Any]:
        """As `execution.perform`, on the cluster."""
        assert isinstance(control, ClusterControl)

        def compute() -> tuple[dict[str, Any], Control]:
            return _RemoteRun(self, self._store, run_id, control, reporter, every).result(), control

        return to_its_end(self._store, run_id, reporter, compute)

    def send(self, path: Path) -> files.Sent | None:
        """The file or folder in the object store, where it stays for further runs; None if it is missing here, or too large."""
        if not path.exists():
            return None
        found = files.files_of(path)
        base = path if path.is_dir() else path.parent
        status = [(file, file.stat().st_mtime_ns, file.stat().st_size) for file in found]
        if sum(size for _, _, size in status) > files.MOST:
            return None
        with self._lock:
            known = self._sent.get(str(path))
            if known is None or known[0] != status:
                known = self._sent[str(path)] = status, files.send(found, base, ray.put)
        return known[1]


class _RemoteRun:
    """One run, from its first worker to its end."""

    def __init__(
        self, executor: RayExecutor, store: RunStore, run_id: str, control: ClusterControl, reporter: Reporter, every: float
    ) -> None:
        self._executor, self._store, self._run_id = executor, store, run_id
        self._control, self._reporter, self._every = control, reporter, every
        self._folder = store.run_folder(run_id)
        self._paths: dict[str, str] = {}  # of the node -> here
        self._arrivals = files.Arrivals(self._folder, {})
        self._lost = 0  # workers since the last resume state
        self._all_lost = 0
        self._nodes: list[str] = []
        self._resources: dict[str, float] = {}

    def result(self) -> dict[str, Any]:
        """Computes the run. Raises what ended it."""
        self._folder.mkdir(exist_ok=True)
        self._store.set_result(self._run_id, CLUSTER, {"nodes": []})
        if (self._folder / layout.RESULT).exists():
            return dict(json.loads((self._folder / layout.RESULT).read_text(encoding="utf-8")))
        while True:
            try:
                return self._by_one_worker()
            except WorkerLostError as error:
                self._note_loss(str(error))

    def _note_loss(self, reason: str) -> None:
        """Says what happened. Raises RunInterrupted after too many losses."""
        self._lost += 1
        self._all_lost += 1
        if self._lost > RETRIES:
            raise RunInterrupted(f"{reason}, for the {self._lost}th time without a new resume state: you can resume the run")
        step = self._store.run(self._run_id)
        self._reporter.result(
            f"{WARNING}/cluster {self._all_lost}",
            f"{reason} at step {step.step:,} of {step.stage or 'the beginning'}; the run continued from its last resume state on another "
            f"worker (retry {self._lost} of {RETRIES}).",
        )
        self._control.detach(self._store.changes(self._run_id))
        self._store.set_state(self._run_id, RunState.QUEUED)

    def _by_one_worker(self) -> dict[str, Any]:
        config = self._store.config(self._run_id)
        if not self._resources:  # once, so that nodes that are gone change nothing
            self._resources = needed_resources(config, [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]])
        groups = {"events": 1, "requests": 1}
        options: dict[str, Any] = {**self._resources, "max_restarts": 0, "concurrency_groups": groups}  # Ray's types lack the last one
        actor: Any = ray.remote(**options)(NodeRun).remote()
        node = ""
        try:
            about = self._when_started(actor.about.remote())
            check_versions(about["versions"], about["ip"])
            node = about["node"]
            self._nodes.append(about["ip"])
            self._reporter.result(CLUSTER, {"nodes": self._nodes})
            ray.get(actor.begin.remote(self._job(config)))
            self._store.set_state(self._run_id, RunState.RUNNING)
            self._control.attach(actor.request.remote)
            return self._follow(actor, config)
        except RuntimeEnvSetupError as error:
            raise RunError(f"a node of the cluster could not load this program: {first_line(error)}") from error
        except RayTaskError:
            raise
        except ConnectionError as error:  # of a client, see connection.connect
            raise RunInterrupted("the connection to the Ray cluster was lost: you can resume the run") from error
        except RayError as error:
            raise WorkerLostError(_why(error, node, self._nodes[-1] if node else "")) from error
        finally:
            with suppress(ConnectionError, RayError):  # a cluster that is gone has ended the worker
                ray.kill(actor)

    def _when_started(self, reference: Any) -> dict[str, Any]:
        """The answer of a worker, once a node has room for it. Raises RunStopped if the run is stopped before that."""
        while not ray.wait([reference], timeout=_SECONDS)[0]:
            if self._control.stopping:
                raise RunStopped("the run was stopped before it began")
        return dict(ray.get(reference))

    def _job(self, config: RunConfig) -> Job:
        inputs = {option: (str(path), self._executor.send(path)) for option, path in files.inputs(config).items()}
        own = files.send(files.files_of_run(self._folder), self._folder, ray.put)
        past = Records(self._store.database).past(self._run_id)
        return Job(config.to_dict(), inputs, own, past, self._every, self._store.run(self._run_id).branch_at)

    def _follow(self, actor: Any, config: RunConfig) -> dict[str, Any]:
        """Takes the events of the worker until the run has ended."""
        number, answered = 0, time.monotonic()
        while True:
            try:
                events: list[Event] = ray.get(actor.take.remote(number + 1))
            except ActorUnavailableError:
                if time.monotonic() - answered > _UNREACHABLE:
                    raise
                time.sleep(_SECONDS)
                continue
            number, answered = number + 1, time.monotonic()
            for name, arguments in events:
                if name == "ended":
                    return dict(self._here(arguments[0]))
                self._apply(name, arguments, config)

    def _here(self, values: Any) -> Any:
        """Values with the paths of this machine."""
        return each_text(values, self._path_here) if self._paths else values

    def _path_here(self, text: str) -> str:
        for there, here in self._paths.items():
            text = text.replace(there, here)
        return text

    def _apply(self, name: str, arguments: tuple[Any, ...], config: RunConfig) -> None:
        """Does what an event says. Raises the error of a run that has failed."""
        if name in _REPORTED:
            arguments = tuple(self._here(value) if isinstance(value, (dict, list, str)) else value for value in arguments)
            getattr(self._reporter, name)(*arguments)
        elif name == "piece":
            self._arrivals.piece(*arguments)
        elif name == "files":
            self._store.sync()  # records first, see core/checkpoints.py
            self._arrivals.complete(*arguments)
            self._lost = 0
        elif name == "state":
            self._store.set_state(self._run_id, RunState(arguments[0]))
        elif name == "places":
            here = files.inputs(config)
            self._paths = {there: str(here[option]) for option, there in arguments[0].items()}
            self._arrivals = files.Arrivals(self._folder, self._paths)
        elif name == "config":
            own = {option: str(path) for option, path in files.inputs(config).items()}
            self._store.set_config(self._run_id, files.moved(RunConfig.from_dict(arguments[0]), own))
        elif name == "failed":
            raise _failure(*(self._here(value) if isinstance(value, (list, str)) else value for value in arguments))
        else:
            raise RunError(f"a node must announce one of {', '.join(_REPORTED)}, got {name!r}")


def _why(error: BaseException, node: str, ip: str) -> str:
    """How a worker was lost, as the beginning of a sentence. node: the id of its node, "" before it had one."""
    if not node:
        return "A worker could not start"
    alive = any(one["NodeID"] == node and one["Alive"] for one in ray.nodes())
    if _OUT_OF_MEMORY in str(error):
        return f"The worker on node {ip} was ended because memory ran out"
    return f"The worker on node {ip} has died" if alive else f"Node {ip} was lost"


def _failure(kind: str, message: str, paste: list[str], trace: str) -> BaseException:
    """The error with which a run failed on a node. kind: the name of its class in core/errors.py, "" for any other error."""
    found = getattr(errors, kind, None) if kind else None
    if isinstance(found, type) and issubclass(found, CoreError):
        error = found.__new__(found)
        Exception.__init__(error, message)
        error.paste = tuple(paste)
        return error
    return RuntimeError(f"{message}\n{trace}")
