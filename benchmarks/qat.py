"""Time of quantized training and evaluation relative to full precision: `python benchmarks/qat.py --threads 1 --seconds 60`.

For the embedded resnet20_cifar10 at W4A4, on the CPU. Prints one JSON object and writes benchmarks/results/qat.json:

- `quick` and `paper`: a training step (settings of the preset, batches of 64) relative to the work that no implementation can avoid: a
  float32 training step of the same network with the same optimizer on a prepared batch, BatchNorm as in evaluation, and the teacher's
  forward pass.
- `evaluation`: measuring the top-1 accuracy of the quantized network relative to that of the full-precision one, on 10,000 images: the
  embedded 2,000 in at least five turns. Seconds are those of one turn.

All alternatives run in turns, so that other load on the machine affects them alike; a ratio is the median over all turns.
"""

from __future__ import annotations

import argparse
import copy
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
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.machine import write
from core.config import TrainingConfig, preset
from core.data.image_sets import ImageSet
from core.data.labeled import EvaluationSet, embedded_images
from core.evaluation.accuracy import evaluate
from core.memory import keep_memory
from core.models.full_precision import FullPrecisionModel, load_model
from core.quantization.training import QuantizationTraining
from core.threads import cpu_threads

BATCH = 64
LEAST = 5  # turns, even if the time is up


def measure(threads: int = 1, seconds: float = 60.0) -> dict[str, Any]:
    """Runs all measurements; returns the JSON object. seconds: about how long, a third of it for each of the three comparisons."""
    with cpu_threads(threads):
        model = load_model("resnet20_cifar10", "cpu")
        images, labels = embedded_images()
        image_set = ImageSet(images, torch.tensor(labels))
        settings = {
            name: replace(preset(name).training, weight_bits=4, activation_bits=4, training_batch_size=BATCH, steps=100_000)
            for name in ("quick", "paper")
        }
        result: dict[str, Any] = {"torch": torch.__version__, "threads": threads}
        for name, config in settings.items():
            result[name] = _steps(model, image_set, config, seconds / 3)
        result["evaluation"] = _evaluation(model, image_set, settings["quick"], seconds / 3)
    return result


def _steps(model: FullPrecisionModel, images: ImageSet, config: TrainingConfig, seconds: float) -> dict[str, float]:
    training = QuantizationTraining(model, images, config)
    batch, labels = training.source.batch(0, training.teacher, training.student)
    batch = batch.contiguous(memory_format=torch.channels_last)
    float_step = _float_step(model, batch, labels, config)

    def teacher() -> None:
        with torch.no_grad():
            model.network(batch)

    taken = _turns({"step": training.step, "float_step": float_step, "teacher": teacher}, seconds)
    ratios = [step / (float_step + teacher) for step, float_step, teacher in zip(*taken.values())]
    return {
        "ratio": round(statistics.median(ratios), 3),
        **{f"{name}_ms": round(1000 * statistics.median(values), 2) for name, values in taken.items()},
        "turns": len(ratios),
    }


def _float_step(model: FullPrecisionModel, batch: Tensor, labels: Tensor, config: TrainingConfig) -> Callable[[], None]:
    """A training step in full precision on a prepared batch."""
    network = copy.deepcopy(model.network).eval().requires_grad_(True)
    optimizer: torch.optim.Optimizer
    # a tiny step size, because many steps on the same batch must not change the network
    if config.training_optimizer == "adam":
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-9)
    else:
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-9, momentum=0.9, nesterov=True)

    def step() -> None:
        loss = F.cross_entropy(network(batch), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def _evaluation(model: FullPrecisionModel, images: ImageSet, config: TrainingConfig, seconds: float) -> dict[str, float]:
    quantized = QuantizationTraining(model, images, config).inference_network()
    evaluation_set = EvaluationSet(images.images, images.labels.tolist(), "embedded", model.spec.image_size)

    def accuracy(network: nn.Module) -> Callable[[], None]:
        return lambda: _ignored(evaluate(network, model, evaluation_set))

    taken = _turns({"quantized": accuracy(quantized), "float": accuracy(model.network)}, seconds)
    ratios = [quantized / full for quantized, full in zip(*taken.values())]
    return {
        "ratio": round(statistics.median(ratios), 3),
        **{f"{name}_seconds": round(statistics.median(values), 3) for name, values in taken.items()},
        "images": len(evaluation_set) * len(ratios),
        "turns": len(ratios),
    }


def _ignored(_value: Any) -> None:
    """Discards a result: only the time of the call matters."""


def _turns(work: dict[str, Callable[[], None]], seconds: float) -> dict[str, list[float]]:
    """Seconds of each function, called in turns until the time is up; the first turn is not counted.

    Processor seconds with one thread, which exclude other work on the machine; clock seconds with several.
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    taken: dict[str, list[float]] = {name: [] for name in work}
    end = time.perf_counter() + seconds
    turn = 0
    while turn <= LEAST or time.perf_counter() < end:
        for name, do in work.items():
            began = clock()
            do()
            if turn:
                taken[name].append(clock() - began)
        turn += 1
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--seconds", type=float, default=60.0, help="about how long to measure (default: 60)")
    arguments = parser.parse_args()
    keep_memory()  # as a run does
    measured = measure(arguments.threads, arguments.seconds)
    write("qat", measured)
    print(json.dumps(measured, indent=1))


if __name__ == "__main__":
    main()
