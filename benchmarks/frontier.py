"""Accuracy over generation time: `python benchmarks/frontier.py`. The paper's main claim is images ten times cheaper than ZeroQ's.

MI-FGSM and Adam with the settings of the quick preset and 4 snapshots of each image, for several numbers of iterations; and ZeroQ's own
loop (benchmarks/peers/zeroq.py) at several of its 500 iterations. For each: seconds per usable image, and top-1 on the embedded 2,000
images after post-training quantization to W4A4 (no training, ranges of least squared error) with the first 128 such images. --seeds 3
gives mean and standard deviation over three seeds, because the accuracy depends on the choice of images. Prints one JSON object and
writes benchmarks/results/frontier.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from benchmarks.machine import write
from benchmarks.peers.zeroq import ZeroQ, initial_images
from core.config import GenerationConfig, MachineConfig, TrainingConfig
from core.data.image_sets import ImageSet
from core.data.labeled import load_evaluation_set
from core.evaluation.accuracy import evaluate
from core.generation.loop import synthesize
from core.models.full_precision import FullPrecisionModel, load_model
from core.quantization.training import QuantizationTraining

USED = 128  # images for calibration
BATCH = 128
ITERATIONS = {"mi-fgsm": (5, 10, 25, 50, 100), "adam": (5, 10, 25, 50, 100), "ZeroQ": (10, 25, 50, 100, 250, 500)}


def ours(model: FullPrecisionModel, method: str, seed: int) -> Iterator[tuple[int, float, ImageSet]]:
    """For each number of iterations: the number, seconds per image, and the images."""
    for iterations in ITERATIONS[method]:
        snapshots = min(4, iterations - 1)
        config = GenerationConfig(images=snapshots * BATCH, iterations=iterations, snapshots=snapshots, batch_size=BATCH)
        began = _now()
        images, _ = synthesize(model, config, method, MachineConfig(seed=seed))
        seconds = _now() - began
        # equally many of each snapshot, the first ones, whose labels are balanced
        part = torch.arange(len(images)).view(snapshots, BATCH)[:, : USED // snapshots].flatten()
        yield iterations, seconds / len(images), ImageSet(images.images[part], images.labels[part])


def _now() -> float:
    """Processor seconds with one thread, which exclude other work on the machine; clock seconds with several."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def zeroq(model: FullPrecisionModel, seed: int) -> Iterator[tuple[int, float, ImageSet]]:
    """The same for ZeroQ's loop."""
    labels = torch.arange(BATCH) % len(model.spec.classes)
    peer = ZeroQ(model, labels, initial_images(BATCH, model.spec.image_size, torch.Generator().manual_seed(seed)))
    seconds = 0.0
    for iteration in range(1, ZeroQ.iterations + 1):
        began = _now()
        peer.step()
        seconds += _now() - began
        if iteration in ITERATIONS["ZeroQ"]:
            yield iteration, seconds / BATCH, ImageSet(model.denormalize(peer.images).contiguous(), labels)
    peer.close()


def measure(seeds: int, threads: int) -> dict[str, Any]:
    """Accuracy and seconds per image of each method at each number of iterations."""
    torch.set_num_threads(threads)
    model = load_model("resnet20_cifar10", "cpu")
    evaluation_set = load_evaluation_set("embedded", model.spec)
    config = TrainingConfig(weight_bits=4, activation_bits=4, range="mse", steps=0, calibration_images=USED)
    found: dict[str, dict[int, list[tuple[float, float]]]] = {name: {} for name in ITERATIONS}
    for seed in range(seeds):
        for name in ITERATIONS:
            for iterations, seconds, images in zeroq(model, seed) if name == "ZeroQ" else ours(model, name, seed):
                accuracy = evaluate(QuantizationTraining(model, images, config).inference_network(), model, evaluation_set).top1
                found[name].setdefault(iterations, []).append((seconds, accuracy))
                print(f"seed {seed}: {name} {iterations} iterations, {seconds:.4f} s per image, W4A4 {accuracy}", file=sys.stderr)
    points = {
        name: [
            {
                "iterations": iterations,
                "seconds_an_image": round(statistics.mean(s for s, _ in values), 5),
                "w4a4": round(statistics.mean(a for _, a in values), 2),
                "spread": round(statistics.stdev(a for _, a in values), 2) if len(values) > 1 else None,
            }
            for iterations, values in curve.items()
        ]
        for name, curve in found.items()
    }
    best = points["ZeroQ"][-1]
    return {
        "threads": torch.get_num_threads(),
        "seeds": seeds,
        "points": points,
        # the cheapest of our points that is at least as accurate as ZeroQ's last one
        "cheaper_than_zeroq": {
            name: next(
                (round(best["seconds_an_image"] / p["seconds_an_image"], 1) for p in points[name] if p["w4a4"] >= best["w4a4"]), None
            )
            for name in ("mi-fgsm", "adam")
        },
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    measured = measure(options.seeds, options.threads)
    write("frontier", measured)
    print(json.dumps(measured, indent=1))
