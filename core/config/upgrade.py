"""Reads what earlier versions stored: stored runs, `--json` output and files of networks are an interface."""

from collections.abc import Mapping
from typing import Any

from core.config.choices import NORMS
from core.config.generation import GenerationConfig
from core.config.knobs import knobs
from core.config.machine import MachineConfig
from core.config.training import TrainingConfig
from core.errors import ConfigError, quoted

# knobs that were in both sections of version 1 under one name
_ONCE_SHARED = {"batch_size": "training_batch_size"}
_NOT_OF_GENERATION = ("model", "optimizer", "seed", "threads", "device", "compile")
_NOT_OF_TRAINING = ("model", "threads", "device", "data", "evaluations", "quantization_seed")


def upgrade(values: Mapping[str, Any]) -> dict[str, Any]:
    """The dictionary of a RunConfig of any version in today's form; one that is neither is returned as it is, to be refused.

    Version 1 had `optimizers` in place of `methods`, and two sections, `generation` and `quantization`, that both had a model, threads and
    a device; those of the generation applied. A training had its own seed.
    """
    values = dict(values)
    if "optimizers" in values:
        values.setdefault("methods", values.pop("optimizers"))
    old = values.pop("quantization", None)
    generation = values.get("generation", {})
    is_old = old is not None or {"encoder", "activation_bits"} & values.keys()
    if not isinstance(generation, Mapping) or not isinstance({} if old is None else old, Mapping):
        return {**values, "quantization": old}
    if not is_old and not {"model", "seed", "optimizer", "threads", "device", "compile"} & generation.keys():
        training = values.get("training")
        current = {"generation": upgrade_generation(generation)} if generation else {}
        return {**values, **current, **({"training": upgrade_training(training)} if isinstance(training, Mapping) else {})}
    generation, old = _renamed(GenerationConfig, generation), dict(old or {})
    model, other = generation.pop("model", None), old.get("model")
    if None not in (model, other) and model != other:
        raise ConfigError(f"model must be one network for the whole run, got {quoted(model)} and {quoted(other)}")
    generation.pop("optimizer", None)
    machine = {name: generation.pop(name) for name in knobs(MachineConfig) if name in generation}
    upgraded = {"model": model or other} if model or other else {}
    seed = old.get("quantization_seed")
    if seed is not None and values.get("images_from"):
        machine["seed"] = seed
    elif seed is not None and seed != machine.get("seed", 0):
        upgraded["training_seed"] = seed
    training = upgrade_training(old)
    training["activation_bits"] = values.pop("activation_bits", 0)
    evaluation = {"data": old.get("data", "embedded"), "accuracy_checks": old.get("evaluations"), "encoder": values.pop("encoder", None)}
    generation = upgrade_generation(generation)
    sections = {
        "machine": machine,
        "generation": generation,
        "training": training,
        "evaluation": {name: value for name, value in evaluation.items() if value is not None},
    }
    return {**upgraded, **values, **sections}


def upgrade_generation(values: Mapping[str, Any]) -> dict[str, Any]:
    """The dictionary of a GenerationConfig of any version, such as that in the manifest of images, in today's form."""
    values = {name: value for name, value in values.items() if name not in _NOT_OF_GENERATION}
    if "noise" in values:  # a stored section, with every knob
        values = {"bns_form": NORMS, **values}
    return _renamed(GenerationConfig, values)


def upgrade_training(values: Mapping[str, Any]) -> dict[str, Any]:
    """The dictionary of a TrainingConfig of any version, such as that in the file of a quantized network, in today's form."""
    values = {name: value for name, value in values.items() if name not in _NOT_OF_TRAINING}
    if "layer_bits" in values:  # a stored section, with every knob
        values = {"keep": "trained", "correct_statistics": False, **values}
    return _renamed(TrainingConfig, {_ONCE_SHARED.get(name, name): value for name, value in values.items()})


def _renamed(config_class: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """With the names that the knobs have today."""
    names = {old: name for name, knob_field in knobs(config_class).items() for old in knob_field.metadata["old_names"]}
    return {names.get(name, name): value for name, value in values.items()}
