"""Processor time of one iteration of each method with the preset `quick`, relative to MI-FGSM: `python benchmarks/methods.py`.

The embedded ResNet-20 on one core. The loops run in turns, and a ratio is that of the medians over rounds. "previews" is the share that
the images for people add to a generator: the frames that a run keeps, each made by the generator and scored by the network. Prints one
JSON object and writes benchmarks/results/methods.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from benchmarks.machine import write
from core.config import PRESETS, MachineConfig
from core.generation.loop import PREVIEW_IMAGES, GenerationLoop
from core.generation.methods import METHODS
from core.generation.snapshots import kept_steps
from core.models.full_precision import load_model

REFERENCE = "mi-fgsm"
MEASURED = [name for name, method in METHODS.items() if not method.is_reference]  # nothing optimizes the images of references


def measure(rounds: int) -> dict[str, Any]:
    """Seconds of MI-FGSM's iteration, and the ratio of each other method's to it, previews included."""
    torch.set_num_threads(1)
    model, config = load_model("resnet20_cifar10", "cpu"), PRESETS["quick"].generation
    config = replace(config, texq_share=0.0)  # iterations of the generator, which cost more than those for the centers
    loops = {name: GenerationLoop(model, config, name, MachineConfig(threads=1)) for name in MEASURED}
    seconds: dict[str, list[float]] = {name: [] for name in MEASURED}
    previews: dict[str, list[float]] = {name: [] for name, method in METHODS.items() if method.has_generator}
    for _ in range(rounds):
        for name, loop in loops.items():
            seconds[name].append(_processor_seconds(loop.step))
            if name in previews:
                previews[name].append(_processor_seconds(lambda loop=loop: _preview(loop)))
    reference = statistics.median(seconds[REFERENCE])
    shown = len(kept_steps(config)) / (len(config.batches) * config.iterations)
    result: dict[str, Any] = {"seconds": {REFERENCE: round(reference, 4)}}
    for name in MEASURED:
        added = shown * statistics.median(previews[name]) / reference if name in previews else 0.0
        if name != REFERENCE:
            result[name] = {"ratio": round(statistics.median(seconds[name]) / reference + added, 3), "previews": round(added, 3)}
    return result


def _processor_seconds(call: Callable[[], Any]) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began


@torch.no_grad()
def _preview(loop: GenerationLoop) -> None:
    preview = loop.source.preview(PREVIEW_IMAGES)
    assert preview is not None
    loop.network(preview[0].contiguous(memory_format=torch.channels_last))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    measured = measure(options.rounds)
    write("methods", measured)
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
