"""How well the drop in accuracy is predicted without a labeled image: `python benchmarks/prediction.py`.

For the embedded network and those of benchmarks/networks.py, networks of 2 to 8 bits are made in several ways, good and bad: calibrated on
well and on badly optimized images, and trained for 10, 30 and 100 steps. Of each, core/evaluation/prediction.py predicts the drop from
held-out synthetic images alone; the true drop is that on the embedded 2,000 CIFAR-10 test images. With `--imagenet FOLDER`, ImageNet
images with one folder per class, also for EfficientNet-Lite0 at 128 pixels, whose true drop is that on these images.

Reported: every point with its prediction by constants fitted on the other networks only, so that no network is predicted with its own
points; the share of true drops inside the interval; and the median error where the true drop is below 5 points. The constants fitted on
all networks are those in core/evaluation/prediction.py. Prints one JSON object and writes benchmarks/results/prediction.json and
assets/prediction.svg; takes an hour on a core. `--points FILE` takes the points of an earlier result instead of measuring them, and adds
those of other networks if `--networks` names them.
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

from benchmarks.networks import EFFICIENTNET, EMBEDDED, NETWORKS, efficientnet_lite0, export, given_spec, load
from core.config import GenerationConfig, MachineConfig, preset_for
from core.data.image_sets import ImageSet
from core.data.labeled import load_evaluation_set
from core.evaluation.accuracy import top1_hits
from core.evaluation.agreement import agreement
from core.evaluation.prediction import LARGEST, Constants, fit, predict
from core.generation.loop import synthesize
from core.generation.methods import DEFAULT_METHODS
from core.models.full_precision import FullPrecisionModel, load_model
from core.models.registry import ASSETS
from core.quantization.training import QuantizationTraining
from core.stages.generation import held_out_config

WIDTHS = range(2, 9)
TRAINED = {2: 1e-3, 3: 1e-3, 4: 2e-4}  # bit width -> step size
STEPS = (10, 30, 100)
ALL = (EMBEDDED, *NETWORKS, EFFICIENTNET)
IMAGENET_SIZE = 128  # pixels
HELD_OUT_SEED = 1_000_003
PICTURE = ASSETS / "prediction.svg"


def network(name: str, folder: Path) -> FullPrecisionModel:
    """A network as a user brings it."""
    if name == EMBEDDED:
        return load_model(name, "cpu")
    if name == EFFICIENTNET:
        return load_model(str(efficientnet_lite0(folder, IMAGENET_SIZE)), "cpu")
    from core.models.programs.importing import import_program

    export(load(name), folder / f"{name}.pt2")
    return load_model(str(import_program(folder / f"{name}.pt2", out_folder=folder, given=given_spec())), "cpu")


def points(name: str, data: str) -> Iterator[dict[str, Any]]:
    """A network's quantized networks: how each was made, its figures on held-out images, and its true drop in points on `data`."""
    with tempfile.TemporaryDirectory() as folder:
        model = network(name, Path(folder))
    preset = preset_for(model.spec.size).generation
    good, bad = replace(preset, images=512), replace(preset, images=512, iterations=8, snapshots=4)
    held_out = _held_out(model, preset)
    evaluation_set = load_evaluation_set(data, model.spec)
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
    config = replace(preset_for(model.spec.size).training_for(bits), steps=steps, training_lr=TRAINED.get(bits, 1e-4))
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


def scatter(points: Sequence[dict[str, Any]]) -> str:
    """An SVG of predicted against true drops, both from 0 to 25 points on square-root axes, with the interval of each prediction."""
    side, margin = 420, 44
    colors = dict(zip(dict.fromkeys(point["network"] for point in points), ("#0072b2", "#d55e00", "#009e73", "#cc79a7")))

    def place(drop: float) -> float:
        return (max(0.0, min(drop, LARGEST)) / LARGEST) ** 0.5 * side

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{-margin} -16 {side + margin + 130} {side + margin + 20}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect x="{-margin}" y="-16" width="100%" height="100%" fill="white"/>',
        f'<line x1="0" y1="{side}" x2="{side}" y2="0" stroke="#bbb"/>',
        f'<rect width="{side}" height="{side}" fill="none" stroke="#888"/>',
        f'<text x="{side / 2}" y="{side + 36}" text-anchor="middle">true drop (points)</text>',
        f'<text transform="translate(-30 {side / 2}) rotate(-90)" text-anchor="middle">predicted drop (points)</text>',
    ]
    for tick in (0, 1, 2, 5, 10, 15, 25):
        at = place(tick)
        lines.append(f'<text x="{at:.0f}" y="{side + 16}" text-anchor="middle">{tick}</text>')
        lines.append(f'<text x="-6" y="{side - at + 4:.0f}" text-anchor="end">{tick}</text>')
    for point in points:
        if "predicted" in point:
            x, low, y, high = place(point["drop"]), *(side - place(point[name]) for name in ("low", "predicted", "high"))
            color = colors[point["network"]]
            lines.append(f'<line x1="{x:.1f}" y1="{low:.1f}" x2="{x:.1f}" y2="{high:.1f}" stroke="{color}" stroke-opacity="0.35"/>')
            lines.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{color}"/>')
    for number, (name, color) in enumerate(colors.items()):
        lines.append(f'<circle cx="{side + 14}" cy="{12 + 18 * number}" r="4" fill="{color}"/>')
        lines.append(f'<text x="{side + 22}" y="{16 + 18 * number}">{name.removesuffix("_cifar10")}</text>')
    return "\n".join([*lines, "</svg>"]) + "\n"


def _stored(file: Path, again: Sequence[str]) -> list[dict[str, Any]]:
    """The points of an earlier result without those of networks that are measured again."""
    kept = ("network", "made", "bits", "agreement", "standard_error", "kl", "images", "score_sqnr", "drop")
    stored = json.loads(file.read_text(encoding="utf-8"))["points"]
    return [{name: point[name] for name in kept} for point in stored if point["network"] not in again]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=ALL, help="default: all, EfficientNet-Lite0 only with --imagenet")
    parser.add_argument("--points", type=Path, help="an earlier result, whose points are judged again")
    parser.add_argument("--imagenet", default="", help="a folder of ImageNet images with one folder per class")
    options = parser.parse_args()
    if EFFICIENTNET in (options.networks or ()) and not options.imagenet:
        parser.error(f"{EFFICIENTNET} needs --imagenet")
    names = options.networks or (() if options.points else ALL if options.imagenet else ALL[:-1])
    measured = _stored(options.points, names) if options.points else []
    measured += [point for name in names for point in points(name, options.imagenet if name == EFFICIENTNET else "embedded")]
    result = judged(measured)
    print(json.dumps(result, indent=1))

    from benchmarks.machine import write

    if set(result["networks"]) >= {EMBEDDED, *NETWORKS}:
        write("prediction", result)
        PICTURE.write_text(scatter(result["points"]), encoding="utf-8")


if __name__ == "__main__":
    main()
