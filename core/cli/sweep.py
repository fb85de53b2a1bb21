"""The command `sweep`: runs over the points of a search space, compared on held-out synthetic images."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from core.cli.cluster import LOCAL, check_cluster, measure_on_cluster
from core.cli.commands import Interrupted, begin, resumed, run_config, with_weights
from core.config import RunConfig
from core.errors import ConfigError

if TYPE_CHECKING:
    from core.comparison.sweep import Trial
    from core.runs.store import RunStore


def sweep(options: Namespace) -> dict[str, Any]:
    """Measures what is missing, then prints the table. What is interrupted goes on with the same command."""
    from core.comparison.search_space import GRID, RANDOM, space_of
    from core.comparison.sweep import as_text, listed, rows, trials
    from core.comparison.sweeping import carry_out
    from core.comparison.sweeps import complete, held_out_folder, likely_points, measured, new_sweep, trials_of
    from core.runs.store import RunStore

    if options.random < 0:
        raise ConfigError(f"random must be at least 1, or 0 for all points of the grid, got {options.random}")
    if options.random and (options.sampler or options.points):
        raise ConfigError("random must not be given with sampler or points: --random N means --sampler random --points N")
    sampler = options.sampler or (RANDOM if options.random else GRID)
    space = space_of(options.grid)
    start = with_weights(run_config(options), options)
    wanted = new_sweep(start, space, sampler, options.points or options.random, options.seeds)
    trials(wanted.start, likely_points(wanted), wanted.seeds)  # what cannot be computed is refused before a store is made
    if options.executor != LOCAL:
        check_cluster(options.executor, wanted.start)
    store = RunStore(options.runs)
    try:
        store.mark_interrupted()
        done = carry_out(store, wanted, lambda config: _images(options, config), lambda found: _measure(options, store, found))
        found = measured(store, trials_of(store, done))
        counted = complete(found)
        table = listed(rows(store, counted))
        images = held_out_folder(store, done)
    finally:
        store.close()
    missing = len(found) - len(counted)
    if not options.json:
        note = [f"Not measured: {missing} of {len(found)} runs."] if missing else []
        return {"text": "\n".join([as_text(table), *note])}
    return {"rows": [row.to_dict() for row in table], "missing": missing, "held_out": str(images)}


def _images(options: Namespace, config: RunConfig) -> str:
    """Computes the held-out images where the runs are computed; returns the id of their run."""
    print("held-out images", file=sys.stderr)
    return str(begin(options.runs, config, executor=options.executor)["run"])


def _measure(options: Namespace, store: RunStore, missing: Sequence[Trial]) -> None:
    """Computes these runs."""
    from core.comparison.cells import resumable_run

    cells = [trial.cell for trial in missing]
    if options.executor != LOCAL:
        measure_on_cluster(store, cells, options.executor, Interrupted)
        return
    for number, cell in enumerate(cells, start=1):
        print(f"{cell.method}, seed {cell.seed} ({number} of {len(cells)})", file=sys.stderr)
        if (earlier := resumable_run(store, cell)) is not None:
            resumed(options, earlier.id)
        else:
            begin(options.runs, cell.config)
