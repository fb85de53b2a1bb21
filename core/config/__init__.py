"""Every knob of the engine, in sections with disjoint names, checked when built; and the presets.

A config is a frozen dataclass that is passed whole. Nothing here imports torch, so that listing and validating cost nothing.
"""

from core.config.choices import (
    AUTO_DATA,
    BIT_WIDTHS,
    DATA_NAMES,
    DEVICES,
    EVALUATION_SETS,
    EXPORT_FORMATS,
    IMAGE_FORMATS,
    NETWORK_FORMATS,
    NO_DATA,
    NOISES,
    RANGE_METHODS,
    SCHEDULES,
    RangeChoice,
)
from core.config.evaluation import MOST_ACCURACY_CHECKS, EvaluationConfig
from core.config.generation import GenerationConfig
from core.config.knobs import Checked, add_knob, allowed, flag, has_knob, help_text, knob, knobs, label, live_knobs, remove_knob
from core.config.machine import MachineConfig
from core.config.presets import PRESETS, nearest_preset, preset, preset_for
from core.config.recipes import EncoderTrainingConfig, PretrainConfig
from core.config.run import SECTIONS, RunConfig, every_knob, find_knob, settings
from core.config.training import TrainingConfig
from core.config.upgrade import upgrade, upgrade_generation, upgrade_training

__all__ = [
    "BIT_WIDTHS",
    "DEVICES",
    "AUTO_DATA",
    "DATA_NAMES",
    "EVALUATION_SETS",
    "NO_DATA",
    "EXPORT_FORMATS",
    "IMAGE_FORMATS",
    "MOST_ACCURACY_CHECKS",
    "NETWORK_FORMATS",
    "NOISES",
    "PRESETS",
    "RANGE_METHODS",
    "SCHEDULES",
    "SECTIONS",
    "Checked",
    "EncoderTrainingConfig",
    "EvaluationConfig",
    "GenerationConfig",
    "MachineConfig",
    "PretrainConfig",
    "RangeChoice",
    "RunConfig",
    "TrainingConfig",
    "add_knob",
    "allowed",
    "every_knob",
    "find_knob",
    "flag",
    "has_knob",
    "help_text",
    "knob",
    "knobs",
    "label",
    "live_knobs",
    "nearest_preset",
    "preset",
    "preset_for",
    "remove_knob",
    "settings",
    "upgrade",
    "upgrade_generation",
    "upgrade_training",
]
