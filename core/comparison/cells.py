"""The runs of a comparison: one for each method and seed, with everything else equal. Imports no torch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from core.config import MachineConfig, RunConfig, settings
from core.data.real_images import check_real_images
from core.errors import ConfigError, quoted
from core.generation.methods import in_order
from core.runs.lists import RunFilter
from core.runs.outlook import phases
from core.runs.run import Run, with_absolute_paths
from core.runs.state import RunState
from core.runs.store import RunStore

ACTIVE = tuple(state for state in RunState if not state.is_finished())


@dataclass(frozen=True)
class Cell:
    """One method and seed. config: what a run has that measures this method alone."""

    method: str
    seed: int
    config: RunConfig

    @property
    def cost(self) -> float:
        """Work of the run, in images times iterations."""
        return sum(phase.work for phase in phases(self.config))


def cells(start: RunConfig, seeds: Sequence[int]) -> list[Cell]:
    """The cells of `start.methods` and these seeds, those of the lowest cost first.

    Raises ConfigError for what cannot be compared, DataError for a missing folder of real images.
    """
    if start.images_from:
        raise ConfigError(f"images must be generated in a comparison of methods, got those of {quoted(start.images_from)}")
    if start.machine.budget:
        raise ConfigError(
            f"budget must be 0 in a comparison, whose methods have equal numbers of images and steps, got {start.machine.budget:g}"
        )
    if not start.bits:
        raise ConfigError("bits must name at least one bit width in a comparison, got none")
    if not seeds or len(set(seeds)) != len(seeds):
        raise ConfigError(f"seeds must have each value once, got {', '.join(map(str, seeds)) or 'none'}")
    if "real" in start.methods:
        check_real_images(start.generation.real_images, start.evaluation.data)
    for seed in seeds:
        MachineConfig.check_value("seed", seed)
    start = with_absolute_paths(start)
    found = [
        Cell(method, seed, replace(start, methods=(method,)).with_knobs({"seed": seed}))
        for method in in_order(start.methods)
        for seed in seeds
    ]
    return sorted(found, key=lambda cell: cell.cost)  # stable: methods of the same cost stay in their order


def measures(config: RunConfig, cell: Cell) -> bool:
    """Whether a run with this config measures the cell: its results for the method and bit widths are those of a run of the cell."""
    wanted = cell.config
    return (
        config.model == wanted.model
        and config.evaluation.data == wanted.evaluation.data
        and not config.images_from
        and cell.method in config.methods
        and set(wanted.bits) <= set(config.bits)
        and (not wanted.evaluation.encoder or config.evaluation.encoder == wanted.evaluation.encoder)
        and all(_settings(config, cell.method, bits) == _settings(wanted, cell.method, bits) for bits in wanted.bits)
    )


def _settings(config: RunConfig, method: str, bits: int) -> dict[str, Any]:
    """All that the accuracy after the last training step depends on: not on which network is kept."""
    return {name: value for name, value in settings(config, method, bits).items() if name != "keep"}


def runs_of(store: RunStore, cell: Cell, states: Sequence[RunState]) -> Iterator[Run]:
    """The runs in these states that measure the cell and whose knobs nobody changed while they ran; newest first."""
    for run in store.runs(RunFilter(states=states, generates=True, model=cell.config.model)):
        if measures(run.config, cell) and not store.changes(run.id):
            yield run


def found(
    store: RunStore, start: RunConfig, states: Sequence[RunState] = (RunState.COMPLETE,), most: int | None = None
) -> list[tuple[Cell, str]]:
    """Every method and seed that runs in these states measure with the settings of `start`, each with its newest run.

    most: runs of the network and its evaluation images that are looked at, the newest; default: all of them.
    """
    start = with_absolute_paths(start)
    which = RunFilter(states=states, generates=True, model=start.model, data=[start.evaluation.data])
    known: dict[tuple[str, int], tuple[Cell, str]] = {}
    for run in store.runs(which, most):
        seed = run.config.machine.seed
        for method in run.config.methods:
            if (method, seed) in known or run.error:
                continue
            # a protocol without the reference `real` names no folder for it
            folder = start.generation.real_images or run.config.generation.real_images
            cell = Cell(method, seed, replace(start, methods=(method,)).with_knobs({"seed": seed, "real_images": folder}))
            if measures(run.config, cell) and not store.changes(run.id):
                known[method, seed] = cell, run.id
    return list(known.values())


def complete_run(store: RunStore, cell: Cell) -> Run | None:
    """The newest run that has measured the cell; not one whose config cannot be read, which its `error` says."""
    return next((run for run in runs_of(store, cell, (RunState.COMPLETE,)) if not run.error), None)


def resumable_run(store: RunStore, cell: Cell) -> Run | None:
    """The newest run of this cell alone that was interrupted or stopped."""
    states = [state for state in RunState if state.can_resume()]
    return next((run for run in runs_of(store, cell, states) if run.config == cell.config), None)


def active_run(store: RunStore, cell: Cell) -> Run | None:
    """A run that waits or is computed, and will have measured the cell."""
    return next(runs_of(store, cell, ACTIVE), None)
