"""Settings and facts of a run in its report. No streamlit in here."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.config import SECTIONS, RunConfig
from core.export import provenance
from core.export.commands import bare_name
from core.models.registry import own_name
from core.runs.run import Run
from dashboard.names import knob_symbol
from dashboard.tables import results

_PACKAGES = ("torch", "torchvision", "pytorchcv", "open-clip-torch", "numpy", "plotly")


def settings(config: RunConfig) -> dict[tuple[str, str], Any]:
    """(section, name) -> value of all settings of a run, in order; of a path only its last part."""
    values: dict[tuple[str, str], Any] = {}
    for name, value in config.to_dict().items():
        if name in SECTIONS:
            # the run's bit widths are in `bits`
            values |= {(name, knob): own for knob, own in value.items() if knob != "weight_bits"}
        else:
            values["run", name] = own_name(value) if name == "model" else value
    return {key: _plain(value) for key, value in values.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return bare_name(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_plain(one)}" for key, one in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(str(_plain(one)) for one in value)
    return value


def title(name: str) -> str:
    """Name of a knob, with its symbol if it has one."""
    symbol = knob_symbol(name)
    return name if symbol == name else f"{name} ({symbol})"


def facts(run: Run, known: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Title and value of everything that one needs to reproduce the run, and of when and where the report was written."""
    config = run.config
    found: list[tuple[str, Any]] = [
        ("run", run.id),
        ("network", run.network),
        ("seed", config.machine.seed),
        ("seed of the training", config.seed_of_training),
        ("threads", config.machine.threads or "chosen by torch"),
        ("device", config.machine.device),
    ]
    full_precision = known.get("full_precision")
    if full_precision:
        found += [
            ("evaluation images", provenance.evaluated_on(config, full_precision["evaluated_on"])),
            ("standard error of full precision", f"{full_precision['standard_error']:.2f} points"),
        ]
    elif config.bits and not results.has_accuracy(results.accuracies(known)):
        found.append(("evaluation images", "none"))
    return [
        *found,
        ("attempts", run.attempt),
        ("report written", date(time.time())),
        ("versions at that time", f"Python {platform.python_version()}, {provenance.versions(_PACKAGES)}"),
        ("machine at that time", f"{_processor()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}"),
    ]


def date(seconds: float | None) -> str:
    """Local date and time of seconds since 1970; a dash for None."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if seconds else "–"


def _processor() -> str:
    """Name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor() or "unknown")
