"""The command lines that reproduce a run on another machine, without paths of the machine it ran on. Imports no torch."""

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from core.config import PRESETS, EvaluationConfig, GenerationConfig, MachineConfig, RunConfig, TrainingConfig, every_knob, flag, knobs
from core.layout import user_image_sets
from core.models.registry import NETWORK_SUFFIXES, own_name


def commands(config: RunConfig) -> list[str]:
    """One `run` if a preset and flags can express the config; otherwise one `generate`, `diversity` and `quantize` per method and width.

    Files and folders appear without their parent folders. Live changes are omitted, because a command line cannot express them.
    """
    without_paths = portable(config)
    return _as_preset(without_paths) or _step_by_step(without_paths, _sets(config))


def bare_name(name: str) -> str:
    """The name of a file or folder, also behind ARCH: of an encoder, without its parent folders; any other name unchanged."""
    before, separator, path = ("", "", name) if os.path.isabs(name) else name.partition(":")
    return before + separator + Path(path).name if os.path.isabs(path) else name


def _sets(config: RunConfig) -> dict[str, str]:
    """Method -> folder of its images on the machine where the commands run."""
    if not config.images_from:
        return {method: f"images/{method}" for method in config.methods}
    root = Path(config.images_from)
    return {method: str(path.relative_to(root.parent)) for method, path in user_image_sets(root, config.methods).items()}


def portable(config: RunConfig) -> RunConfig:
    """The config without what another machine lacks: parent folders of files, the number of a GPU, the time of a budget."""
    # `auto` instead of a GPU, because the other machine may not have one
    device = config.machine.device if config.machine.device == "cpu" else "auto"
    paths = {name: bare_name(config.value(name)) for name in ("data", "encoder", "real_images")}
    # another machine would plan other numbers for the same time
    return config.with_knobs({"model": _own_file(config.model), "device": device, "budget": 0.0, **paths})


def _own_file(model: str) -> str:
    """The name of a network, with the ending that `--model` takes: weights of other programs were stored in another format."""
    return Path(own_name(model)).stem + Path(model).suffix if model.endswith(NETWORK_SUFFIXES) else bare_name(model)


def _as_preset(config: RunConfig) -> list[str]:
    """One `run` that starts from the nearest preset; empty if `run` cannot produce this config."""
    if config.images_from or not config.bits or config.training_seed is not None:
        return []
    found: list[dict[str, Any]] = []
    for name, start in PRESETS.items():
        changed: dict[str, Any] = {"preset": name}
        if (config.steps_by_bits, config.lr_by_bits) != (start.steps_by_bits, start.lr_by_bits):
            if config.steps_by_bits or config.lr_by_bits:
                continue
            changed |= {"steps": config.training.steps, "training_lr": config.training.training_lr}
        changed |= {key: getattr(config, key) for key in ("methods", "bits") if getattr(config, key) != getattr(start, key)}
        names = [key for key in every_knob() if key != "weight_bits"]
        changed |= {key: config.value(key) for key in names if config.value(key) != start.value(key)}
        found.append(changed)
    if not found:
        return []
    nearest = min(found, key=len)
    return [_line("run", {"--" + name.replace("_", "-"): value for name, value in nearest.items()})]


def _step_by_step(config: RunConfig, sets: Mapping[str, str]) -> list[str]:
    """One command per stage. sets: as `_sets` returns them."""
    lines: list[str] = []
    if not config.images_from:
        changed = _changed(config, (RunConfig, MachineConfig, GenerationConfig))
        lines += [_line("generate", {"--method": method, **changed, "--out": folder}) for method, folder in sets.items()]
    if config.evaluation.encoder:
        lines.append(_line("diversity", {"": list(sets.values()), "--encoder": config.evaluation.encoder}))
    for method, folder in sets.items():
        for bits in config.bits:
            at_width = replace(config, training=config.training_for(bits), machine=replace(config.machine, seed=config.seed_of_training))
            changed = _changed(at_width, (RunConfig, MachineConfig, TrainingConfig, EvaluationConfig))
            out = f"quantized/{method}/{at_width.training.width}"
            lines.append(_line("quantize", {"--images": folder, **changed, "--out": out}))
    return lines


def _changed(config: RunConfig, sections: Sequence[type]) -> dict[str, Any]:
    """Flag -> value of the knobs that differ from their default, and of the bit widths. Knobs that these stages do not use are omitted."""
    always, never = ("weight_bits", "activation_bits"), ("encoder", "compile")
    return {
        flag(knob): config.value(name)
        for section in sections
        for name, knob in knobs(section).items()
        if (config.value(name) != knob.default or name in always) and name not in never
    }


def _line(command: str, given: Mapping[str, Any]) -> str:
    words = ["python", "-m", "core", command]
    for name, value in given.items():
        if isinstance(value, bool):
            words.append(name if value else f"--no-{name[2:]}")
            continue
        words += [name] if name else []
        if name in ("--layer-bits", "--layer-weight-bits"):
            words += [f"{layer}={bits}" for layer, bits in value]
            continue
        words += [str(one) for one in value] if isinstance(value, (list, tuple)) else [str(value)]
    return shlex.join(words)
