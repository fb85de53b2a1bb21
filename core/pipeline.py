"""The order of the stages: full precision, generation, diversity, quantization. Nothing else.

Both the command line and the dashboard's worker threads come through here; who watches and who turns is in `reporter` and `live`.
"""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core import layout
from core.config import GenerationConfig, QuantizationConfig, RunConfig
from core.data.image_sets import ImageSet, load_image_set, save_image_set
from core.data.labelled import EvaluationSet, load_evaluation_set
from core.evaluation.accuracy import Accuracy, evaluate
from core.evaluation.diversity import measure_diversity
from core.evaluation.encoder import Encoder, load_encoder
from core.generation.synthesis import Synthesis
from core.models.full_precision import FullPrecisionModel, load_model
from core.quantization.checkpoint import save_quantized
from core.quantization.qat import QuantizationTraining, check_images
from core.reporting import Live, Reporter
from core.threads import cpu_threads

GIVEN = "given"  # the lane of images that were not generated in this run


def execute(config: RunConfig, folder: Path, reporter: Reporter, live: Live) -> dict[str, Any]:
    """A whole run; files go into `folder`, which exists. Returns the result as `python -m core run --json` prints it.

    Everything that can be refused is loaded and checked before the first image is computed.
    Raises RunStopped when `live` says so, CoreError for bad input.
    """
    began = time.perf_counter()
    # one setting of threads and device for the whole run, as RunConfig says
    with cpu_threads(config.generation.threads):
        model = load_model(config.generation.model, config.generation.device)
        sets = {lane: load_image_set(path, model.spec) for lane, path in given_images(config).items()}
        for image_set in sets.values():
            check_images(model, image_set)
        evaluation_set = load_evaluation_set(config.quantization.data, model.spec) if config.bits else None
        encoder = None
        if config.encoder:
            reporter.stage(f"loading encoder {config.encoder}", 0)
            encoder = load_encoder(config.encoder, config.generation.device)
        result: dict[str, Any] = {"optimizers": {lane: {} for lane in (sets or config.optimizers)}}
        full_precision = None
        if evaluation_set is not None:
            full_precision = measure_full_precision(model, evaluation_set, reporter, live)
            result["full_precision"] = full_precision.top1
        if not sets:
            configs = [config.generation_for(name) for name in config.optimizers]
            sets = generate(model, configs, reporter, live)
            for lane, image_set in sets.items():
                target = folder / layout.IMAGES / lane
                target.mkdir(parents=True)
                save_image_set(image_set, target)
        for lane, image_set in sets.items():
            if "summary" in image_set.manifest:
                result["optimizers"][lane]["generation"] = image_set.manifest["summary"]
                reporter.result(f"generation/{lane}", image_set.manifest["summary"])
        if encoder is not None:
            for lane, measured in diversity(sets, encoder, reporter, live).items():
                result["optimizers"][lane]["diversity"] = {k: v for k, v in measured.items() if k not in ("histogram", "matrix")}
        if evaluation_set is not None and full_precision is not None:
            for lane, image_set in sets.items():
                accuracy = result["optimizers"][lane]["accuracy"] = {}
                for bits in config.bits:
                    target = folder / layout.QUANTIZED / lane / f"W{bits}A{bits}"
                    accuracy[str(bits)] = quantize(
                        model, image_set, config.quantization_for(bits), evaluation_set, full_precision, lane, target, reporter, live
                    )
    result["seconds"] = round(time.perf_counter() - began, 3)
    (folder / layout.RESULT).write_text(json.dumps(result, indent=2) + "\n")
    return result


def given_images(config: RunConfig) -> dict[str, Path]:
    """Lane -> folder of the images that the run starts from; empty when it generates its own.

    A folder of one set is one lane; a folder that holds sets, as a run leaves them, is one lane for each chosen optimizer.
    """
    if not config.images_from:
        return {}
    root = Path(config.images_from)
    lanes = {name: root / name for name in config.optimizers if (root / name).is_dir()}
    return lanes or {GIVEN: root}


def measure_full_precision(model: FullPrecisionModel, evaluation_set: EvaluationSet, reporter: Reporter, live: Live) -> Accuracy:
    """Top-1 of the full-precision network."""
    reporter.stage("evaluating full precision", 0)
    accuracy = evaluate(model.network, model, evaluation_set, checkpoint=live.checkpoint)
    reporter.result(
        "full_precision", {"top1": accuracy.top1, "standard_error": accuracy.standard_error, "evaluated_on": accuracy.evaluated_on}
    )
    return accuracy


def generate(model: FullPrecisionModel, configs: Sequence[GenerationConfig], reporter: Reporter, live: Live) -> dict[str, ImageSet]:
    """All lanes in step: each in turn does one iteration, so that whoever watches sees them at the same one. Lane -> images."""
    lanes = [Synthesis(model, config, reporter, live) for config in configs]
    reporter.stage("generation", sum(lane.steps for lane in lanes))
    while any(not lane.finished for lane in lanes):
        live.checkpoint()
        for lane in lanes:
            if not lane.finished:
                lane.step()
    return {lane.lane: lane.image_set() for lane in lanes}


def diversity(sets: Mapping[str, ImageSet], encoder: Encoder, reporter: Reporter, live: Live) -> dict[str, dict[str, Any]]:
    """CLIP similarity of each set. Name -> figures."""
    measured = {}
    for name, image_set in sets.items():
        reporter.stage(f"diversity of {name}", 0)
        measured[name] = measure_diversity(image_set, encoder, checkpoint=live.checkpoint)
        reporter.result(f"diversity/{name}", measured[name])
    return measured


def quantize(
    model: FullPrecisionModel,
    images: ImageSet,
    config: QuantizationConfig,
    evaluation_set: EvaluationSet,
    full_precision: Accuracy,
    lane: str,
    folder: Path,
    reporter: Reporter,
    live: Live,
) -> dict[str, Any]:
    """One bit width: calibrate, evaluate, train, evaluate, and the network as a file in `folder`. Accuracies in percent."""
    began = time.perf_counter()
    name = f"{lane} {config.width}"
    reporter.stage(f"calibrating {name}", 0)
    training = QuantizationTraining(model, images, config, name, reporter, live)
    calibrated = evaluate(training.student, model, evaluation_set, checkpoint=live.checkpoint)
    reporter.result(f"accuracy/{lane}/{config.width}", {"calibrated": calibrated.top1, "bits": config.weight_bits})
    final = calibrated
    if config.steps:
        reporter.stage(f"training {name}", config.steps)
        while not training.finished:
            live.checkpoint()
            training.step()
        reporter.stage(f"evaluating {name}", 0)
        final = evaluate(training.student, model, evaluation_set, checkpoint=live.checkpoint)
    folder.mkdir(parents=True, exist_ok=True)
    save_quantized(training.quantized, config, folder)
    summary = training.summary()
    outcome = {
        **summary,
        "full_precision": full_precision.top1,
        "calibrated": calibrated.top1,
        "quantized": final.top1,
        "standard_error": final.standard_error,
        "evaluated_on": final.evaluated_on,
        "training_seconds": summary["seconds"],
        "seconds": round(time.perf_counter() - began, 3),
    }
    (folder / "quantize.json").write_text(json.dumps(outcome, indent=2) + "\n")
    reporter.result(f"accuracy/{lane}/{config.width}", {**outcome, "bits": config.weight_bits})
    return outcome
