"""`--executor`: where the commands compute runs, in this process or on a Ray cluster."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from core.config import RunConfig
from core.errors import ConfigError, UnknownNameError
from core.reporting import Reporter

if TYPE_CHECKING:
    from core.comparison.cells import Cell
    from core.generation.batches import Batches
    from core.runs.store import RunStore

LOCAL, RAY = "local", "ray"
MOST_WORKERS = 10_000
_ADDRESS = "ray://"


def check_cluster(executor: str, config: RunConfig) -> None:
    """Connects to the cluster. Raises CoreError for what can be refused before a node looks at the run, and for a wrong executor."""
    from core.runs.cluster.connection import connect
    from core.runs.early_checks import check_run

    if executor not in (LOCAL, RAY) and not executor.startswith(_ADDRESS):
        raise UnknownNameError("executor", executor, [LOCAL, RAY, f"{_ADDRESS}HOST:PORT"])
    check_run(config)
    connect(executor if executor.startswith(_ADDRESS) else "")


def check_workers(workers: int, executor: str) -> None:
    """Raises ConfigError for a number of workers that there cannot be."""
    if not 1 <= workers <= MOST_WORKERS:
        raise ConfigError(f"workers must be 1 to {MOST_WORKERS:,}, got {workers:,}")
    if workers > 1 and executor == LOCAL:
        raise ConfigError(f"workers must be 1 without --executor {RAY}, got {workers:,}")


def batches_on_cluster(config: RunConfig, workers: int) -> Batches:
    """What computes so many batches of the run at once on a cluster that `check_cluster` has connected to."""
    from core.runs.cluster.batches import RayBatches

    return RayBatches(config, workers)


def perform_on_cluster(store: RunStore, run_id: str, reporter: Reporter, executor: str) -> dict[str, Any]:
    """As `execution.perform`, on a cluster that `check_cluster` has connected to."""
    from core.checkpoints import SECONDS_BETWEEN
    from core.runs.cluster.executor import RayExecutor

    place = RayExecutor(store)
    return place.perform(run_id, place.control(run_id), reporter, SECONDS_BETWEEN)


def measure_on_cluster(store: RunStore, missing: Sequence[Cell], executor: str, interrupted: Callable[[str], BaseException]) -> None:
    """Computes the runs of these cells side by side, as many as the cluster has room for; says on stderr how each has ended.

    interrupted: the error to raise after Ctrl-C, for the id of a run.
    """
    from core.comparison.cells import resumable_run
    from core.runs.manager import RunManager

    manager = RunManager(store, executor)
    runs: dict[str, Cell] = {}
    try:
        for cell in missing:
            if (earlier := resumable_run(store, cell)) is not None:
                manager.resume(earlier.id)
            runs[earlier.id if earlier is not None else manager.start(cell.config)] = cell
        for number, (run_id, cell) in enumerate(runs.items(), start=1):
            manager.wait(run_id)
            run = store.run(run_id)
            reason = f": {run.error}" if run.error else ""
            print(f"{cell.method}, seed {cell.seed} ({number} of {len(runs)}) is {run.state}{reason}", file=sys.stderr)
    except KeyboardInterrupt:
        raise interrupted(next(iter(runs), "")) from None
    finally:
        manager.close()
