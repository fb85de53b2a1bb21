"""What quantization costs against full precision: `python benchmarks/qat.py --threads 1 --seconds 60`.

Of the embedded resnet20_cifar10 at W4A4, on the CPU. Prints one JSON object and writes benchmarks/results/qat.json:

- `quick` and `paper`: a training step (the settings of the preset, batches of 64) over what cannot be spared, which is a float32 training
  step of the same network with the same optimizer on a batch that lies ready, BatchNorm as in evaluation, and the teacher's forward pass.
- `evaluation`: top-1 accuracy of the quantized network over that of the full-precision one, on 10,000 images, which are the embedded
  2,000 in at least five turns; the seconds are those of one turn.

What is compared runs in turns, so that whatever else the machine does meets both alike; a ratio is the median of those of all turns.
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
from core.data.labelled import EvaluationSet, embedded_images
from core.evaluation.accuracy import evaluate
from core.memory import keep_memory
from core.models.full_precision import FullPrecisionModel, load_model
from core.quantization.training import QuantizationTraining
from core.threads import cpu_threads

BATCH = 64
LEAST = 5  # turns, however little time there is


def measure(threads: int = 1, seconds: float = 60.0) -> dict[str, Any]:
    """The object that is printed. seconds: about how long to measure; a third for each of the three comparisons."""
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
    batch, labels = training._next_batch()
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
    """A training step in full precision on a batch that is ready."""
    network = copy.deepcopy(model.network).eval().requires_grad_(True)
    optimizer: torch.optim.Optimizer
    # a step size of next to nothing: over many steps the same batch must not take the network elsewhere
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
    """For what is called for its time."""


def _turns(work: dict[str, Callable[[], None]], seconds: float) -> dict[str, list[float]]:
    """Seconds that each takes, run in turns until the time is up; the first turn is not counted.

    With one thread they are the processor's, so that what else it does in between is not counted; with more they are the clock's.
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
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--seconds", type=float, default=60.0, help="about how long to measure (default 60)")
    arguments = parser.parse_args()
    keep_memory()  # as a run does
    measured = measure(arguments.threads, arguments.seconds)
    write("qat", measured)
    print(json.dumps(measured, indent=1))


if __name__ == "__main__":
    main()
