"""A knob: a field of a config with everything that a form, a slider, a flag, a help text, a card and a comparison need to know of it."""

import math
from collections.abc import Collection, Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from typing import Any, Self

from core.errors import ConfigError, UnknownNameError, quoted
from core.generation.methods import L_TOTAL, METHODS
from core.layout import NAME_BYTES, PATH_BYTES


def knob(
    default: Any,
    help: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: Collection | None = None,
    label: str = "",
    symbol: str = "",
    paper: str = "not stated",
    low: str = "",
    high: str = "",
    step: float | None = None,
    live: bool = False,
    slider: tuple[float, float] | None = None,
    log: bool = False,
    of: tuple[str, ...] = (),
    flag: str = "",
    in_form: bool = True,
    affects_result: bool = True,
    old_names: tuple[str, ...] = (),
) -> Any:
    """A dataclass field with everything that a form or a command line needs to offer and explain it.

    minimum, maximum: both inclusive. choices: allowed values; one that grows later, such as a dictionary, is read at each check.
    label: its name on the pages; default: the field's name. symbol: the paper's. paper: the value that the paper used.
    low, high: what goes wrong with smaller and with larger values; of a switch, what off and on mean; the same text twice where no
    value is better than another. step: of a slider or number field. live: can be changed while a generation runs, by a slider from
    slider[0] to slider[1]; log: the slider is logarithmic, with 0 at its left end. of: the methods that have this knob; L_TOTAL: those
    with that loss; empty: all. flag: on the command line, where it is shorter than the name. in_form: whether a form shows it among "All
    settings". affects_result: False for knobs that have no bearing on images and accuracies. old_names: of earlier versions, still read.
    """
    return field(
        default=default,
        metadata={
            "help": help,
            "minimum": minimum,
            "maximum": maximum,
            "choices": choices,
            "label": label,
            "symbol": symbol,
            "paper": paper,
            "low": low,
            "high": high,
            "step": step,
            "live": live,
            "slider": slider,
            "log": log,
            "of": of,
            "flag": flag,
            "in_form": in_form and not live,
            "affects_result": affects_result,
            "old_names": old_names,
        },
    )


def knobs(config_class: type) -> dict[str, Field]:
    """Name -> dataclass field of every knob of a config class, in order: first those of the class itself, then those of its bases."""
    return {f.name: f for f in _ordered_fields(config_class) if f.default is not MISSING and "help" in f.metadata}


def _ordered_fields(config_class: type) -> list[Field]:
    return sorted(fields(config_class), key=lambda f: f.name not in config_class.__annotations__)


def live_knobs(config_class: type, method: str = "") -> dict[str, Field]:
    """The knobs that can be changed while a generation runs; with `method`, only those that this method has."""
    found = {name: f for name, f in knobs(config_class).items() if f.metadata["live"]}
    return {name: f for name, f in found.items() if not method or has_knob(f, method)}


def has_knob(knob_field: Field, method: str) -> bool:
    """Whether a method, or images of the user by their name, has this knob."""
    of = knob_field.metadata["of"]
    shares_loss = method not in METHODS or not METHODS[method].own_loss
    return not of or method in of or (L_TOTAL in of and shares_loss)


def label(knob_field: Field) -> str:
    """The knob's name on the pages."""
    return knob_field.metadata["label"] or knob_field.name.replace("_", " ").capitalize()


def flag(knob_field: Field) -> str:
    """The knob's flag on the command line."""
    return "--" + (knob_field.metadata["flag"] or knob_field.name).replace("_", "-")


def add_knob(config_class: type, name: str, knob_field: Any) -> None:
    """Adds a knob to a config class at run time, as an extension or a test does. Raises ConfigError for a name that is taken.

    Configs built before have the knob's default.
    """
    if name in config_class.__dataclass_fields__:  # type: ignore[attr-defined]
        raise ConfigError(f"knob {name} exists already: the name must be new")
    config_class.__annotations__[name] = type(knob_field.default)
    _rebuild(config_class, {**_fields_of(config_class), name: knob_field})


def remove_knob(config_class: type, name: str) -> None:
    """Removes a knob that `add_knob` added."""
    del config_class.__annotations__[name]
    _rebuild(config_class, {key: value for key, value in _fields_of(config_class).items() if key != name})
    delattr(config_class, name)


def _fields_of(config_class: type) -> dict[str, Field]:
    """The fields that the class itself has: inherited ones stay in its base."""
    return {name: each for name, each in config_class.__dataclass_fields__.items() if name in config_class.__annotations__}  # type: ignore[attr-defined]


def _rebuild(config_class: type, own: Mapping[str, Field]) -> None:
    """Runs the dataclass decorator again: what it wrote before is removed first, as it does not overwrite."""
    for name in ("__init__", "__repr__", "__eq__", "__hash__", "__setattr__", "__delattr__", "__match_args__", "__replace__"):
        if name in vars(config_class):
            delattr(config_class, name)
    for name, each in own.items():
        setattr(config_class, name, each)
    dataclass(frozen=True)(config_class)


def help_text(config_class: type, name: str) -> str:
    """What the knob does, its range, default, the paper's value and what goes wrong at either end, for `--help` and for a form.

    One line each: symbol and text; range, default and paper; the lower end; the higher end.
    """
    knob_field = knobs(config_class)[name]
    meta, default = knob_field.metadata, knob_field.default
    lines = [f"{meta['symbol']}: {meta['help']}" if meta["symbol"] else meta["help"]]
    facts = []
    if meta["choices"] is not None or meta["minimum"] is not None or meta["maximum"] is not None:
        facts.append(f"{'Range' if meta['choices'] is None else 'Choices'}: {allowed(meta)}.")
    facts += [f"Default: {_in_words(default)}.", f"Paper: {meta['paper']}."]
    lines.append(" ".join(facts))
    if meta["low"] == meta["high"] != "":
        lines.append(meta["low"])
    else:
        titles = ("Off", "On") if isinstance(default, bool) else ("Lower", "Higher")
        lines += [f"{title}: {text}" for title, text in zip(titles, (meta["low"], meta["high"])) if text]
    return "\n".join(lines)


def _in_words(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, (int, float)):
        return f"{value:,}" if isinstance(value, int) else f"{value:g}"
    return str(value) if value else "none"


def allowed(meta: Mapping[str, Any]) -> str:
    """The range of a knob in words, for messages and help."""
    if meta["choices"] is not None:
        return ", ".join(str(choice) for choice in meta["choices"])
    low, high = meta["minimum"], meta["maximum"]
    if low is not None and high is not None:
        return f"{_in_words(low)} to {_in_words(high)}"
    if low is not None:
        return f"{_in_words(low)} or more"
    return f"at most {_in_words(high)}" if high is not None else "any value of its type"


def _finite(value: float) -> bool:
    # every int is finite, and math.isfinite raises OverflowError for one that no float can hold
    return isinstance(value, int) or math.isfinite(value)


def check_text(name: str, value: str) -> None:
    """Raises ConfigError for text that can be neither a name nor a path, so that opening, storing or printing it would fail."""
    try:
        encoded = value.encode()
    except UnicodeEncodeError:  # a lone surrogate: a file name that is not UTF-8, or JSON that was tampered with
        encoded = b"\0"
    if b"\0" in encoded or len(encoded) > PATH_BYTES or max(map(len, encoded.split(b"/"))) > NAME_BYTES:
        raise ConfigError(
            f"{name} must be UTF-8 text without NUL, at most {PATH_BYTES:,} bytes and {NAME_BYTES} between two slashes, got {quoted(value)}"
        )


_KINDS = {int: "a whole number", float: "a finite number", str: "text", bool: "true or false"}


class Checked:
    """Checks every field made by `knob` against its type and range, and reads and writes plain dictionaries."""

    def __post_init__(self) -> None:
        for name, knob_field in knobs(type(self)).items():
            self._check(name, getattr(self, name), knob_field)

    @classmethod
    def check_value(cls, name: str, value: Any) -> Any:
        """The value, checked as the field `name` would check it. Raises ConfigError."""
        knob_field = knobs(cls).get(name) if isinstance(name, str) else None
        if knob_field is None:
            raise UnknownNameError("knob", value=name, allowed=list(knobs(cls)))
        cls._check(name, value, knob_field)
        return value

    @classmethod
    def _check(cls, name: str, value: Any, knob_field: Field) -> None:
        meta, kind = knob_field.metadata, type(knob_field.default)
        numeric = isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
        right = numeric and _finite(value) if kind in (int, float) else kind not in (str, bool) or isinstance(value, kind)
        if not right:
            range_ = f", {allowed(meta)}" if kind in (int, float) else ""
            raise ConfigError(f"{name} must be {_KINDS[kind]}{range_}, got {quoted(value)}")
        if kind is str:
            check_text(name, value)
        low, high = meta["minimum"], meta["maximum"]
        if meta["choices"] is not None and value not in meta["choices"]:
            raise ConfigError(f"{name} must be one of {allowed(meta)}, got {quoted(value)}")
        if (low is not None and value < low) or (high is not None and value > high):
            raise ConfigError(f"{name} must be {allowed(meta)}, got {quoted(value)}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, fit for JSON."""
        return asdict(self)  # type: ignore[call-overload]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The reverse of `to_dict`. Raises ConfigError for a key that is not a knob."""
        if not isinstance(values, Mapping):
            raise ConfigError(f"{cls.__name__} must be a mapping of knobs to values, got {quoted(values)}")
        names = [f.name for f in _ordered_fields(cls)]
        for key in values:
            if key not in names:
                raise UnknownNameError("knob", key, names)
        return cls(**values)
