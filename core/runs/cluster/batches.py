"""The batches of a generation on a Ray cluster: a task for each, several at once, while this process puts them together and writes the run.

A task needs the network alone and sends a batch back; no node has files of the run. Ray computes the task of a worker that dies again.
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError, RuntimeEnvSetupError

from core.barriers import share_cores
from core.config import GenerationConfig, RunConfig
from core.errors import CoreError, RunError, RunInterrupted, first_line
from core.files import temporary_folder
from core.generation.batches import Batch, Task
from core.memory import keep_memory
from core.runs.cluster import files
from core.runs.cluster.connection import check_versions, needed_resources, versions

RETRIES = 3  # of one batch whose worker died
WAITING = 3  # batches that are ready but for one before them, for each worker
_SECONDS = 0.5  # between two looks whether the run is to be stopped


@dataclass(frozen=True)
class _Job:
    """What all tasks of a run share. key: unique. config: plain values. model: the files of a network that is no name, if they are sent."""

    key: str
    config: Mapping[str, Any]
    method: str
    model: files.Sent | None


class RayBatches:
    """Computes batches in tasks of a Ray cluster that this process is connected to, `workers` of them at once if there is room.

    Raises ConfigError for a run that no node has room for.
    """

    def __init__(self, config: RunConfig, workers: int) -> None:
        self._config, self._workers = config, workers
        nodes = [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]
        self._compute = ray.remote(max_retries=RETRIES, **needed_resources(config, nodes))(_compute)
        path = files.inputs(config).get("model")
        self._model = None if path is None else files.send(files.files_of(path), path.parent, ray.put)

    def results(self, method: str, config: GenerationConfig, tasks: Iterator[Task], idle: Callable[[], None]) -> Iterator[Batch]:
        """See core.generation.batches. Raises the error of a batch that failed, RunInterrupted if the cluster is gone or a batch is lost
        again and again, and RunError for a node with other versions."""
        values = replace(self._config, generation=config).to_dict()
        job = ray.put(_Job(uuid.uuid4().hex, values, method, self._model))
        begun: deque[Any] = deque()
        try:
            while True:
                self._begin(job, tasks, begun)
                if not begun:
                    return
                while not ray.wait([begun[0]], timeout=_SECONDS)[0]:
                    idle()
                    self._begin(job, tasks, begun)  # a later one may be ready
                of_node, address, batch = ray.get(begun[0])
                begun.popleft()
                check_versions(of_node, address)
                yield batch
        except RuntimeEnvSetupError as error:
            raise RunError(f"a node of the cluster could not load this program: {first_line(error)}") from error
        except RayTaskError as error:
            raise (error.cause if isinstance(error.cause, CoreError) else error) from None
        except (ConnectionError, RayError) as error:
            raise RunInterrupted(f"a batch was lost {RETRIES + 1} times, or the cluster is gone ({first_line(error)})") from error
        finally:
            for reference in begun:
                with suppress(ConnectionError, RayError):
                    ray.cancel(reference, force=True)

    def _begin(self, job: Any, tasks: Iterator[Task], begun: deque[Any]) -> None:
        """Begins batches until as many are computed as there are workers, unless too many wait for one that is not ready."""
        busy = len(ray.wait(list(begun), num_returns=len(begun), timeout=0)[1]) if begun else 0
        while busy < self._workers and len(begun) < WAITING * self._workers and (task := next(tasks, None)) is not None:
            begun.append(self._compute.remote(job, task))
            busy += 1


# on a node


@cache
def _prepare() -> None:
    """Once for each process."""
    share_cores()
    keep_memory()


_loaded: dict[str, Any] = {}  # the network of the last job, by its key


def _compute(job: _Job, task: Task) -> tuple[dict[str, str], str, Batch]:
    """The versions and the address of this node, and the batch."""
    _prepare()
    from core.generation.apart import compute
    from core.threads import cpu_threads

    config = RunConfig.from_dict(job.config)
    if job.key not in _loaded:
        _loaded.clear()
        _loaded[job.key] = _network(config, job.model)
    with cpu_threads(config.machine.threads):
        batch = compute(task, _loaded[job.key], config.generation, job.method, config.machine)
    return versions(), ray.util.get_node_ip_address(), batch


def _network(config: RunConfig, sent: files.Sent | None) -> Any:
    from core.models.full_precision import load_model

    if sent is None:
        return load_model(config.model, config.machine.device)
    with temporary_folder() as folder:
        sent.unpack(folder, ray.get)
        return load_model(str(folder / Path(config.model).relative_to(sent.base)), config.machine.device)
