"""What a sweep searches: the values or the range of each knob, read from text, and the points of a grid or drawn at random.

A point is a value for each knob. It may also have a share, below 1, of the images and training steps with which it is measured.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import Field, dataclass
from importlib.util import find_spec
from typing import Any

from core.config import every_knob, find_knob, has_knob
from core.errors import ConfigError, RunError, UnknownNameError, quoted

GRID, RANDOM, TPE, HALVING = "grid", "random", "tpe", "halving"
SAMPLERS = (GRID, RANDOM, TPE, HALVING)
SHARE = "share"  # in a point, beside its knobs
_KEPT = 3  # of so many points, successive halving keeps one, and measures it with as many times the images and steps
_MOST_RUNGS = 3
_NOT_SWEPT = (
    "model", "seed", "device", "threads", "gpu_share", "budget", "compile", "shard_size", "data", "encoder", "weight_bits", "layer_bits",
)  # fmt: skip
_BY_BITS = ("steps", "training_lr")  # in forms with a field of their own
_DOTS = ".."
_LOGARITHMIC = 10.0  # ratio of the ends of a logarithmic scale, at least
_DIGITS = 3  # significant digits of a value drawn from a range, so that it can be typed again
MOST_POINTS = 10_000
_DRAWS = 50  # for each point of a random search, before it is given up that there are as many different ones


@dataclass(frozen=True)
class Range:
    """All values of a knob from low to high, both inclusive; logarithmic if both are positive and a factor of 10 or more apart."""

    low: float
    high: float

    @property
    def log(self) -> bool:
        """Whether values are drawn on a logarithmic scale."""
        return is_logarithmic(self.low, self.high)

    def at(self, share: float, whole: bool) -> Any:
        """The value at a share of the range, 0 to 1, with three significant digits; an int if `whole`."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        value = low + share * (high - low)
        return self.rounded(math.exp(value) if self.log else value, whole)

    def rounded(self, value: float, whole: bool) -> Any:
        """The value with three significant digits, within the range; an int if `whole`."""
        if whole:
            return min(max(round(value), int(self.low)), int(self.high))
        return min(max(float(f"{value:.{_DIGITS}g}"), float(self.low)), float(self.high))

    def __str__(self) -> str:
        return f"{self.low:g}{_DOTS}{self.high:g}"


def is_logarithmic(low: float, high: float) -> bool:
    """Whether values of a knob from `low` to `high` are on a logarithmic scale."""
    return low > 0 and high / low >= _LOGARITHMIC


Space = Mapping[str, Sequence[Any] | Range]  # knob -> its values, or the range that they are drawn from


def sweepable(methods: Collection[str]) -> dict[str, Field]:
    """The knobs that a form offers to vary: numbers, switches and choices with a bearing on the result of one of the methods."""
    return {
        name: field
        for name, field in every_knob().items()
        if name not in _NOT_SWEPT
        and field.metadata["affects_result"]
        and (field.metadata["in_form"] or field.metadata["live"] or name in _BY_BITS)
        and (type(field.default) is not str or field.metadata["choices"])
        and any(has_knob(field, method) for method in methods)
    }


def values_of(name: str, texts: Sequence[str]) -> list[Any] | Range:
    """The values of a knob in these texts, or the range in one such as 0.01..0.5.

    Raises UnknownNameError and ConfigError for what is no value of a knob; the config checks whether the knob may have it.
    """
    _, field = find_knob(name)
    if len(texts) == 1 and _DOTS in texts[0] and type(field.default) in (int, float):
        low, high = (_value(field, text) for text in texts[0].split(_DOTS, 1))
        if not low < high:
            raise ConfigError(f"{name} must have a range from a lower to a higher value, got {quoted(texts[0])}")
        return Range(low, high)
    return [_value(field, text) for text in texts]


def space_of(given: Sequence[tuple[str, Sequence[str]]]) -> dict[str, list[Any] | Range]:
    """Knob -> its values or its range, of the texts NAME=VALUE,VALUE or NAME=LOW..HIGH. Raises as `values_of`."""
    space: dict[str, list[Any] | Range] = {}
    for name, texts in given:
        if name in space:
            raise ConfigError(f"grid must have each knob once, got {name} twice")
        space[name] = values_of(name, texts)
    return space


def _value(field: Field, text: str) -> Any:
    kind: Callable[[str], Any] = type(field.default)
    if kind is bool:
        if text not in ("true", "false"):
            raise ConfigError(f"{field.name} must be true or false, got {quoted(text)}")
        return text == "true"
    try:
        return kind(text)
    except (TypeError, ValueError):
        raise ConfigError(f"{field.name} must be {'a whole number' if kind is int else 'a number'}, got {quoted(text)}") from None


def share_of(point: Mapping[str, Any]) -> float:
    """The share of the images and training steps with which a point is measured."""
    return float(point.get(SHARE, 1.0))


def knobs_of(point: Mapping[str, Any]) -> dict[str, Any]:
    """The knobs of a point."""
    return {name: value for name, value in point.items() if name != SHARE}


def rungs(count: int) -> list[tuple[float, int]]:
    """Successive halving of `count` points: the share of each rung and its number of points, the last with share 1."""
    number = 1
    while number < _MOST_RUNGS and count >= _KEPT**number:
        number += 1
    return [(_KEPT ** float(rung - number + 1), max(1, count // _KEPT**rung)) for rung in range(number)]


def halving_points(space: Space, count: int, seed: int) -> list[dict[str, Any]]:
    """Points like those of successive halving, which go on in the order in which they were drawn. Raises as `points`."""
    drawn = points(space, count, seed)
    return [{**point, SHARE: share} for share, number in rungs(len(drawn)) for point in drawn[:number]]


def check_space(space: Space) -> None:
    """Raises UnknownNameError and ConfigError for a knob that is not swept, and for a value that is given twice."""
    for name, values in space.items():
        if name in _NOT_SWEPT:
            raise ConfigError(f"grid must not have {name}, which is the same for all runs of a sweep or belongs to --seeds and --bits")
        find_knob(name)
        if not isinstance(values, Range) and len(set(values)) != len(values):
            raise ConfigError(f"{name} must have each value once in a grid, got {', '.join(map(str, values))}")


def check_sampler(sampler: str, count: int) -> None:
    """Raises UnknownNameError for an unknown sampler, ConfigError for its number of points, and RunError where Optuna is not installed."""
    if sampler not in SAMPLERS:
        raise UnknownNameError("sampler", sampler, SAMPLERS)
    if sampler == GRID and count:
        raise ConfigError(f"points must be 0 with sampler 'grid', which has all of them, got {count}")
    if sampler != GRID and not 1 <= count <= MOST_POINTS:
        raise ConfigError(f"points must be 1 to {MOST_POINTS:,} with sampler {sampler!r}, got {count}")
    if sampler == TPE and not has_optuna():
        raise RunError("sampler 'tpe' needs Optuna, which is not installed: install it with `pip install optuna`")


def has_optuna() -> bool:
    """Whether the sampler TPE can be used."""
    return find_spec("optuna") is not None


def size(space: Space) -> float:
    """The number of different points; infinite with a range of numbers that are not whole."""
    return math.prod(_size(name, values) for name, values in space.items())


def _size(name: str, values: Sequence[Any] | Range) -> float:
    if not isinstance(values, Range):
        return len(values)
    return int(values.high) - int(values.low) + 1 if is_whole(name) else math.inf


def points(space: Space, most: int = 0, seed: int = 0) -> list[dict[str, Any]]:
    """All combinations of the values, or `most` different points at random: with a range, or more combinations than that.

    Raises as `check_space`, and ConfigError for a range without `most`, and for more than MOST_POINTS. Fewer than `most` where there are
    no more.
    """
    check_space(space)
    ranges = {name: values for name, values in space.items() if isinstance(values, Range)}
    if ranges and not most:
        name, values = next(iter(ranges.items()))
        raise ConfigError(f"{name} must have values such as {values.low:g},{values.high:g} in a grid, got the range {values}")
    number = math.prod(len(values) for values in space.values() if not isinstance(values, Range))
    if (most or number) > MOST_POINTS:
        raise ConfigError(f"a sweep must have at most {MOST_POINTS:,} points, got {most or number:,}: draw some of them at random")
    if not ranges and number <= MOST_POINTS:
        found = [dict(zip(space, values)) for values in itertools.product(*space.values())]  # type: ignore[arg-type]
        return random.Random(seed).sample(found, most) if most and most < len(found) else found
    draw = random.Random(seed)
    drawn: dict[tuple[Any, ...], dict[str, Any]] = {}
    for _ in range(_DRAWS * most):
        point = {name: _drawn(name, values, draw) for name, values in space.items()}
        drawn[tuple(point.values())] = point
        if len(drawn) == most:
            break
    return list(drawn.values())


def _drawn(name: str, values: Sequence[Any] | Range, draw: random.Random) -> Any:
    if isinstance(values, Range):
        return values.at(draw.random(), is_whole(name))
    return draw.choice(values)


def is_whole(name: str) -> bool:
    """Whether the values of a knob are whole numbers."""
    return type(find_knob(name)[1].default) is int


def is_number(value: Any) -> bool:
    """Whether a value is a number, which a switch is not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
