"""The command lines that make a run again, elsewhere: without paths of the machine it ran on. Imports no torch."""

import os
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from core.config import PRESETS, GenerationConfig, QuantizationConfig, RunConfig, flag, knobs
from core.layout import user_image_sets


def commands(config: RunConfig) -> list[str]:
    """One `run` where a preset and its flags say everything; else a `generate`, `diversity` and `quantize` each.

    Files and folders are named without where they lay. Live changes cannot be said on a command line, and are left out.
    """
    portable = _portable(config)
    return _as_preset(portable) or _step_by_step(portable, _sets(config))


def bare_name(name: str) -> str:
    """What a file or folder is called, without where it lies; any other name as it is."""
    return Path(name).name if os.path.isabs(name) else name


def _sets(config: RunConfig) -> dict[str, str]:
    """MethodImages -> folder of its images on the machine where the commands run."""
    if not config.images_from:
        return {method: f"images/{method}" for method in config.optimizers}
    root = Path(config.images_from)
    return {method: str(path.relative_to(root.parent)) for method, path in user_image_sets(root, config.optimizers).items()}


def _portable(config: RunConfig) -> RunConfig:
    # a GPU is asked for by nobody who has none; `auto` takes it where there is one
    device = config.generation.device if config.generation.device == "cpu" else "auto"
    shared: dict[str, Any] = {"model": bare_name(config.generation.model), "device": device, "threads": config.generation.threads}
    return replace(
        config,
        generation=replace(config.generation, **shared),
        quantization=replace(config.quantization, **shared, data=bare_name(config.quantization.data)),
    )


def _as_preset(config: RunConfig) -> list[str]:
    """Empty where no preset and the flags of `run` make this config."""
    generation, quantization = config.generation, config.quantization
    if config.images_from or not config.bits or generation.seed != quantization.quantization_seed:
        return []
    shared: dict[str, Any] = {"model": generation.model, "device": generation.device, "threads": generation.threads}
    for name, start in PRESETS.items():
        same = replace(
            start,
            generation=replace(start.generation, **shared, seed=generation.seed),
            quantization=replace(
                start.quantization,
                **shared,
                quantization_seed=generation.seed,
                data=quantization.data,
                layer_bits=quantization.layer_bits,
            ),
            bits=config.bits,
            optimizers=config.optimizers,
            encoder=config.encoder,
        )
        if same.to_dict() == config.to_dict():
            given: dict[str, Any] = {"preset": name}
            for flag_name, value, preset_value in (
                ("model", generation.model, start.generation.model),
                ("bits", config.bits, start.bits),
                ("layer_bits", quantization.layer_bits, start.quantization.layer_bits),
                ("optimizers", config.optimizers, start.optimizers),
                ("encoder", config.encoder, start.encoder),
                ("data", quantization.data, start.quantization.data),
                ("seed", generation.seed, start.generation.seed),
                ("threads", generation.threads, start.generation.threads),
                ("device", generation.device, start.generation.device),
            ):
                if value != preset_value:
                    given[flag_name] = value
            return [_line("run", given)]
    return []


def _step_by_step(config: RunConfig, sets: Mapping[str, str]) -> list[str]:
    """Each stage by its own command. sets: as `_sets` returns them."""
    lines: list[str] = []
    if not config.images_from:
        lines += [_line("generate", {**_changed(config.generation_for(method)), "out": folder}) for method, folder in sets.items()]
    if config.encoder:
        lines.append(_line("diversity", {"": list(sets.values()), "encoder": config.encoder}))
    for method, folder in sets.items():
        for bits in config.bits:
            quantization = config.quantization_for(bits)
            out = f"quantized/{method}/{quantization.width}"
            lines.append(_line("quantize", {"images": folder, **_changed(quantization), "out": out}))
    return lines


def _changed(config: GenerationConfig | QuantizationConfig) -> dict[str, Any]:
    """Knob -> value of those that are not at their default, and of those that say what it is about."""
    always = ("optimizer", "weight_bits", "activation_bits")
    return {
        name: getattr(config, name) for name, knob in knobs(type(config)).items() if getattr(config, name) != knob.default or name in always
    }


def _line(command: str, given: Mapping[str, Any]) -> str:
    words = ["python", "-m", "core", command]
    for name, value in given.items():
        if isinstance(value, bool):
            words.append(flag(name) if value else f"--no-{flag(name)[2:]}")
            continue
        words += [flag(name)] if name else []
        if name == "layer_bits":
            words += [f"{layer}={bits}" for layer, bits in value]
            continue
        words += [str(one) for one in value] if isinstance(value, (list, tuple)) else [str(value)]
    return shlex.join(words)
