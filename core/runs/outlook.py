"""What a run does now, what comes next, and when it ends, from its settings and the speed measured so far. Imports no torch."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.config import RunConfig
from core.generation.methods import DEFAULT_METHODS, METHODS
from core.runs.run import Run

SPEEDS = ("generation", "accuracy", "plan")  # kinds of results that tell how fast stages are
# An image in a step of the training takes as long as 2.1 in an iteration of the generation: a second forward pass, and the gradients of the
# weights (quick on one core: 172 ms for 64 images, 1.25 ms for one; benchmarks/results/qat.json, frontier.json).
_TRAINING_WORK = 2.1
_HELD_OUT_SHARE = 8  # the held-out images are an eighth of the noise images, by each of DEFAULT_METHODS
_FULL_PRECISION = "evaluating full precision"  # a stage whose time is not estimated
_STEPS_TO_MEASURE = 3  # before the speed of a stage is used


@dataclass(frozen=True)
class Phase:
    """A stage of a run that takes long. stage: as the engine announces it. title: for people. work: images times iterations, where a
    training counts _TRAINING_WORK times; 0 for a stage whose time is not estimated.
    """

    stage: str
    title: str
    work: float = 0.0


@dataclass(frozen=True)
class Position:
    """Where a run is. stage: as announced, with `step` of `total` steps, of which `before` were taken before the run was resumed. elapsed:
    seconds since the stage began, or was resumed.
    """

    stage: str
    step: int
    total: int
    before: int
    elapsed: float


def position(run: Run) -> Position:
    """Where a run is now."""
    elapsed = 0.0 if run.stage_started is None else time.time() - run.stage_started
    return Position(run.stage, run.step, run.total, run.stage_done, elapsed)


def phases(config: RunConfig) -> list[Phase]:
    """The long stages of a run, in order."""
    found, generation = [], config.generation
    image_iterations = generation.noise_images * generation.iterations
    if not config.images_from:
        optimized = sum(not METHODS[method].is_reference for method in config.methods)
        found.append(Phase("generation", "generating images", optimized * image_iterations))
    if config.evaluation.encoder:
        found += [Phase(f"diversity of {method}", "measuring diversity") for method in config.methods]
    if config.bits:
        work = len(DEFAULT_METHODS) * image_iterations / _HELD_OUT_SHARE
        found.append(Phase("generating held-out images", "generating held-out images", work))
    for method in config.methods:
        for bits in config.bits:
            own = config.training_for(bits)
            verb = "training" if own.steps else "calibrating"
            work = _TRAINING_WORK * own.steps * own.training_batch_size
            found.append(Phase(f"{verb} {method} {own.width}", f"{verb} {_series(config, method, own.width)}", work))
    return found


def _series(config: RunConfig, method: str, width: str) -> str:
    if len(config.methods) == 1:
        return width
    return f"{METHODS[method].title if method in METHODS else method} {width}"


def in_words(config: RunConfig, at: Position, results: Mapping[str, Any], paused: bool = False) -> str:
    """A line such as "Now generating images: 30 of 800 steps. The run ends in about 3 min. Next: training W4A4."

    results: those of the run of the kinds in SPEEDS. The end is left out of a paused run and as long as no speed is known. What follows
    comes last, because a narrow window clips the line.
    """
    known = phases(config)
    place = _place(known, at.stage)
    now = title(config, at.stage)
    steps = f": {at.step:,} of {at.total:,} steps" if at.total else ""
    seconds = None if paused else seconds_left(config, at, results)
    end = "" if seconds is None else f" The run ends in about {duration(seconds)}."
    rest = known if place is None else known[place + 1 :]
    following = next((phase.title for phase in rest if phase.title != now), "")
    return f"Now {now}{steps}.{end}" + (f" Next: {following}." if following else "")


def done_share(config: RunConfig, at: Position) -> float | None:
    """Share of the whole run's work that is done, 0 to 1; None if no stage's work is estimated."""
    known = phases(config)
    total = sum(phase.work for phase in known)
    if not total:
        return None
    place = _place(known, at.stage)
    before = sum(phase.work for phase in known[:place]) if place is not None else 0.0
    current = 0.0
    if place is not None and known[place].stage == at.stage and at.total:
        current = known[place].work * min(at.step / at.total, 1.0)
    return (before + current) / total


def _place(known: Sequence[Phase], stage: str) -> int | None:
    """Index of the phase that the stage is or belongs to; None before the first."""
    for index, phase in enumerate(known):
        if phase.stage == stage:
            return index
    if stage == _FULL_PRECISION:  # follows the generation, if there is one
        return next((index for index, phase in enumerate(known) if phase.stage == "generation"), None)
    # calibrating, evaluating and analyzing the layers of a network
    series = stage.split()[-2:]
    for index, phase in enumerate(known):
        if phase.stage.split()[-2:] == series:
            return index - 1 if stage.startswith("calibrating ") else index
    references = [index for index, phase in enumerate(known) if phase.stage.startswith("diversity of ")]
    return references[-1] if references and stage.startswith("diversity of ") else None


def title(config: RunConfig, stage: str) -> str:
    """A stage in words."""
    for phase in phases(config):
        if phase.stage == stage:
            return phase.title
    for method in config.methods:
        for width in (config.training_for(bits).width for bits in config.bits):
            stage = stage.replace(f" {method} {width}", f" {_series(config, method, width)}")
    return stage.replace(f"loading {config.model}", "loading the network")


def seconds_left(config: RunConfig, at: Position, results: Mapping[str, Any]) -> float | None:
    """Seconds until the whole run ends, without stages whose time is not estimated; None if no speed is known.

    results: those of the run of the kinds in SPEEDS.
    """
    known = phases(config)
    place = _place(known, at.stage)
    later = sum(phase.work for phase in known[0 if place is None else place + 1 :])
    taken, current = at.step - at.before, 0.0
    measured = place is not None and known[place].stage == at.stage and at.total and taken >= _STEPS_TO_MEASURE and at.elapsed > 0
    if measured:
        assert place is not None
        current = at.elapsed / taken * (at.total - at.step)
        speed = at.elapsed / taken * at.total / known[place].work if known[place].work else None
    else:
        speed = _speed(config, results)
        if place is not None and known[place].stage == at.stage and speed is not None:
            current = speed * known[place].work * (1 - at.step / at.total if at.total else 1)
    if speed is None:
        return current if measured and not later else None
    return current + speed * later


def _speed(config: RunConfig, results: Mapping[str, Any]) -> float | None:
    """Seconds for a unit of work: in finished trainings, else in the finished generation, else as planned; None if unknown."""
    for kind, seconds, work_of in (
        ("accuracy", "training_seconds", lambda one: _TRAINING_WORK * one.get("steps", 0) * config.training.training_batch_size),
        ("generation", "seconds", lambda one: one.get("image_iterations", 0)),
    ):
        found = [value for name, value in results.items() if name.startswith(f"{kind}/") and value.get(seconds)]
        work = sum(work_of(one) for one in found)
        if work:
            return sum(one[seconds] for one in found) / work
    return results.get("plan", {}).get("costs", {}).get("image_iteration") or None  # measured before a run with a budget of time


def duration(seconds: float) -> str:
    """Seconds in the largest unit of which there are at least one and a half: 80 s, 12 min, 3 h."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds > 1.5 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
