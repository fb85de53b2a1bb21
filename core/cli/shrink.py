"""The command `shrink`: a weights file in, the file of a small network out."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.cli.commands import compute, given_options, new_run, prepared_for, with_weights
from core.cli.output import shrunk_in_words
from core.cli.progress import Progress
from core.config import MachineConfig, RunConfig, knobs, preset_for
from core.export.formats import SUFFIXES, kind_of, new_file
from core.export.headline import made_networks, recommended
from core.export.targets import target_of
from core.generation.methods import DEFAULT_METHODS
from core.layout import RECOMMENDED

if TYPE_CHECKING:
    from core.runs.store import RunStore


def shrink(options: Namespace) -> dict[str, Any]:
    """From a weights file to the file of a small network; the rest is found out, or chosen by the budget of time.

    Resumes the run of an earlier call with the same arguments that was interrupted.
    """
    asked = RunConfig(methods=DEFAULT_METHODS[:1], bits=tuple(options.bits))  # refused before anything is read
    widths = "-".join(map(str, options.bits))
    out = options.out or Path(f"{options.weights.stem}-{widths}bit{SUFFIXES['onnx']}")
    kind = kind_of(out)
    target_of(kind)  # refused before hours of work if its package is missing
    out, subset = new_file(kind, out), f"{RECOMMENDED}/{kind}"
    config = _config(with_weights(asked, options), options)
    from core.runs.store import RunStore

    with Progress() as progress, closing(RunStore(options.runs)) as store:
        prepared, run_id = None, _unfinished(store, config, os.path.realpath(out), subset)
        if run_id:
            store.resume(run_id)
            progress.resumed(run_id)
        else:
            prepared = prepared_for(config, progress)
            run_id = new_run(store, config, out, subset)
        result = compute(store, run_id, progress, prepared)
    if options.json:
        return {**result, "out": str(out)}
    networks = made_networks(
        {f"accuracy/{method}/{made['width']}": made for method, of in result["methods"].items() for made in _with_widths(of["accuracy"])}
    )
    return {"text": shrunk_in_words(networks, recommended(networks), result["headline"], str(out), run_id)}


def _config(asked: RunConfig, options: Namespace) -> RunConfig:
    """The settings of the preset for the size of the network's images, with what was asked for."""
    from core.models.full_precision import find_model

    start = replace(preset_for(find_model(asked.model)[1].size), model=asked.model, methods=asked.methods, bits=asked.bits)
    return start.with_knobs({**given_options(knobs(MachineConfig), options), **given_options(("data", "size"), options), "encoder": ""})


def _unfinished(store: RunStore, config: RunConfig, out: str, output_subset: str) -> str:
    """The newest run with these settings and this file that ended early; "" if there is none."""
    from core.runs.lists import RunFilter
    from core.runs.run import with_absolute_paths
    from core.runs.state import RunState

    store.mark_interrupted()
    resumable = RunFilter(states=[state for state in RunState if state.can_resume()], model=config.model)
    asked = _without_plan(with_absolute_paths(config))
    same = (
        run.id for run in store.runs(resumable) if (run.out, run.output_subset, _without_plan(run.config)) == (out, output_subset, asked)
    )
    return next(same, "")


def _without_plan(config: RunConfig) -> RunConfig:
    """The config without the settings that a budget of time, or the memory that is free, changes when the run begins."""
    training = replace(RunConfig().training, size=config.training.size)
    return replace(config, generation=RunConfig().generation, training=training, steps_by_bits={})


def _with_widths(accuracy: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Outcomes as a run reports them, from those by bit width in its result."""
    return [
        {**outcome, "bits": int(bits), "width": f"W{outcome['weight_bits']}A{outcome['activation_bits']}"}
        for bits, outcome in accuracy.items()
    ]
