"""What may follow a complete run: each a change of its settings, with which the Studio opens a filled form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from core.config import BIT_WIDTHS, RunConfig
from core.generation.methods import METHODS
from core.runs.run import Run
from dashboard import session


@dataclass(frozen=True)
class NextRun:
    """label, icon, help: of its button. settings(run): of the form; None where the run leaves nothing to change."""

    label: str
    icon: str
    help: str
    settings: Callable[[Run], RunConfig | None]


def _more_bits(run: Run) -> RunConfig | None:
    """The next bit width above those of the run, on its images."""
    wider = [bits for bits in BIT_WIDTHS if bits > max(run.config.bits, default=max(BIT_WIDTHS))]
    if not wider:
        return None
    config, methods = replace(run.config, bits=(wider[0],)), session.image_methods(run)
    if not methods:
        return None if config.images_from else config
    images = str(session.store().images_folder(run))
    return replace(config, methods=tuple(methods), images_from=images).with_knobs({"encoder": "", "budget": 0.0})


def _more_time(run: Run) -> RunConfig | None:
    """Twice the budget; without one, twice the iterations and training steps."""
    config = run.config
    if config.machine.budget:
        return config.with_knobs({"budget": 2 * config.machine.budget})
    steps = {bits: 2 * config.training_for(bits).steps for bits in config.steps_by_bits.keys() | config.lr_by_bits.keys()}
    values = {"steps": 2 * config.training.steps}
    if not config.images_from:
        values["iterations"] = 2 * config.generation.iterations
    return config.with_steps(steps).with_knobs(values)


def _another_method(run: Run) -> RunConfig | None:
    """The first method that the run does not have, beside its own."""
    others = [name for name, method in METHODS.items() if name not in run.config.methods and not method.is_reference]
    return None if run.config.images_from or not others else replace(run.config, methods=(*run.config.methods, others[0]))


def _another_seed(run: Run) -> RunConfig | None:
    """The next seed."""
    return run.config.with_knobs({"seed": run.config.machine.seed + 1})


NEXT_RUNS: Mapping[str, NextRun] = {
    "bits": NextRun("More bits", ":material/add:", "The next bit width, on the same images.", _more_bits),
    "time": NextRun("More time", ":material/timer:", "Twice the budget, or twice the iterations and training steps.", _more_time),
    "method": NextRun("Another method", ":material/balance:", "The same settings with one more method.", _another_method),
    "seed": NextRun("Another seed", ":material/casino:", "The same settings with the next seed: Methods counts both.", _another_seed),
}


def settings_of(run: Run, name: str) -> RunConfig:
    """The settings of the run after the change `name`; its own where there is no such change."""
    following = NEXT_RUNS.get(name)
    return (following.settings(run) if following else None) or run.config
