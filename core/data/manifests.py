"""The manifest of an image set, which may be from outside: read and checked here for every reader.

A set is used for its images, so that a statement of an unexpected type is left out, as if the set had none. Of what `generate` writes,
these are checked: `config`, which `known_config` can then read; `changes`, live changes {"step", "name",
"value"} each; and `summary`, with those of FIGURES that are known. Others are any JSON values.
"""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from core.config import GenerationConfig, upgrade_generation
from core.errors import ConfigError, DataError, quoted
from core.layout import MANIFEST

FIGURES = ("images", "image_iterations", "seconds", "bns_loss_first", "bns_loss_last", "teacher_agreement")
_LARGEST = 1e15  # of a figure or value: can be counted exactly, and printed
_DEPTH = 30  # of nested brackets; those of `generate` have 4


def parse_manifest(content: bytes | str) -> dict[str, Any]:
    """The checked manifest in a text of JSON. Numbers that are infinite or not a number become None.

    Raises ValueError, whose message names the file, unless it is a JSON object with at most 30 levels of brackets.
    """
    try:
        # JSON has no such numbers, but Python writes and reads them: NaN is the loss of a generation that diverged
        values = json.loads(content, parse_constant=lambda _: None, parse_float=_finite)
    except RecursionError as error:
        raise ValueError(f"{MANIFEST} must have at most {_DEPTH} levels of brackets, got too many nested brackets") from error
    if not isinstance(values, dict):
        raise ValueError(f"{MANIFEST} must be a JSON object")
    if _is_deeper(values, _DEPTH):
        raise ValueError(f"{MANIFEST} must have at most {_DEPTH} levels of brackets, got too many nested brackets")
    checks: dict[str, Callable[[Any], Any]] = {"summary": _summary, "config": _config, "changes": _changes}
    checked = {name: check(values[name]) if (check := checks.get(name)) else value for name, value in values.items()}
    return {name: value for name, value in checked.items() if value is not None or name not in checks}


def _finite(text: str) -> float | None:
    return value if math.isfinite(value := float(text)) else None


def _is_deeper(value: Any, depth: int) -> bool:
    if not isinstance(value, (dict, list)):
        return False
    return depth == 0 or any(_is_deeper(one, depth - 1) for one in (value.values() if isinstance(value, dict) else value))


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= _LARGEST


def _summary(value: Any) -> dict[str, Any] | None:
    if not isinstance(value, Mapping):
        return None
    return {name: one for name, one in value.items() if name not in FIGURES or _is_number(one)}


def _config(value: Any) -> dict[str, Any] | None:
    return value if known_config(value) is not None else None


def check_made_from(manifest: Mapping[str, Any], name: str, weights: Callable[[], str | None]) -> None:
    """Raises DataError if the images of a manifest were made from another network than that to be quantized with them.

    name, weights: of the network; the second returns its `weights_hash`, or None where it is not known. Networks are compared by their
    weights, or by their names where an earlier version wrote the manifest. Images without a manifest, such as real ones, and of other
    programs pass.
    """
    network = manifest.get("network")
    stated = network if isinstance(network, Mapping) else {}
    made_from, made_from_weights = stated.get("name", manifest.get("model")), stated.get("weights_sha256")
    if isinstance(made_from_weights, str):
        same = weights() in (None, made_from_weights)
    else:
        same = not isinstance(made_from, str) or made_from == name
    if not same:
        other = "other weights of the same name" if made_from == name else quoted(made_from)
        raise DataError(f"images must be made from the network to quantize, {name!r}, got images made from {other}")


def known_config(value: Any) -> GenerationConfig | None:
    """The config in a manifest written by any version; None for other values."""
    try:
        return GenerationConfig.from_dict(upgrade_generation(value))
    except (ConfigError, AttributeError, TypeError, OverflowError):  # of another program, or of a version that cannot be read
        return None


def _changes(value: Any) -> list[dict[str, Any]] | None:
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        return None
    fits = all(type(one.get("step")) is int and isinstance(one.get("name"), str) and _is_number(one.get("value")) for one in value)
    return value if fits and all(abs(one["step"]) <= _LARGEST for one in value) else None
