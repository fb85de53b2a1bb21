"""What a calibration alone gives: `python benchmarks/calibration.py`.

Each network (see benchmarks/networks.py) is quantized without training, on the images that the preset `quick` makes by MI-FGSM for it: as
its ranges make it ("ranges"), with corrected BatchNorm statistics ("corrected", the default of every run), and, at the size of the uniform
network, with bits chosen for each layer ("by_layer", what --size does). Reported: top-1 on the embedded 2,000 images, in percent, standard
error 0.7 to 0.9; seconds of each calibration; and the size in bytes. Prints one JSON object and writes benchmarks/results/calibration.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import Tensor

from benchmarks.machine import write
from benchmarks.networks import EMBEDDED, NETWORKS, load
from core.config import PRESETS, TrainingConfig
from core.data.image_sets import ImageSet
from core.data.labeled import embedded_images
from core.generation.loop import synthesize
from core.models.full_precision import FullPrecisionModel, load_model
from core.models.registry import CIFAR10_CLASSES, ModelSpec
from core.quantization.integer.weights import packed_bytes
from core.quantization.training import QuantizationTraining
from core.recipes.pretrain import CIFAR10_MEAN, CIFAR10_STD

BITS = (2, 3, 4, 5, 8)
WAYS: Mapping[str, Mapping[str, Any]] = MappingProxyType({"ranges": {"correct_statistics": False}, "corrected": {}, "by_layer": {}})


def network(name: str) -> FullPrecisionModel:
    """A network of benchmarks/networks.py."""
    if name == EMBEDDED:
        return load_model(EMBEDDED)
    spec = ModelSpec(name, name, CIFAR10_CLASSES, 32, CIFAR10_MEAN, CIFAR10_STD, "CIFAR-10")
    return FullPrecisionModel(load(name).requires_grad_(False), spec)


@torch.no_grad()
def top1(model: FullPrecisionModel, scores: torch.nn.Module, pixels: Tensor, labels: Tensor) -> float:
    """In percent, rounded to two digits."""
    predicted = [scores(model.normalize(part)).argmax(dim=1) for part in pixels.split(250)]
    return round(100 * float((torch.cat(predicted) == labels).double().mean()), 2)


def calibrated(model: FullPrecisionModel, images: ImageSet, bits: int, pixels: Tensor, labels: Tensor) -> dict[str, Any]:
    """The figures of one bit width."""
    config = replace(PRESETS["quick"].training, weight_bits=bits, activation_bits=bits)
    found: dict[str, Any] = {}
    for way, changes in WAYS.items():
        own: TrainingConfig = replace(config, **changes)
        if way == "by_layer":
            own = replace(own, size=found["corrected"]["bytes"] / 1000)
        began = time.perf_counter()
        training = QuantizationTraining(model, images, own)
        seconds = time.perf_counter() - began
        accuracy = top1(model, training.inference_network(), pixels, labels)
        found[way] = {"top1": accuracy, "seconds": round(seconds, 1), "bytes": packed_bytes(training.quantized)}
    return found


def measure(name: str, pixels: Tensor, labels: Tensor) -> dict[str, Any]:
    """All bit widths of one network."""
    model = network(name)
    images, _ = synthesize(model, PRESETS["quick"].generation)
    result: dict[str, Any] = {"full_precision": top1(model, model.network, pixels, labels), "bits": {}}
    for bits in BITS:
        result["bits"][bits] = calibrated(model, images, bits, pixels, labels)
        print(name, bits, json.dumps(result["bits"][bits]), file=sys.stderr, flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = (EMBEDDED, *NETWORKS)
    parser.add_argument("--networks", nargs="+", choices=every, default=every)
    options = parser.parse_args()
    pixels, labels = embedded_images()
    result = {name: measure(name, pixels, torch.tensor(labels)) for name in options.networks}
    print(json.dumps(result, indent=1))
    if set(options.networks) == set(every):
        write("calibration", result)


if __name__ == "__main__":
    main()
