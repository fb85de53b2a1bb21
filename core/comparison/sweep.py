"""A sweep: runs that differ in the values of some knobs, and how closely their networks follow the full-precision one. Imports no torch.

All networks are compared on the same images, which no run of the sweep is calibrated or trained on: held-out synthetic images, made with
the settings that the sweep starts from and another seed. Real images, labeled or not, take no part.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import mean, stdev
from typing import Any

from core.comparison.cells import Cell, cells
from core.comparison.search_space import knobs_of, share_of
from core.config import RunConfig, find_knob
from core.config.knobs import has_knob
from core.errors import ConfigError
from core.generation.methods import DEFAULT_METHODS, METHODS
from core.runs.store import RunStore

HELD_OUT_IMAGES = 256  # of each of DEFAULT_METHODS; the standard error of an agreement of 90 % is then 1.3 points
_SEED = 2_000_003  # from the seed of the sweep's start to that of the held-out images
_SEEDS = 2**31


@dataclass(frozen=True)
class Trial:
    """A run of a sweep. values: knob -> value, of the knobs that differ. share: of the images and training steps of the sweep's start."""

    values: Mapping[str, Any]
    cell: Cell
    share: float = 1.0


@dataclass(frozen=True)
class Row:
    """A point of a sweep with one method and bit width; an entry of `agreement` and `kl` for each seed, after the last training step.

    values: knob -> value; None in `listed` for a knob that the method does not have.
    agreement: share of the held-out images with the answer of the full-precision network, in percent. kl: mean KL divergence from the
    full-precision network, in nats. standard_error: of the mean agreement, from the number of images. seconds: of the run, the mean.
    share: as in Trial.
    """

    values: Mapping[str, Any]
    method: str
    width: str
    runs: tuple[str, ...]
    seeds: tuple[int, ...]
    agreement: tuple[float, ...]
    kl: tuple[float, ...]
    standard_error: float
    seconds: float
    share: float = 1.0

    @property
    def mean(self) -> float:
        """Mean agreement over seeds."""
        return round(mean(self.agreement), 3)

    @property
    def spread(self) -> float | None:
        """Standard deviation of the agreement between seeds; None with one seed."""
        return round(stdev(self.agreement), 3) if len(self.agreement) > 1 else None

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "values": dict(self.values), "mean": self.mean, "spread": self.spread}


def trials(start: RunConfig, grid_points: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> list[Trial]:
    """The runs: every point with every method and seed. start: with the held-out images as its evaluation images. Raises as `cells`."""
    found = []
    for point in grid_points:
        values, share = knobs_of(point), share_of(point)
        config = start.with_knobs(values)
        # a value that is swept holds at every bit width
        config = replace(config, steps_by_bits={}) if "steps" in values else config
        config = replace(config, lr_by_bits={}) if "training_lr" in values else config
        found += [Trial(values, cell, share) for cell in cells(_scaled(config, share), seeds)]
    return found


def _scaled(config: RunConfig, share: float) -> RunConfig:
    """With a share of the images and training steps."""
    if share == 1:
        return config
    images = math.ceil(share * config.generation.images)
    steps = {bits: math.ceil(share * config.training_for(bits).steps) for bits in config.bits}
    batch = min(config.generation.batch_size, images)
    return replace(config.with_knobs({"images": images, "batch_size": batch}), steps_by_bits=steps)


def held_out_config(start: RunConfig, seeds: Sequence[int]) -> RunConfig:
    """The run that makes the images on which the networks are compared. Raises ConfigError where its seed is one of the sweep's."""
    seed = (start.machine.seed + _SEED) % _SEEDS
    if seed in seeds:
        raise ConfigError(f"seeds must not have {seed}, which is that of the held-out images")
    count = HELD_OUT_IMAGES
    values = {
        "images": count,
        "shard_size": 0,
        "snapshots": 1,
        "batch_size": min(start.generation.batch_size, count),
        "seed": seed,
        "encoder": "",
    }
    return replace(start, methods=DEFAULT_METHODS, bits=()).with_knobs(values)


def rows(store: RunStore, measured: Sequence[tuple[Trial, str]]) -> list[Row]:
    """The table by bit width, the largest share and the highest agreement first. measured: trials, each with the id of its complete run."""
    grouped: dict[tuple[Any, ...], list[tuple[Trial, str]]] = {}
    for trial, run in measured:
        for bits in trial.cell.config.bits:
            grouped.setdefault((bits, trial.cell.method, trial.share, *trial.values.items()), []).append((trial, run))
    found = [(bits, _row(store, own, bits)) for (bits, *_), own in grouped.items()]
    return [row for _, row in sorted(found, key=lambda one: (one[0], -one[1].share, -one[1].mean))]


def own_knobs(names: Iterable[str], method: str) -> list[str]:
    """Those of the knobs that a method has, in their order."""
    return [name for name in names if has_knob(find_knob(name)[1], method)]


def listed(table: Sequence[Row]) -> list[Row]:
    """The table with each point once: points of a method that differ only in knobs that it does not have are one, with the same runs."""
    found: dict[tuple[Any, ...], Row] = {}
    for row in table:
        own = own_knobs(row.values, row.method)
        values = {name: value if name in own else None for name, value in row.values.items()}
        found.setdefault((row.width, row.method, row.share, *values.values()), replace(row, values=values))
    return list(found.values())


def _row(store: RunStore, measured: Sequence[tuple[Trial, str]], bits: int) -> Row:
    measured = sorted(measured, key=lambda one: one[0].cell.seed)
    trial = measured[0][0]
    method, width = trial.cell.method, trial.cell.config.training_for(bits).width
    outcomes = [store.result(run, f"accuracy/{method}/{width}") for _, run in measured]
    figures = [outcome["real"].get("trained") or outcome["real"]["calibrated"] for outcome in outcomes]
    share = mean(figure["agreement"] for figure in figures) / 100
    images = sum(figure["images"] for figure in figures)
    return Row(
        trial.values,
        method,
        width,
        tuple(run for _, run in measured),
        tuple(one.cell.seed for one, _ in measured),
        tuple(figure["agreement"] for figure in figures),
        tuple(figure["kl"] for figure in figures),
        round(100 * math.sqrt(share * (1 - share) / images), 3),
        round(mean(store.result(run, "seconds") or 0.0 for _, run in measured), 1),
        trial.share,
    )


def as_text(table: Sequence[Row]) -> str:
    """The table for a terminal, and what its columns mean."""
    if not table:
        return "Nothing was measured."
    names = list(table[0].values)
    has_shares = any(row.share != 1 for row in table)
    lines = [["bits", "method", *names, *(["share"] if has_shares else []), "seeds", "agreement", "error", "spread", "KL", "seconds"]]
    for row in table:
        spread = "" if row.spread is None else f"{row.spread:.2f}"
        figures = [f"{row.mean:.2f}", f"{row.standard_error:.2f}", spread, f"{mean(row.kl):.4f}", f"{row.seconds:.0f}"]
        values = ["-" if value is None else f"{value:g}" if isinstance(value, float) else str(value) for value in row.values.values()]
        shares = [f"{row.share:.2f}"] if has_shares else []
        lines.append([row.width, METHODS[row.method].title, *values, *shares, str(len(row.seeds)), *figures])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]
    explained = (
        f"Agreement with full precision in percent after the last training step, mean over seeds, on the same "
        f"{2 * HELD_OUT_IMAGES} held-out synthetic images for all runs; error: its standard error from the number of images; spread: its "
        "standard deviation between seeds; KL: mean divergence from full precision in nats. No real image takes part."
        + (" Share: of the images and training steps; points of different shares do not compare." if has_shares else "")
    )
    return "\n".join([*text, "", explained])
