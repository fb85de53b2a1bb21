"""What each part of the training gives: `python benchmarks/training.py`.

On the images that the preset `quick` makes by MI-FGSM, a network (see benchmarks/networks.py) is trained as `quick` does, and once for each
change of it in WAYS. Reported: top-1 in percent after the calibration and after the training, on the embedded 2,000 images, or on those of
`--data`: settings are chosen on others than the embedded ones. And kl, the mean KL divergence from full precision on the same images, which
differs less by chance. Prints one JSON object; with the defaults, it writes benchmarks/results/training.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.calibration import network
from benchmarks.machine import write
from benchmarks.networks import EMBEDDED, NETWORKS
from core.config import PRESETS, RunConfig
from core.data.image_sets import ImageSet
from core.data.labeled import load_evaluation_set
from core.generation.loop import synthesize
from core.memory import keep_memory
from core.models.full_precision import FullPrecisionModel
from core.quantization.training import QuantizationTraining

QUICK = PRESETS["quick"]


def _with_training(**knobs: Any) -> Callable[[RunConfig], RunConfig]:
    return lambda config: config.with_knobs(knobs)


def _with_step_sizes(factor: float) -> Callable[[RunConfig], RunConfig]:
    return lambda config: replace(config, lr_by_bits={bits: factor * lr for bits, lr in config.lr_by_bits.items()})


def _with_steps(factor: int) -> Callable[[RunConfig], RunConfig]:
    return lambda config: config.with_steps({bits: factor * steps for bits, steps in config.steps_by_bits.items()})


WAYS: Mapping[str, Callable[[RunConfig], RunConfig]] = MappingProxyType(
    {
        "quick": lambda config: config,
        "CutMix": _with_training(cutmix=1.0),
        "without the correction of statistics": _with_training(correct_statistics=False),
        "half the step size": _with_step_sizes(0.5),
        "twice the step size": _with_step_sizes(2.0),
        "five times alpha_feature": _with_training(alpha_feature=50.0),
        "three times the steps": _with_steps(3),
    }
)


@torch.no_grad()
def scores_of(model: FullPrecisionModel, scores: nn.Module, pixels: Tensor) -> Tensor:
    """Logarithms of the probabilities `(N, classes)` of a network."""
    inputs = (model.normalize(part).contiguous(memory_format=torch.channels_last) for part in pixels.split(250))
    return torch.cat([scores(part).log_softmax(dim=1) for part in inputs])


@dataclass(frozen=True)
class Measured:
    """Evaluation images uint8 `(N, C, H, W)`, their labels int64 `(N,)`, and what `scores_of` gives for full precision."""

    pixels: Tensor
    labels: Tensor
    exact: Tensor


def trained(model: FullPrecisionModel, images: ImageSet, config: RunConfig, bits: int, on: Measured) -> dict[str, Any]:
    """The figures of one training."""
    training = QuantizationTraining(model, images, config.training_for(bits), config.machine.seed)
    found = {}
    for state in ("calibrated", "trained"):
        own = scores_of(model, training.inference_network(), on.pixels)
        found[state] = {
            "top1": round(100 * float((own.argmax(dim=1) == on.labels).double().mean()), 2),
            "kl": round(float(F.kl_div(own, on.exact, reduction="batchmean", log_target=True)), 4),
        }
        while not training.finished:
            training.step()
    return {**found, "steps": training.step_count, "seconds": round(training.seconds, 1)}


def measure(model: FullPrecisionModel, options: argparse.Namespace, on: Measured) -> dict[str, Any]:
    """All ways, bit widths, and seeds: seed -> bit width -> way -> figures."""
    result: dict[str, Any] = {}
    for seed in options.seeds:
        start = QUICK.with_knobs({"seed": seed, "device": "cpu"})
        images, _ = synthesize(model, start.generation, machine=start.machine)
        for bits in options.bits:
            own = result.setdefault(str(seed), {}).setdefault(str(bits), {})
            for way in options.ways:
                own[way] = trained(model, images, WAYS[way](start), bits, on)
                print(seed, bits, way, json.dumps(own[way]), file=sys.stderr, flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=(EMBEDDED, *NETWORKS), default=EMBEDDED)
    parser.add_argument("--bits", nargs="+", type=int, choices=tuple(QUICK.steps_by_bits), default=list(QUICK.steps_by_bits))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--ways", nargs="+", choices=tuple(WAYS), default=list(WAYS))
    parser.add_argument("--data", default="embedded", help="labeled images to measure on, as for `run`")
    options = parser.parse_args()
    keep_memory()
    model = network(options.network)
    data = load_evaluation_set(options.data, model.spec)
    images, labels = zip(*(data[index] for index in range(len(data))), strict=True)
    pixels = torch.stack(images)
    result = measure(model, options, Measured(pixels, torch.tensor(labels), scores_of(model, model.network, pixels)))
    print(json.dumps(result, indent=1))
    if not sys.argv[1:]:
        write("training", result)


if __name__ == "__main__":
    main()
