"""Sweeps as they are stored: what each searches, the points proposed so far, and which runs have measured them. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any

from core.comparison.cells import measures
from core.comparison.search_space import HALVING, TPE, Range, Space, check_sampler, halving_points, points, share_of, size
from core.comparison.sweep import Trial, held_out_config, own_knobs, trials
from core.config import RunConfig
from core.errors import ConfigError, CoreError, RunError, quoted
from core.files import read_json, write_json
from core.generation.methods import METHODS
from core.layout import SWEEPS, UPLOADS
from core.runs.lists import RunFilter
from core.runs.outlook import phases
from core.runs.places import each_text, located
from core.runs.run import Run, portable_text, with_absolute_paths
from core.runs.state import RunState
from core.runs.store import RunStore

_HELD_OUT = "held-out"  # in the folder of uploads: a folder of images for each start of a sweep
_POINTS_TO_ESTIMATE = 50
_NEWEST = 20  # runs that tell how long a run takes


@dataclass(frozen=True)
class Sweep:
    """A sweep. Two that are to compute the same have the same id: repeating a sweep continues it.

    id: its name in the store. start: the settings that all runs share, with the methods and bit widths; without evaluation images.
    space: knob -> its values or its range. sampler: one of SAMPLERS. count: number of points; 0: the whole grid. seeds: a run with each.
    points: those proposed so far. user: who started it, if the dashboard has logins. executor: where it is computed, see RunManager;
    empty: where the server computes. held_out: name of the folder of its held-out images; empty before it is stored.
    """

    id: str
    start: RunConfig
    space: Space
    sampler: str
    count: int
    seeds: tuple[int, ...]
    points: tuple[Mapping[str, Any], ...] = ()
    created: float = field(default_factory=time.time)
    user: str = ""
    executor: str = ""
    held_out: str = ""

    @property
    def name(self) -> str:
        """Its name for people: knobs, methods, and bit widths."""
        methods = " + ".join(METHODS[method].title for method in self.start.methods)
        widths = " ".join(self.start.training_for(bits).width for bits in self.start.bits)
        return f"{', '.join(self.space)} · {methods} · {widths}"

    @property
    def of_all(self) -> int:
        """The number of runs that it will have."""
        if self.sampler == TPE:
            count = int(min(self.count, size(self.space)))
        else:
            count = len(likely_points(self) if self.sampler == HALVING else self.points)
        return count * len(self.start.methods) * len(self.seeds)


def new_sweep(start: RunConfig, space: Space, sampler: str, count: int, seeds: Sequence[int]) -> Sweep:
    """A sweep that starts from the settings of any run. Raises ConfigError for what cannot be swept, and as `check_sampler`."""
    start = with_absolute_paths(start.with_knobs({"data": "none", "encoder": "", "budget": 0.0}))
    if not space:
        raise ConfigError("grid must have at least one knob, got none")
    check_sampler(sampler, count)
    held_out_config(start, seeds)
    text = json.dumps([_own_settings(start), _plain(space), sampler, count, list(seeds)], sort_keys=True)
    return Sweep(hashlib.sha256(text.encode()).hexdigest()[:16], start, dict(space), sampler, count, tuple(seeds))


def _own_settings(config: RunConfig) -> dict[str, Any]:
    """What differs from the defaults, so that a knob that a later version adds does not make another sweep of the same settings."""

    def differing(values: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: differing(value, default[name]) if name in default and isinstance(value, Mapping) else value
            for name, value in values.items()
            if name not in default or value != default[name]
        }

    return differing(config.to_dict(), RunConfig().to_dict())


def _plain(space: Space) -> dict[str, Any]:
    return {name: {"low": values.low, "high": values.high} if isinstance(values, Range) else list(values) for name, values in space.items()}


def keep(store: RunStore, sweep: Sweep) -> None:
    """Stores a sweep, in place of an earlier one of the same id. Raises OSError where the folder cannot be written."""
    values = {
        "start": sweep.start.to_dict(),
        "space": _plain(sweep.space),
        **{name: getattr(sweep, name) for name in ("sampler", "count", "created", "user", "executor", "held_out")},
        "seeds": list(sweep.seeds),
        "points": [dict(point) for point in sweep.points],
    }
    path = _path(store, sweep.id)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, json.loads(portable_text(json.dumps(values), store.folder)))


def _path(store: RunStore, sweep_id: str) -> Path:
    return store.folder / SWEEPS / f"{sweep_id}.json"


def forget(store: RunStore, sweep_id: str) -> None:
    """Removes a sweep from the list; its runs stay."""
    _path(store, sweep_id).unlink(missing_ok=True)


def stored(store: RunStore) -> list[Sweep]:
    """All sweeps that this version can read, the newest first."""
    found = []
    for path in (store.folder / SWEEPS).glob("*.json"):
        try:
            found.append(_read(path, store.folder))
        except RunError:
            continue  # of another version: it does not hide the others
    return sorted(found, key=lambda sweep: -sweep.created)


def known(store: RunStore, sweep: Sweep) -> Sweep:
    """The stored sweep of the same id, or the sweep itself."""
    path = _path(store, sweep.id)
    return _read(path, store.folder) if path.exists() else sweep


def _read(path: Path, folder: Path) -> Sweep:
    """Raises RunError for a file that this version cannot read."""
    try:
        values = each_text(read_json(path), lambda text: located(text, folder))
        space = {name: Range(**one) if isinstance(one, dict) else one for name, one in values["space"].items()}
        rest = {name: values[name] for name in ("sampler", "count", "created", "user", "executor", "held_out")}
        start = RunConfig.from_dict(values["start"])
        return Sweep(path.stem, start, space, seeds=tuple(values["seeds"]), points=tuple(values["points"]), **rest)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, CoreError) as error:
        raise RunError(f"sweep {quoted(path.stem)} must be one that this version can read, but is not") from error


def held_out_folder(store: RunStore, sweep: Sweep) -> Path:
    """Where the images are, or will be, on which the networks of the sweep are compared; sweeps with the same start share them."""
    name = sweep.held_out
    if not name:
        config = held_out_config(sweep.start, sweep.seeds)
        text = json.dumps(json.loads(portable_text(json.dumps(_own_settings(config)), store.folder)), sort_keys=True)
        name = hashlib.sha256(text.encode()).hexdigest()[:16]
    return store.folder / UPLOADS / _HELD_OUT / name


def trials_of(store: RunStore, sweep: Sweep, of_points: Sequence[Mapping[str, Any]] | None = None) -> list[Trial]:
    """The runs of the points proposed so far, or of these points. Raises as `trials`."""
    start = sweep.start.with_knobs({"data": str(held_out_folder(store, sweep))})
    return trials(start, sweep.points if of_points is None else of_points, sweep.seeds)


def measured(store: RunStore, wanted: Sequence[Trial]) -> list[tuple[Trial, Run | None]]:
    """Each trial with the newest run that has measured it; else one that will, else one that ended early, else None."""
    if not wanted:
        return []
    first, names = wanted[0].cell.config, list(wanted[0].values)
    known: dict[tuple[Any, ...], list[Run]] = {}
    for run in store.runs(RunFilter(generates=True, model=first.model, data=[first.evaluation.data])):
        for method in run.config.methods:
            known.setdefault(_point(run.config, method, names), []).append(run)
    found: list[tuple[Trial, Run | None]] = []
    for trial in wanted:
        of_point = known.get(_point(trial.cell.config, trial.cell.method, names), [])
        own = [run for run in of_point if measures(run.config, trial.cell) and not store.changes(run.id)]
        found.append((trial, min(own, key=_rank, default=None)))  # of equal ones, the first is the newest
    return found


def complete(found: Sequence[tuple[Trial, Run | None]]) -> list[tuple[Trial, str]]:
    """Of what `measured` found: the trials that were measured, each with the id of its run."""
    return [(trial, run.id) for trial, run in found if run is not None and run.state is RunState.COMPLETE]


def _point(config: RunConfig, method: str, names: Sequence[str]) -> tuple[Any, ...]:
    """Equal for two configs of a sweep whose runs of a method are the same: a knob that only other methods have makes no difference."""
    return method, config.machine.seed, *(config.value(name) for name in own_knobs(names, method))


def distinct(wanted: Sequence[Trial]) -> list[Trial]:
    """Of trials that one run measures, the first."""
    found: dict[tuple[Any, ...], Trial] = {}
    for trial in wanted:
        found.setdefault((trial.share, *_point(trial.cell.config, trial.cell.method, list(trial.values))), trial)
    return list(found.values())


def runs_of(sweep: Sweep, of_points: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Method -> the number of its runs for these points."""
    counts = {}
    for method in sweep.start.methods:
        own = own_knobs(sweep.space, method)
        counts[method] = len({(share_of(point), *(point[name] for name in own)) for point in of_points}) * len(sweep.seeds)
    return counts


def _rank(run: Run) -> int:
    return 0 if run.state is RunState.COMPLETE else 1 if not run.state.is_finished() else 2


def work_of(config: RunConfig) -> float:
    """The work of a run, in images times iterations."""
    return sum(phase.work for phase in phases(config))


def seconds_for_work(store: RunStore, model: str, ids: Sequence[str] | None = None) -> float | None:
    """Seconds for a unit of work, of the newest complete runs of the network, or of those of these ids; None if there is none."""
    which = RunFilter(states=(RunState.COMPLETE,), generates=True, quantizes=True, model=model, ids=ids)
    runs = store.runs(which, _NEWEST)
    seconds = store.results_of([run.id for run in runs], ["seconds"])
    timed = [(work, seconds[run.id]["seconds"]) for run in runs if run.id in seconds and (work := work_of(run.config))]
    return sum(taken for _, taken in timed) / sum(work for work, _ in timed) if timed else None


def seconds_of_sweep(store: RunStore, sweep: Sweep, of_points: Sequence[Mapping[str, Any]]) -> float | None:
    """Estimated seconds of processing for these points of a sweep that has no run yet, with its held-out images; None if unknown.

    Of many points, from some of them, evenly spaced. Raises as `trials`.
    """
    some = of_points[:: -(-len(of_points) // _POINTS_TO_ESTIMATE) or 1]
    costs: dict[str, list[float]] = {}
    for trial in trials_of(store, sweep, some):
        costs.setdefault(trial.cell.method, []).append(trial.cell.cost)
    work = sum(count * mean(costs[method]) for method, count in runs_of(sweep, of_points).items() if count)
    if not held_out_folder(store, sweep).exists():
        work += work_of(held_out_config(sweep.start, sweep.seeds))
    speed = seconds_for_work(store, sweep.start.model)
    return None if speed is None else speed * work


def likely_points(sweep: Sweep) -> list[dict[str, Any]]:
    """The points of a sweep; of a sampler that learns, points like those that it will propose. Raises as `points`."""
    draw = halving_points if sweep.sampler == HALVING else points
    return draw(sweep.space, sweep.count, sweep.start.machine.seed)


def with_points(sweep: Sweep, points: Sequence[Mapping[str, Any]]) -> Sweep:
    """The sweep with these points proposed."""
    return replace(sweep, points=tuple(points))
