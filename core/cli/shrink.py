"""The command `shrink`: a weights file in, the file of a small network out."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from core.cli.commands import begin, given_options, with_weights
from core.cli.output import shrunk_in_words
from core.cli.progress import Progress
from core.config import MachineConfig, RunConfig, TrainingConfig, knobs, preset_for
from core.generation.methods import DEFAULT_METHODS


def shrink(options: Namespace) -> dict[str, Any]:
    """From a weights file to the file of a small network; the rest is found out, or chosen by the budget of time."""
    for bits in options.bits:
        TrainingConfig.check_value("weight_bits", bits)
    from core.export.headline import made_networks, recommended, summary
    from core.export.network import SUFFIXES, export_network, new_file
    from core.models.full_precision import load_model
    from core.runs.store import RunStore

    kinds = {suffix: kind for kind, suffix in SUFFIXES.items()}
    widths = "-".join(map(str, options.bits))
    out = options.out or Path(f"{options.weights.stem}-{widths}bit{SUFFIXES['onnx']}")
    out = new_file(kinds.get(out.suffix.lower(), "onnx"), out)
    options.out = None  # the images and other files stay in the run's folder
    config = with_weights(RunConfig(), options)
    start = preset_for(load_model(config.model, "cpu").spec.size)
    config = replace(start, model=config.model, methods=DEFAULT_METHODS[:1], bits=tuple(options.bits))
    result = begin(
        options, config.with_knobs({**given_options(knobs(MachineConfig), options), **given_options(("data",), options), "encoder": ""}), ""
    )
    networks = made_networks(
        {f"accuracy/{method}/{made['width']}": made for method, of in result["methods"].items() for made in _with_widths(of["accuracy"])}
    )
    chosen = recommended(networks)
    store = RunStore(options.runs)
    try:
        run, config, folder = store.run(result["run"]), store.config(result["run"]), store.run_folder(result["run"])
    finally:
        store.close()
    with Progress() as progress:
        file = export_network(folder, config, kinds[out.suffix], out, chosen.method, chosen.bits, progress, progress)
    headline = summary(networks, options.weights.name)
    if not options.json:
        return {"text": shrunk_in_words(networks, chosen, headline, str(out), run.id)}
    return {**result, "headline": headline, "recommended": chosen.bits, "file": file, "out": str(out)}


def _with_widths(accuracy: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Outcomes as a run reports them, from those by bit width in its result."""
    return [
        {**outcome, "bits": int(bits), "width": f"W{outcome['weight_bits']}A{outcome['activation_bits']}"}
        for bits, outcome in accuracy.items()
    ]
