"""Accuracies of one or more runs as series over the bit width; runs that differ only in their seeds are averaged. No streamlit in here."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from core.config import RunConfig, settings
from core.generation.methods import method_order
from dashboard.tables import results

SEEDS = ("seed",)
MOST_WORDS = 3  # settings in the label of a series; with more, the label is the run's name
_PATH = "images_from"  # a label with the run's name says more than one with this path


@dataclass(frozen=True)
class Evaluated:
    """A run and its measurements. results: those named full_precision and accuracy/... live_changes: as in the store."""

    name: str
    config: RunConfig
    results: Mapping[str, Any]
    live_changes: Sequence[Mapping[str, Any]] = field(default_factory=tuple)


def differ_only_in_seeds(one: RunConfig, other: RunConfig) -> bool:
    """Whether two runs differ in their seeds, and otherwise only in knobs that do not affect accuracy."""
    methods = one.methods
    same = (one.methods, one.bits) == (other.methods, other.bits)
    return same and _seeds(one) != _seeds(other) and all(_setting(one, (), method) == _setting(other, (), method) for method in methods)


def accuracy_series(runs: Sequence[Evaluated]) -> list[dict[str, Any]]:
    """One row for each method, setting and bit width, in that order; accuracies in percent.

    Runs that differ only in their seeds are averaged; of two with the same seeds, which have the same bits, the first counts. A row has
    `method`, `bits`, `label` (how the setting differs from the others of its method; empty if it is the only one), `range`, `runs` (how
    many), `calibrated`, `quantized` (both None without evaluation images, the second also until the training has ended), and their error
    bars `calibrated_error` and `standard_error`: the sample standard deviation over the seeds if there are several, else the standard
    error of the evaluation, which is not measured for calibrated networks. Then those of `results.CLOSENESS`, in the same way.
    """
    grouped: dict[tuple[str, tuple], dict[int, dict[tuple, Mapping[str, Any]]]] = {}
    settings: dict[tuple[str, tuple], dict[str, Any]] = {}
    names: dict[tuple[str, tuple], list[str]] = {}
    for run in runs:
        for row in results.accuracies(run.results):
            setting = _setting(run.config, run.live_changes, row["method"])
            key = (row["method"], tuple(setting.items()))
            settings[key] = setting
            if run.name not in names.setdefault(key, []):
                names[key].append(run.name)
            grouped.setdefault(key, {}).setdefault(row["bits"], {}).setdefault(_seeds(run.config), row)
    labels = _labels(settings, names)
    rows = [
        {"method": key[0], "bits": bits, "label": labels[key], "range": settings[key]["range"], **_averaged(list(by_seed.values()))}
        for key, widths in grouped.items()
        for bits, by_seed in widths.items()
    ]
    order = list(dict.fromkeys(labels.values()))
    return sorted(rows, key=lambda row: (method_order(row["method"]), row["method"], order.index(row["label"]), row["bits"]))


def _averaged(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The figures of one row from those of each seed. Seeds that are not trained yet are left out of the trained figures."""
    done = [row for row in rows if row.get("kept")]
    seconds = _mean(done, "seconds")
    return {
        "runs": len(done or rows),
        "calibrated": _mean(rows, "calibrated"),
        "calibrated_error": _deviation(rows, "calibrated"),
        "trained": _mean(done, "trained"),
        "kept": " or ".join(sorted({row["kept"] for row in done})) or None,
        "quantized": _mean(done, "quantized"),
        "standard_error": _deviation(done, "quantized") if len(done) > 1 else done[0].get("standard_error") if done else None,
        **{name: _mean(done or rows, name) for name in results.CLOSENESS},
        **{f"{name}_error": _deviation(done or rows, name) for name in results.AGREEMENTS if len(done or rows) > 1},
        "steps": done[0].get("steps") if done else None,
        "seconds": None if seconds is None else round(seconds, 3),
    }


def _known(rows: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [row[name] for row in rows if row.get(name) is not None]


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = _known(rows, name)
    return statistics.fmean(values) if values else None


def _deviation(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = _known(rows, name)
    return statistics.stdev(values) if len(values) > 1 else None


def _seeds(config: RunConfig) -> tuple[int, int]:
    return config.machine.seed, config.seed_of_training


def _setting(config: RunConfig, changes: Sequence[Mapping[str, Any]], method: str) -> dict[str, Any]:
    """Everything but the seeds that bears on the accuracies of a method, by knob; values can be compared and hashed."""
    own = {name: _hashable(value) for name, value in settings(config, method).items() if name not in SEEDS}
    return own | {
        "images_from": config.images_from,
        "live changes": tuple((change["step"], change["name"], change["value"]) for change in changes if change["method"] == method),
    }


def _hashable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return tuple(sorted(value.items()))
    return tuple(map(_hashable, value)) if isinstance(value, (list, tuple)) else value


def _labels(
    settings: Mapping[tuple[str, tuple], Mapping[str, Any]], names: Mapping[tuple[str, tuple], Sequence[str]]
) -> dict[tuple[str, tuple], str]:
    """How each setting differs from the others of its method: in its knobs, or by the names of its runs if too many knobs differ."""
    labels: dict[tuple[str, tuple], str] = {}
    for key, setting in settings.items():
        rivals = [other for other_key, other in settings.items() if other_key[0] == key[0] and other_key != key]
        differing = [knob for knob in setting if any(other.get(knob) != setting[knob] for other in rivals)]
        if len(differing) > MOST_WORDS or _PATH in differing:
            labels[key] = names[key][0] + (f" and {len(names[key]) - 1} more" if len(names[key]) > 1 else "")
        else:
            labels[key] = ", ".join(words for knob in differing if (words := _knob_text(knob, setting[knob])))
    for key, label in labels.items():  # two runs may have one name
        namesakes = [other for other in labels if other[0] == key[0] and labels[other] == label]
        for number, other in enumerate(namesakes[1:], 2):
            labels[other] = f"{label} ({number})"
    return labels


def _knob_text(knob: str, value: Any) -> str:
    if knob == "live changes":
        return "live changes" if value else "no live changes"
    if knob == "layer_bits" and not value:
        return "one width for all layers"
    if knob == "activation_bits":
        return f"{value}-bit activations" if value else "activations as weights"
    if isinstance(value, bool):
        return knob if value else f"no {knob}"
    if isinstance(value, tuple):
        return f"{knob} " + (", ".join(f"{first}: {second:g}" for first, second in value) if value else "no width")
    return f"{knob} {value:g}" if isinstance(value, float) else f"{knob} {value}"
