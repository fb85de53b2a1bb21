"""The config of a whole run: a network, sections with disjoint names, the methods and the bit widths."""

import math
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, replace
from types import MappingProxyType
from typing import Any, Self

from core.config.choices import BIT_WIDTHS
from core.config.evaluation import EvaluationConfig
from core.config.generation import GenerationConfig
from core.config.knobs import Checked, check_text, has_knob, knob, knobs
from core.config.machine import MachineConfig
from core.config.training import TrainingConfig
from core.config.upgrade import upgrade
from core.errors import ConfigError, UnknownNameError, quoted
from core.generation.methods import DEFAULT_METHODS, METHODS

SECTIONS: Mapping[str, type[Checked]] = MappingProxyType(
    {"machine": MachineConfig, "generation": GenerationConfig, "training": TrainingConfig, "evaluation": EvaluationConfig}
)


@dataclass(frozen=True)
class RunConfig(Checked):
    """A whole run: images by each method, their diversity, and the quantized network at each bit width.

    methods: rows of core/generation/methods.py; with `images_from`, the names of the given sets. bits: bit widths of the weights; empty:
    generation and diversity only. steps_by_bits, lr_by_bits override training.steps and training.training_lr at a bit width: fewer bits
    need more of both. images_from: a folder, or the images of an earlier run; then nothing is generated. training_seed: None, but for
    runs stored by earlier versions with a separate seed for the training.
    """

    model: str = knob(
        "resnet20_cifar10",
        "The full-precision network: a name from `list`; or pytorchcv:NAME, torchvision:NAME or timm:NAME, downloaded on first use; or a "
        ".safetensors file written by `pretrain`.",
        paper="pytorchcv's resnet20_cifar10, resnet20_cifar100, resnet18, mobilenetv2_w1 and resnet50",
        affects_result=False,
    )
    machine: MachineConfig = field(default_factory=MachineConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    methods: tuple[str, ...] = DEFAULT_METHODS
    bits: tuple[int, ...] = (3, 4, 5)
    steps_by_bits: Mapping[int, int] = field(default_factory=dict)
    lr_by_bits: Mapping[int, float] = field(default_factory=dict)
    images_from: str = ""
    training_seed: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_types()
        object.__setattr__(self, "methods", tuple(self.methods))
        object.__setattr__(self, "bits", tuple(self.bits))
        # the keys of a JSON object are strings
        for name in ("steps_by_bits", "lr_by_bits"):
            by_bits = {int(k) if isinstance(k, str) and k.isdecimal() and len(k) == 1 else k: v for k, v in getattr(self, name).items()}
            object.__setattr__(self, name, MappingProxyType(by_bits))
        if not self.methods:
            raise ConfigError(f"methods must name at least one of {', '.join(METHODS)}")
        for name in self.methods:
            if name not in METHODS and not self.images_from:
                raise UnknownNameError("method", name, METHODS)
        for bits in self.bits:
            if type(bits) is not int or bits not in BIT_WIDTHS:
                raise ConfigError(f"bits must be one of {', '.join(map(str, BIT_WIDTHS))}, got {quoted(bits)}")
        for name in ("methods", "bits"):
            if len(set(getattr(self, name))) != len(getattr(self, name)):
                raise ConfigError(f"{name} must have each value once, got {', '.join(map(str, getattr(self, name)))}")
        for knob_name, values in (("steps", self.steps_by_bits), ("training_lr", self.lr_by_bits)):
            for bits, value in values.items():
                TrainingConfig.check_value("weight_bits", bits)
                TrainingConfig.check_value(knob_name, value)

    def _check_types(self) -> None:
        kinds: tuple[tuple[str, Any, str], ...] = (
            *((name, section, f"a {section.__name__}") for name, section in SECTIONS.items()),
            ("methods", (list, tuple), "a list of names"),
            ("bits", (list, tuple, range), "a list of bit widths"),
            ("steps_by_bits", Mapping, "a mapping of bit widths to steps"),
            ("lr_by_bits", Mapping, "a mapping of bit widths to step sizes"),
            ("images_from", str, "text"),
        )
        for name, kind, words in kinds:
            if not isinstance(getattr(self, name), kind):
                raise ConfigError(f"{name} must be {words}, got {quoted(getattr(self, name))}")
        for name in self.methods:
            if not isinstance(name, str):
                raise ConfigError(f"methods must be names such as {', '.join(METHODS)}, got {quoted(name)}")
            # with given images any name is a method's, and it becomes the name of a folder
            check_text("methods", name)
            if name in ("", ".", "..") or "/" in name or "\\" in name:
                raise UnknownNameError("method", name, METHODS)
        check_text("images_from", self.images_from)
        if self.training_seed is not None:
            MachineConfig.check_value("seed", self.training_seed)

    def __reduce__(self) -> tuple:
        # copied and pickled through plain values: a mapping proxy can be neither
        return type(self).from_dict, (self.to_dict(),)

    def training_for(self, bits: int) -> TrainingConfig:
        """The training section at one bit width, with the width of the activations written out."""
        return replace(
            self.training,
            weight_bits=bits,
            activation_bits=self.training.activation_bits or bits,
            steps=self.steps_by_bits.get(bits, self.training.steps),
            training_lr=self.lr_by_bits.get(bits, self.training.training_lr),
        )

    def with_steps(self, steps: Mapping[int, int]) -> Self:
        """With these training steps at bit widths. Where they are more than before, the step size of `lr_by_bits` falls with their square
        root: a long training at the step size of a short one leaves what the full-precision network knew.
        """
        rates = dict(self.lr_by_bits)
        for bits in rates.keys() & steps.keys():
            before = self.training_for(bits).steps
            if 0 < before < steps[bits]:
                rates[bits] *= math.sqrt(before / steps[bits])
        return replace(self, steps_by_bits={**self.steps_by_bits, **steps}, lr_by_bits=rates)

    @property
    def compares(self) -> bool:
        """Whether some bit width keeps the better of its calibrated and its trained network."""
        return self.training.keep == "better" and any(self.training_for(bits).steps for bits in self.bits)

    @property
    def seed_of_training(self) -> int:
        """The seed of the training: the run's, but for some runs of earlier versions."""
        return self.machine.seed if self.training_seed is None else self.training_seed

    def value(self, name: str) -> Any:
        """The value of any knob. Raises UnknownNameError."""
        section, _ = find_knob(name)
        return getattr(getattr(self, section) if section else self, name)

    def with_knobs(self, values: Mapping[str, Any]) -> Self:
        """A copy with these knobs, of whichever sections. Raises UnknownNameError, and ConfigError for a value out of range."""
        sections: dict[str, dict[str, Any]] = {}
        for name, value in values.items():
            sections.setdefault(find_knob(name)[0], {})[name] = value
        own = sections.pop("", {})
        return replace(self, **own, **{name: replace(getattr(self, name), **changed) for name, changed in sections.items()})

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, fit for JSON."""
        values: dict[str, Any] = {
            "model": self.model,
            **{name: getattr(self, name).to_dict() for name in SECTIONS},
            "methods": list(self.methods),
            "bits": list(self.bits),
            "steps_by_bits": {str(bits): steps for bits, steps in self.steps_by_bits.items()},
            "lr_by_bits": {str(bits): lr for bits, lr in self.lr_by_bits.items()},
            "images_from": self.images_from,
        }
        return values if self.training_seed is None else {**values, "training_seed": self.training_seed}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The reverse of `to_dict`; also reads what earlier versions stored. Raises ConfigError for a key that is not a knob."""
        if isinstance(values, Mapping):
            values = upgrade(values)
            values = {**values, **{name: section.from_dict(values.get(name, {})) for name, section in SECTIONS.items()}}
        return super().from_dict(values)


def every_knob() -> dict[str, Field]:
    """Name -> field of every knob of a run, the network first."""
    classes: list[type] = [RunConfig, *SECTIONS.values()]
    return {name: knob_field for config_class in classes for name, knob_field in knobs(config_class).items()}


def find_knob(name: str) -> tuple[str, Field]:
    """The section that has the knob ("" for the network) and its field. Raises UnknownNameError."""
    places: list[tuple[str, type]] = [("", RunConfig), *SECTIONS.items()]
    for section, config_class in places:
        if name in knobs(config_class):
            return section, knobs(config_class)[name]
    raise UnknownNameError("knob", name, every_knob())


def settings(config: RunConfig, method: str = "", bits: int = 0) -> dict[str, Any]:
    """Every knob that affects images and accuracies, by name, the seed included: how two runs of one network and bit width differ.

    method: leaves out the knobs that only other methods have; default: those that none of the run's methods has. bits: with the steps,
    step size and activations of this width; default: with `steps_by_bits` and `lr_by_bits`.
    """
    methods = (method,) if method else config.methods
    own = {section: getattr(config, section) for section in SECTIONS}
    if bits:
        own["training"] = config.training_for(bits)
    found = {}
    for section, config_class in SECTIONS.items():
        for name, knob_field in knobs(config_class).items():
            has_it = any(has_knob(knob_field, method) for method in methods)
            if knob_field.metadata["affects_result"] and name != "weight_bits" and has_it:
                found[name] = getattr(own[section], name)
    if found["activation_bits"] == bits:
        found["activation_bits"] = 0  # as the weights
    if not bits:
        found |= {"steps_by_bits": dict(config.steps_by_bits), "lr_by_bits": dict(config.lr_by_bits)}
    return found
