"""What the benchmarks share: description of the machine, timing in turns, and results as one JSON file each in benchmarks/results."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from core.barriers import share_cores

share_cores()  # every benchmark imports this file

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "torchvision", "numpy", "open-clip-torch", "pytorchcv")


def machine() -> dict[str, Any]:
    """Processor, cores, memory, GPU, versions and date."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "memory_gigabytes": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "date": time.strftime("%Y-%m-%d"),
    }


def processor() -> str:
    """The model name of the processor."""
    info = Path("/proc/cpuinfo")
    names = (
        [line.partition(":")[2].strip() for line in info.read_text(encoding="utf-8").splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return names[0] if names else platform.processor()


def write(name: str, measured: Mapping[str, Any]) -> Path:
    """Writes benchmarks/results/NAME.json with the description of the machine; returns its path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **measured}, indent=1) + "\n", encoding="utf-8")
    return path


def in_turns(functions: Mapping[str, Callable[[], Any]], rounds: int, warm_up: int = 2) -> dict[str, list[float]]:
    """Seconds of each function in each of `rounds` rounds. Each round calls every function once, so that load affects all alike."""
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(rounds + warm_up):
        for name, function in functions.items():
            began = time.perf_counter()
            function()
            if number >= warm_up:
                taken[name].append(time.perf_counter() - began)
    return taken


def against(taken: Mapping[str, list[float]], base: str) -> dict[str, dict[str, float]]:
    """Median milliseconds of each, and the median over rounds of its ratio to `base` in the same round."""
    return {
        name: {
            "milliseconds": round(1e3 * statistics.median(seconds), 1),
            "ratio": round(statistics.median(own / other for own, other in zip(seconds, taken[base])), 3),
        }
        for name, seconds in taken.items()
    }
