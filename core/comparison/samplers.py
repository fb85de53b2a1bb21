"""How a sweep proposes its points: all at once, or in rounds that learn from what was measured. Optuna is imported only where it is used.

To add a sampler: a class with the methods of `Sampler`, and a row in _ADAPTIVE and SAMPLERS (search_space.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from core.comparison.search_space import HALVING, SHARE, TPE, Range, Space, check_space, is_number, is_whole, knobs_of, points, rungs, size

ROUND = 4  # points that are proposed together: on a cluster they are computed side by side
_RANDOM = 8  # points before the first that learns from others
_DRAWS = 50  # in a row that may propose known points, before it is given up that there are others

Point = Mapping[str, Any]


class Sampler(Protocol):
    """Proposes the points of one sweep. The same results give the same points."""

    def propose(self) -> list[dict[str, Any]]:
        """The next points, different from all before; empty after the last."""

    def tell(self, results: Sequence[tuple[Point, float | None]]) -> None:
        """The objective of the points of the last proposal, higher is better; None where nothing was measured."""


class AllAtOnce:
    """The points of a grid, or at random."""

    def __init__(self, space: Space, count: int, seed: int) -> None:
        self._points = points(space, count, seed)

    def propose(self) -> list[dict[str, Any]]:
        """All points, then none."""
        found, self._points = self._points, []
        return found

    def tell(self, results: Sequence[tuple[Point, float | None]]) -> None:
        """Nothing depends on it."""


class SuccessiveHalving:
    """Many points at random with few images and training steps, then the best third with three times as many, and so on, up to the
    run's own: successive halving (Jamieson and Talwalkar, AISTATS 2016), with thirds as in ASHA (Li et al., MLSys 2020).
    """

    def __init__(self, space: Space, count: int, seed: int) -> None:
        self._points = points(space, count, seed)
        self._rungs = rungs(len(self._points))

    def propose(self) -> list[dict[str, Any]]:
        """The points of the next rung, the best so far first."""
        if not self._rungs:
            return []
        share, number = self._rungs.pop(0)
        return [{**point, SHARE: share} for point in self._points[:number]]

    def tell(self, results: Sequence[tuple[Point, float | None]]) -> None:
        """Orders the points of the rung, those without an objective last."""
        ranked = sorted(results, key=lambda one: -math.inf if one[1] is None else one[1], reverse=True)  # stable
        self._points = [knobs_of(point) for point, _ in ranked]


class TreeParzen:
    """Tree-structured Parzen estimators by Optuna (Bergstra et al., NeurIPS 2011): after _RANDOM points at random, points that are likely
    among the better ones and unlikely among the others.

    Numbers that are listed are searched in their order, other values as categories.
    """

    def __init__(self, space: Space, count: int, seed: int) -> None:
        import optuna

        check_space(space)
        self._optuna, self._space, self._count = optuna, space, min(count, size(space))
        with _quiet():
            sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=_RANDOM)
            self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._asked: list[tuple[Any, dict[str, Any]]] = []
        self._known: dict[tuple[Any, ...], float | None] = {}  # values of a point -> its objective

    def propose(self) -> list[dict[str, Any]]:
        """At most ROUND points."""
        self._asked = []
        found: list[dict[str, Any]] = []
        for _ in range(_DRAWS * ROUND):
            if len(found) == ROUND or len(self._known) == self._count:
                break
            trial = self._study.ask()
            point = {name: self._suggested(trial, name, values) for name, values in self._space.items()}
            key = tuple(point.values())
            if key not in self._known:
                self._known[key] = None
                found.append(point)
            self._asked.append((trial, point))
        return found

    def _suggested(self, trial: Any, name: str, values: Sequence[Any] | Range) -> Any:
        if isinstance(values, Range):
            if is_whole(name):
                return trial.suggest_int(name, int(values.low), int(values.high), log=values.log)
            return values.rounded(trial.suggest_float(name, values.low, values.high, log=values.log), False)
        if all(map(is_number, values)):
            return sorted(values)[trial.suggest_int(name, 0, len(values) - 1)]
        return trial.suggest_categorical(name, list(values))

    def tell(self, results: Sequence[tuple[Point, float | None]]) -> None:
        """What Optuna learns from; a point that was proposed before counts again."""
        self._known |= {tuple(point.values()): objective for point, objective in results}
        for trial, point in self._asked:
            objective = self._known[tuple(point.values())]
            failed = {"state": self._optuna.trial.TrialState.FAIL} if objective is None else {"values": objective}
            self._study.tell(trial, **failed)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's lines on stderr."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


_ADAPTIVE: Mapping[str, Callable[[Space, int, int], Sampler]] = {TPE: TreeParzen, HALVING: SuccessiveHalving}


def is_adaptive(sampler: str) -> bool:
    """Whether the points of a sampler depend on what was measured."""
    return sampler in _ADAPTIVE


def make_sampler(sampler: str, space: Space, count: int, seed: int) -> Sampler:
    """A sampler of SAMPLERS. Raises as `points`."""
    return _ADAPTIVE.get(sampler, AllAtOnce)(space, count, seed)
