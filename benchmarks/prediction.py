"""How well the drop in accuracy is predicted without a labeled image: `python benchmarks/prediction.py`.

For the embedded network and those of benchmarks/networks.py, networks of 2 to 8 bits are made in several ways, good and bad: calibrated on
well and on badly optimized images, and trained for 10, 30 and 100 steps. Of each, core/evaluation/prediction.py predicts the drop from
held-out synthetic images alone; the true drop is that on the embedded 2,000 CIFAR-10 test images.

Reported: every point with its prediction by constants fitted on the other networks only, so that no network is predicted with its own
points; the share of true drops inside the interval; and the median error where the true drop is below 5 points. The constants fitted on
all networks are those in core/evaluation/prediction.py. Prints one JSON object and writes benchmarks/results/prediction.json; takes half
an hour on two cores. `--points FILE` takes the points of an earlier result instead of measuring them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import Tensor, nn

from benchmarks.networks import EMBEDDED, NETWORKS, export, given_spec, load
from core.config import PRESETS, GenerationConfig, MachineConfig
from core.data.image_sets import ImageSet
from core.data.labeled import load_evaluation_set
from core.evaluation.accuracy import top1_hits
from core.evaluation.agreement import agreement
from core.evaluation.prediction import Constants, fit, predict
from core.generation.loop import synthesize
from core.generation.methods import DEFAULT_METHODS
from core.models.full_precision import FullPrecisionModel, load_model
from core.quantization.training import QuantizationTraining
from core.stages.generation import held_out_config

WIDTHS = range(2, 9)
TRAINED = {2: 1e-3, 3: 1e-3, 4: 2e-4}  # bit width -> step size
STEPS = (10, 30, 100)
HELD_OUT_SEED = 1_000_003


def network(name: str, folder: Path) -> FullPrecisionModel:
    """A network as a user brings it."""
    if name == EMBEDDED:
        return load_model(name, "cpu")
    from core.models.programs.importing import import_program

    export(load(name), folder / f"{name}.pt2")
    return load_model(str(import_program(folder / f"{name}.pt2", out_folder=folder, given=given_spec())), "cpu")


def points(name: str) -> Iterator[dict[str, Any]]:
    """A network's quantized networks: how each was made, its figures on held-out images, and its true drop in points."""
    with tempfile.TemporaryDirectory() as folder:
        model = network(name, Path(folder))
    quick = PRESETS["quick"].generation
    good, bad = replace(quick, images=512), replace(quick, images=512, iterations=8, snapshots=4)
    held_out = _held_out(model, quick)
    evaluation_set = load_evaluation_set("embedded", model.spec)
    full = top1_hits(model.network, model, evaluation_set)

    def point(made: str, bits: int, quantized: nn.Module) -> dict[str, Any]:
        hits = top1_hits(quantized, model, evaluation_set)
        drop = 100 * float(full.double().mean() - hits.double().mean())
        figures = asdict(agreement(quantized, model, held_out))
        found = {"network": name, "made": made, "bits": bits, **figures, "drop": round(drop, 2)}
        print(json.dumps(found), file=sys.stderr, flush=True)
        return found

    for images, generation in (("good", good), ("bad", bad)):
        made, _ = synthesize(model, generation)
        for bits in WIDTHS:
            yield point(f"calibrated on {images} images", bits, _training(model, made, bits, 0).inference_network())
        if images == "good":
            yield from _trained(model, made, point)


def _trained(model: FullPrecisionModel, images: ImageSet, point: Any) -> Iterator[dict[str, Any]]:
    for bits in TRAINED:
        training = _training(model, images, bits, max(STEPS))
        while not training.finished:
            training.step()
            if training.step_count in STEPS:
                yield point(f"trained for {training.step_count} steps", bits, training.inference_network())


def _training(model: FullPrecisionModel, images: ImageSet, bits: int, steps: int) -> QuantizationTraining:
    config = replace(PRESETS["quick"].training_for(bits), steps=steps, training_lr=TRAINED.get(bits, 1e-4))
    return QuantizationTraining(model, images, config)


def _held_out(model: FullPrecisionModel, config: GenerationConfig) -> Tensor:
    own, machine = held_out_config(config), MachineConfig(seed=HELD_OUT_SEED)
    return torch.cat([synthesize(model, own, method, machine)[0].images for method in DEFAULT_METHODS])


def judged(measured: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The points with their predictions by constants fitted on the other networks, and how good these are."""
    names = list(dict.fromkeys(point["network"] for point in measured))
    constants: dict[str, Constants] = {name: fit([point for point in measured if point["network"] != name]) for name in names}
    predicted = [{**point, **_words(predict(point, constants[point["network"]]))} for point in measured]
    answered = [point for point in predicted if "predicted" in point]
    inside = [point["low"] <= point["drop"] <= point["high"] for point in answered]
    small = [abs(point["predicted"] - point["drop"]) for point in answered if point["drop"] < 5]
    return {
        "networks": names,
        "count": len(measured),
        "predicted": len(answered),
        "inside_the_interval": round(sum(inside) / len(inside), 3),
        "median_error_below_5": round(median(small), 2),
        "constants": asdict(fit(measured)),
        "points": predicted,
    }


def _words(prediction: dict[str, Any]) -> dict[str, Any]:
    if "why_not" in prediction:
        return prediction
    return {"predicted": prediction["drop"], "low": prediction["low"], "high": prediction["high"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=(EMBEDDED, *NETWORKS), default=(EMBEDDED, *NETWORKS))
    parser.add_argument("--points", type=Path, help="an earlier result, whose points are judged again")
    options = parser.parse_args()
    if options.points:
        kept = ("network", "made", "bits", "agreement", "standard_error", "kl", "images", "score_sqnr", "drop")
        stored = json.loads(options.points.read_text(encoding="utf-8"))["points"]
        measured = [{name: point[name] for name in kept} for point in stored]
    else:
        measured = [point for name in options.networks for point in points(name)]
    result = judged(measured)
    print(json.dumps(result, indent=1))

    from benchmarks.machine import write

    if set(result["networks"]) == {EMBEDDED, *NETWORKS}:
        write("prediction", result)


if __name__ == "__main__":
    main()
