"""Branches of a run: from one of its iterations on, the same noise, labels and momentum go on with other live values.

A branch is a run of its own with a parent, so that it is queued, resumed and followed as any run is. It has the settings of its parent, and
computes the batch of its iteration again with the live changes of the parent (core/stages/branch.py). No list of runs has it unless it asks
for the branches of a run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from core.config import GenerationConfig, RunConfig, every_knob, has_knob, live_knobs
from core.errors import RunError, UnknownNameError
from core.generation.methods import counts_epochs, is_reference
from core.runs.lists import RunFilter
from core.runs.records import Records
from core.runs.run import Run
from core.runs.store import RunStore

MOST = 4  # of a run


def branches(store: RunStore, run_id: str) -> list[Run]:
    """The branches of a run, oldest first."""
    return store.runs(RunFilter(branches_of=run_id))[::-1]


def create_branch(store: RunStore, run_id: str, at: int, values: Mapping[str, float], user: str = "") -> str:
    """Queues a branch and returns its id.

    at: the last step that both share, counted from 1 over all batches; not the last of a batch, because a branch ends with its batch.
    values: live knob -> value from the next step on; those that are not in it stay as in the run, with its changes up to now. Only methods
    that have one of these knobs are in the branch; without values, all but references.

    Raises RunError for a step that the run has not computed or that ends a batch, a run that generates no images with live knobs, a branch,
    and a run that has MOST branches; UnknownNameError for a knob that none of its methods has; ConfigError for a value out of range.
    """
    run, config = store.run(run_id), store.config(run_id)
    if objection := why_not(run):
        raise RunError(f"run {run_id!r} cannot have a branch: {objection}")
    if len(branches(store, run_id)) >= MOST:
        raise RunError(f"run {run_id!r} must have fewer than {MOST} branches to get another one: remove one first")
    per_batch = config.generation.iterations
    computed = min(Records(store.database).last_steps(run_id, "generation").get(method, 0) for method in _optimized(config))
    if not 1 <= at <= computed or at % per_batch == 0:
        raise RunError(
            f"step of a branch must be one that the run has computed, 1 to {computed}, and not the last of a batch of {per_batch}, got {at}"
        )
    known = {name: knob for name, knob in live_knobs(GenerationConfig).items() if any(has_knob(knob, one) for one in _optimized(config))}
    for name, value in values.items():
        if name not in known:
            raise UnknownNameError("live knob", name, known)
        GenerationConfig.check_value(name, value)
    methods = [method for method in _optimized(config) if not values or any(has_knob(known[name], method) for name in values)]
    own = [
        {"method": method, "step": at, "name": name, "value": value}
        for method in methods
        for name, value in values.items()
        if has_knob(known[name], method)
    ]
    return store.create(
        _of_branch(config, methods),
        branch_name(config, at, values),
        user,
        parent=run_id,
        branch_at=at,
        changes=[*_repeated(store, run_id, methods, at, values), *own],
    )


def why_not(run: Run) -> str:
    """Why a run cannot have branches, whatever it has computed; "" if it can."""
    if run.parent:
        return "it is a branch"
    if run.config.images_from:
        return "its images were given"
    return "" if _optimized(run.config) else "nothing optimizes the images of a reference"


def _optimized(config: RunConfig) -> list[str]:
    return [method for method in config.methods if not is_reference(method)]


def _of_branch(config: RunConfig, methods: list[str]) -> RunConfig:
    """The settings of a run for a branch with these methods: images alone, in the same batches."""
    config = replace(config, methods=tuple(methods), bits=(), steps_by_bits={}, lr_by_bits={})
    return config.with_knobs({"encoder": "", "budget": 0})


def _repeated(store: RunStore, run_id: str, methods: list[str], at: int, values: Mapping[str, float]) -> list[dict[str, Any]]:
    """The live changes of the run that its branch repeats: all before the branch, and later ones of other knobs."""
    return [
        change
        for change in Records(store.database).past(run_id)
        if change["method"] in methods and (change["step"] < at or change["name"] not in values)
    ]


def branch_name(config: RunConfig, at: int, values: Mapping[str, float]) -> str:
    """What differs, and from where: "ε 0.2 from iteration 14 of batch 1"."""
    known = every_knob()
    parts = [f"{known[name].metadata['symbol'] or name} {value:g}" for name, value in values.items()]
    batch, iteration = divmod(at - 1, config.generation.iterations)
    where = f" of {'epoch' if counts_epochs(config.methods) else 'batch'} {batch + 1}" if len(config.generation.batches) > 1 else ""
    return f"{', '.join(parts) or 'unchanged'} from iteration {iteration + 1}{where}"
