"""Speed and reproducibility on a GPU and a CPU: `python benchmarks/gpu.py`. Prints one JSON object and writes benchmarks/results/gpu.json.

For the embedded ResNet-20 on "cuda" (--device cpu is for a try without a GPU and writes no file):

- `generation`: a complete iteration with batches of 128 and 512, relative to the network alone (forward pass, input gradient), in turns;
  without and with the knob `compile`.
- `training`: a step of QAT at W4A4 with the settings of the presets, batches of 64 and 256.
- `repeats`: whether a repetition on the same device gives bit-identical images and quantized networks.
- `like_the_cpu`: the share of image bytes, and of predicted classes, that are equal to the CPU's.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.nn.functional as F

from benchmarks.machine import against, in_turns, write
from core.config import GenerationConfig, MachineConfig, preset
from core.data.image_sets import ImageSet
from core.errors import CoreError
from core.generation.loop import GenerationLoop
from core.models.full_precision import FullPrecisionModel, load_model
from core.quantization.training import QuantizationTraining

SMALL = GenerationConfig(images=256, iterations=20, batch_size=64, snapshots=2)


def _finished(function: Callable[[], Any]) -> Callable[[], None]:
    """The function, followed by a wait for the GPU."""

    def finished() -> None:
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return finished


def generation(model: FullPrecisionModel, batch: int, rounds: int) -> dict[str, Any]:
    """Milliseconds of an iteration of each loop, and its ratio to the network alone."""
    config = GenerationConfig(images=4 * batch, iterations=100_000, batch_size=batch, snapshots=4)
    plain = {name: GenerationLoop(model, config, name) for name in ("mi-fgsm", "adam")}
    compiled = GenerationLoop(model, config, machine=MachineConfig(compile=True))
    source = plain["mi-fgsm"].source
    images = source.current().clone(memory_format=torch.preserve_format).requires_grad_(True)
    labels = source.labels

    def network() -> None:
        torch.autograd.grad(F.cross_entropy(model.network(images), labels), images)

    work = {"network": network, **{name: method.step for name, method in plain.items()}, "mi-fgsm, compiled": compiled.step}
    taken = in_turns({name: _finished(do) for name, do in work.items()}, rounds, warm_up=5)
    summary = compiled.summary()
    return {"batch": batch, **against(taken, "network"), **{name: summary[name] for name in ("compile_seconds", "compile_failure")}}


def training(model: FullPrecisionModel, images: ImageSet, rounds: int) -> dict[str, float]:
    """Milliseconds of a training step with the settings of each preset."""
    work = {}
    for name in ("quick", "paper"):
        config = replace(preset(name).training, weight_bits=4, activation_bits=4, steps=100_000)
        work[f"{name}, batches of {config.training_batch_size}"] = QuantizationTraining(model, images, config).step
    taken = in_turns({name: _finished(do) for name, do in work.items()}, rounds, warm_up=5)
    return {name: row["milliseconds"] for name, row in against(taken, next(iter(work))).items()}


def generated(model: FullPrecisionModel, method: str) -> ImageSet:
    """A small image set, with the same settings each time."""
    synthesis = GenerationLoop(model, SMALL, method)
    while not synthesis.finished:
        synthesis.step()
    return synthesis.image_set()


def trained(model: FullPrecisionModel, images: ImageSet) -> dict[str, torch.Tensor]:
    """State of the quantized network after 20 steps of QAT."""
    config = replace(preset("quick").training, weight_bits=4, activation_bits=4, steps=20)
    training = QuantizationTraining(model, images, config)
    while not training.finished:
        training.step()
    return training.student.state_dict()


def measure(device: str, rounds: int) -> dict[str, Any]:
    """Runs all measurements; returns the JSON object."""
    model, reference = load_model("resnet20_cifar10", device), load_model("resnet20_cifar10", "cpu")
    sets = {name: [generated(model, name) for _ in range(2)] for name in ("mi-fgsm", "adam")}
    networks = [trained(model, sets["mi-fgsm"][0]) for _ in range(2)]
    on_cpu = {name: generated(reference, name) for name in sets}
    with torch.no_grad():
        pixels = sets["mi-fgsm"][0].images
        classes = [one.network(one.normalize(pixels)).argmax(1).cpu() for one in (model, reference)]
    return {
        "generation": [generation(model, batch, rounds) for batch in (128, 512)],
        "training": training(model, sets["mi-fgsm"][0], rounds),
        "repeats": {
            **{name: bool(torch.equal(first.images, second.images)) for name, (first, second) in sets.items()},
            "training": all(torch.equal(value, networks[1][name]) for name, value in networks[0].items()),
        },
        "like_the_cpu": {
            **{name: round(float((sets[name][0].images == on_cpu[name].images).float().mean()), 4) for name in sets},
            "classes": round(float((classes[0] == classes[1]).float().mean()), 4),
        },
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    parser.add_argument("--rounds", type=int, default=50, help="timed iterations of each loop")
    options = parser.parse_args()
    try:
        measured = measure(options.device, options.rounds)
    except CoreError as error:
        print(error, file=sys.stderr)
        return 2
    if options.device != "cpu":
        write("gpu", measured)
    print(json.dumps(measured, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
