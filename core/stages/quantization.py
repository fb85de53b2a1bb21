"""Stage: one bit width, from calibration to the analysis of its layers."""

import copy
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from core.config import RunConfig, TrainingConfig
from core.config.choices import AUTHORS, SHARED
from core.data.image_sets import ImageSet
from core.data.labeled import EvaluationSet
from core.evaluation.accuracy import Accuracy, accuracy_of, top1_hits, top1_of
from core.evaluation.agreement import Agreement, compare
from core.evaluation.answers import ANSWERS, CALIBRATED, FULL_PRECISION, LABELS, TRAINED, packed_numbers
from core.evaluation.diversity import evenly_spaced
from core.evaluation.hits import HITS, packed
from core.evaluation.prediction import predict
from core.evaluation.real import RealScores, compared_indices, measure
from core.files import write_json
from core.generation.methods import METHODS
from core.generation.sources.base import JointSource
from core.memory import memory_advice
from core.models.full_precision import FullPrecisionModel
from core.quantization.analysis import ANALYZED_IMAGES, analyze, beside_calibrated, weight_steps
from core.quantization.authors.base import authors_images
from core.quantization.integer.weights import packed_bytes
from core.quantization.saved_network import save_quantized
from core.quantization.sensitivity import sensitivities
from core.quantization.training import QuantizationTraining
from core.reporting import TEST, WARNING, Reporter
from core.stages.context import Context
from core.stages.disagreements import save_disagreements

CHECKED_IMAGES = 500  # of the evaluation set, at most, on which accuracy is checked during training


@dataclass(frozen=True)
class QuantizationInput:
    """One method's images at one bit width.

    images: the set to train on; with `source`, a joint method's, it is only analyzed. evaluation_set, full_precision, expected: what the
    networks are measured on, and the accuracy and the scores they are compared with; all None without evaluation images, the accuracy
    also where these have no labels. held_out: uint8 `(N, C, H, W)`, on which the networks are compared with the full-precision one;
    None keeps the trained one.
    """

    model: FullPrecisionModel
    method: str
    images: ImageSet
    evaluation_set: EvaluationSet | None
    full_precision: Accuracy | None
    expected: RealScores | None = None
    source: JointSource | None = None
    held_out: Tensor | None = None


def quantize(given: QuantizationInput, config: RunConfig, bits: int, folder: Path, context: Context) -> dict[str, Any]:
    """Calibrates, evaluates, trains, evaluates and analyzes one bit width, and saves the network in `folder`. Accuracies in percent;
    None without labeled evaluation images.

    Both networks are compared with the full-precision one: "real" of the figures has how close each is to it on the evaluation images,
    labeled or not, and "held_out" on `given.held_out`. "layers" has the signal-to-quantization-noise ratio of the output of each layer of
    the network that is saved, in dB, on the held-out images, else on those of the calibration. "measured_on" says which images.

    With `given.held_out`, both networks are compared with the full-precision one on these images, and with `keep` "better", what is saved
    is the calibrated or the trained network, whichever has the larger signal-to-quantization-noise ratio of the scores. No label takes part
    in the choice.

    On the way accuracy is reported as records of TEST: after calibration, after `evaluation.check_steps` and after the last step, all on
    the same part of the evaluation set, with the weights that training would end with at that step.
    """
    return _Quantization(given, config, bits, folder, context).outcome()


class _Quantization:
    """One bit width at work; the steps of `outcome` read in their order."""

    def __init__(self, given: QuantizationInput, config: RunConfig, bits: int, folder: Path, context: Context) -> None:
        self.given, self.context, self.folder = given, context, folder
        self.config: TrainingConfig = config.training_for(bits)
        self.evaluation, self.seed = config.evaluation, config.seed_of_training
        source = given.source or authors_images(given.method, given.images, given.model, self.config, self.seed)
        self.images: Any = source or given.images
        self.authors = source is not None and self.config.protocol == AUTHORS
        if source is not None and self.authors:
            self.config = source.authors_training(self.config)
        self.series = f"{given.method} {self.config.width}"
        self.stage = f"quantize/{given.method}/{self.config.width}"
        self.result_name = f"accuracy/{given.method}/{self.config.width}"
        # "calibrated", "trained" -> how close it is to full precision: on held-out images, and on those for evaluation
        self.compared: dict[str, Agreement] = {}
        self.real: dict[str, Agreement] = {}
        # likewise: which evaluation images it classifies correctly, bool (N,)
        self.hits: dict[str, Tensor] = {}
        # of each network, as in core/evaluation/answers.py
        self.answers: dict[str, dict[str, Any]] = {"real": {}, "held_out": {}}
        self.check = None
        if given.evaluation_set is not None and given.evaluation_set.labeled:
            self.check = AccuracyCheck(given.model, given.evaluation_set, self.series, context.reporter)

    def outcome(self) -> dict[str, Any]:
        """The figures of this bit width; also reported and written to quantize.json."""
        state = self.context.saved_state(self.stage)
        self.began = time.perf_counter() - (state["seconds"] if state else 0.0)
        self._calibrate(state)
        self.trained = self._train() if self.config.steps else self.calibrated
        self.kept = "trained" if self.config.steps else "calibrated"
        if self.config.steps and self.given.held_out is not None:
            self._compare(self.given.held_out)
        self._analyze()
        self.folder.mkdir(parents=True, exist_ok=True)
        save_quantized(self.training.quantized, self.config, self.folder)
        outcome = self._figures()
        write_json(self.folder / "quantize.json", outcome)
        self.context.reporter.result(self.result_name, {**outcome, "bits": self.config.weight_bits})
        last = "trained" if self.config.steps else "calibrated"
        if last in self.hits:
            name = f"{HITS}/{self.given.method}/{self.config.width}"
            self.context.reporter.result(name, packed(self.hits[last].numpy()))
        self._save_answers()
        return outcome

    def _save_answers(self) -> None:
        """The answers of all networks as a result, and images to which the one that is kept gives other classes than full precision."""
        images, real = self.given.evaluation_set, self.answers["real"]
        if images is not None and self.given.expected is not None and self.kept in real:
            compared = compared_indices(images, self.given.expected)
            if images.labeled:
                real[LABELS] = packed_numbers(images.labels[compared].int().numpy())
            save_disagreements(images, compared, real[FULL_PRECISION], real[self.kept], self.folder)
        self.context.reporter.result(f"{ANSWERS}/{self.given.method}/{self.config.width}", self.answers)

    def _calibrate(self, state: Mapping[str, Any] | None) -> None:
        """Sets the ranges and measures the calibrated network, or continues where `state` was taken."""
        given, reporter = self.given, self.context.reporter
        reporter.stage(f"calibrating {self.series}", 0)
        if state and "layer_weight_bits" in state:  # not chosen again
            self.config = replace(self.config, layer_weight_bits=state["layer_weight_bits"])
        with memory_advice(f"the calibration of {self.series}", "calibration_images", self.config.calibration_images):
            self.training = QuantizationTraining(given.model, self.images, self.config, self.seed, self.series, reporter)
        self.config = self.training.config
        if self.training.allocation is not None:
            reporter.result(f"allocation/{given.method}/{self.config.width}", self.training.allocation)
        if self.config.steps:  # before the state is loaded, as below
            calibrated = copy.deepcopy(self.training.quantized)  # a forward pass may find its ranges again
            self.layers_at_start = analyze(given.model, calibrated, self._analyzed_images()[0])["layers"], weight_steps(calibrated)
        if given.held_out is not None:
            # before the state is loaded: calibration is repeated on resume, to the same bits
            self.compared["calibrated"] = self._agreement(given.held_out, CALIBRATED)
            if self.config.steps and self.config.keep == "better":
                self.at_start = copy.deepcopy(self.training.quantized)
        reporter.rewind("training", self.series, state["training"]["step_count"] if state else 0)
        if self.check is not None:
            reporter.rewind(TEST, self.series, state.get("tested", 0) if state else -1)
        if state:
            self.training.load_state(state["training"])
            self.calibrated = None if state["calibrated"] is None else Accuracy(**state["calibrated"])
            # earlier versions did not measure it
            self.real = {name: Agreement(**figures) for name, figures in state.get("real", {}).items()}
            self.hits = dict(state.get("hits", {}))
            self.answers["real"] = dict(state.get("answers", {}))
            if self.check is not None:
                self.check.step, self.check.seconds = state.get("tested", 0), state.get("test_seconds", 0.0)
        else:
            self.calibrated = self._measure("calibrated", step=0)
        figures = {"calibrated": top1_of(self.calibrated), **self._closeness(), "bits": self.config.weight_bits}
        reporter.result(self.result_name, figures)
        if not state:
            self.context.save(self.stage, self._state)  # so that a resumed run does not calibrate again

    def _measure(self, name: str, step: int) -> Accuracy | None:
        """The network on the whole evaluation set: how close it is to full precision, under `name` in `real`; its accuracy on the part for
        the checks as a record; and its accuracy, None without labels.
        """
        given = self.given
        if given.evaluation_set is None or given.expected is None:
            return None
        network, pause_point = self.training.inference_network(), self.context.control.pause_point
        measured = measure(network, given.model, given.evaluation_set, given.expected, pause_point)
        self.real[name] = measured.agreement
        self.answers["real"] |= {FULL_PRECISION: measured.expected.packed(), name: measured.answers.packed()}
        if self.check is not None:
            self.hits[name] = measured.hits
            self.check.report(step, measured.hits[self.check.indices])
        return measured.accuracy

    def _state(self) -> dict[str, Any]:
        check = {} if self.check is None else {"tested": self.check.step, "test_seconds": self.check.seconds}
        return {
            "training": self.training.state(),
            "calibrated": None if self.calibrated is None else asdict(self.calibrated),
            "real": {name: asdict(figures) for name, figures in self.real.items()},
            "hits": self.hits,
            "answers": self.answers["real"],
            "layer_weight_bits": self.config.layer_weight_bits,
            "seconds": time.perf_counter() - self.began,
            **check,
        }

    def _train(self) -> Accuracy | None:
        """All steps, with accuracy checks between them; the accuracy after the last one."""
        training, context, check = self.training, self.context, self.check
        checked = self.evaluation.check_steps(self.config.steps)
        context.reporter.stage(f"training {self.series}", self.config.steps, training.step_count)
        with memory_advice(f"the training of {self.series}", "training_batch_size", self.config.training_batch_size):
            while not training.finished:
                context.between_steps(self.stage, self._state)
                if check is not None and check.step < training.step_count and training.step_count in checked:
                    check.measure(training.inference_network(), training.step_count)
                training.step()
        context.save(self.stage, self._state)  # evaluation may take long, and may be stopped
        context.reporter.stage(f"evaluating {self.series}", 0)
        return self._measure("trained", training.step_count)

    def _agreement(self, held_out: Tensor, name: str) -> Agreement:
        """How close the network is to full precision on the held-out images; keeps its answers under `name`."""
        comparison = compare(self.training.inference_network(), self.given.model, held_out)
        own, expected = comparison.answers()
        self.answers["held_out"] |= {FULL_PRECISION: expected.packed(), name: own.packed()}
        return comparison.figures()

    def _closeness(self) -> dict[str, Any]:
        """How close each network so far is to full precision: "real", "held_out" -> "calibrated", "trained" -> figures."""
        return {
            "held_out": {
                name: asdict(figures) | {"measured_on": f"{figures.images:,} held-out synthetic images"}
                for name, figures in self.compared.items()
            },
            "real": {name: asdict(figures) | {"measured_on": self._described(figures)} for name, figures in self.real.items()},
        }

    def _described(self, figures: Agreement) -> str:
        """The evaluation images that `figures` were measured on."""
        images = self.given.evaluation_set
        assert images is not None
        return images.description if figures.images == int(images.readable.sum()) else f"{figures.images:,} of {images.description}"

    def _compare(self, held_out: Tensor) -> None:
        """Compares the trained network, and goes back to the calibrated one if that is closer to full precision and may be kept."""
        self.compared["trained"] = self._agreement(held_out, TRAINED)
        calibrated, trained = self.compared["calibrated"], self.compared["trained"]
        if self.config.keep != "better" or trained.decibels >= calibrated.decibels:
            return
        self.kept = "calibrated"
        self.training.quantized = self.at_start
        method = self.given.method
        title = METHODS[method].title if method in METHODS else method
        self.context.reporter.result(
            f"{WARNING}/kept/{method}/{self.config.width}",
            f"Training moved the {self.config.width} network of {title} away from full precision (signal-to-noise ratio of the scores on "
            f"held-out images {calibrated.decibels:.1f} dB before, {trained.decibels:.1f} dB after), so the calibrated network is kept. "
            "Try a smaller learning rate (training_lr).",
        )

    def _analyze(self) -> None:
        """What quantization does to each layer, and each layer to the scores, as a result of the run."""
        self.context.reporter.stage(f"analyzing the layers of {self.series}", 0)
        self.context.control.pause_point()
        seen, which = self._analyzed_images()
        found = analyze(self.given.model, self.training.quantized, seen) | {"measured_on": f"{len(seen)} {which}"}
        if self.kept == "trained":
            found["layers"] = beside_calibrated(found["layers"], weight_steps(self.training.quantized), *self.layers_at_start)
        sensitive = sensitivities(self.given.model, self.training.quantized, seen)
        for layer in found["layers"]:
            layer["score_sqnr"] = sensitive[layer["name"]]
        self.context.reporter.result(f"layers/{self.given.method}/{self.config.width}", found)
        self.layers = {
            "measured_on": found["measured_on"],
            "sqnr": {layer["name"]: layer["sqnr"] for layer in found["layers"]},
        }

    def _analyzed_images(self) -> tuple[Tensor, str]:
        """The images that layers are analyzed on, uint8 `(N, C, H, W)`, and which they are."""
        held_out, images, chosen = self.given.held_out, self.given.images.images, self.training.calibrated_on
        if held_out is not None:
            # the first half is by one method, the second by another
            return held_out[evenly_spaced(len(held_out), ANALYZED_IMAGES)], "held-out synthetic images"
        return images[:ANALYZED_IMAGES] if chosen is None else images[chosen[:ANALYZED_IMAGES]], "calibration images"

    def _figures(self) -> dict[str, Any]:
        summary = self.training.summary()
        final = self.trained if self.kept == "trained" else self.calibrated
        return {
            **summary,
            "bytes": packed_bytes(self.training.quantized),
            "float32_bytes": 4 * sum(parameter.numel() for parameter in self.given.model.network.parameters()),
            "full_precision": top1_of(self.given.full_precision),
            "calibrated": top1_of(self.calibrated),
            "trained": top1_of(self.trained),
            "kept": self.kept,
            **self._protocol(),
            **self._closeness(),
            "layers": self.layers,
            "quantized": top1_of(final),
            "standard_error": None if final is None else final.standard_error,
            "drop_error": _drop_error(self.given.full_precision, final),
            **self._predicted(),
            "evaluated_on": None if self.given.evaluation_set is None else self.given.evaluation_set.description,
            "training_seconds": summary["seconds"],
            "test_seconds": 0.0 if self.check is None else round(self.check.seconds, 3),
            "seconds": round(time.perf_counter() - self.began, 3),
        }

    def _protocol(self) -> dict[str, str]:
        """How the network was trained, under "protocol"; empty for a method whose authors have no loss of the student."""
        has_protocols = self.given.method in METHODS and METHODS[self.given.method].has_protocols
        return {"protocol": AUTHORS if self.authors else SHARED} if has_protocols else {}

    def _predicted(self) -> dict[str, Any]:
        """The drop in points that is predicted for the network that was kept, if it was compared on held-out images."""
        figures = self.compared.get(self.kept)
        return {} if figures is None else {"predicted": predict(asdict(figures))}


def _drop_error(full_precision: Accuracy | None, quantized: Accuracy | None) -> float | None:
    """Standard error of the drop in points, as if both were measured on images of their own: not too small for networks that agree."""
    if full_precision is None or quantized is None:
        return None
    return round(math.hypot(full_precision.standard_error, quantized.standard_error), 3)


class AccuracyCheck:
    """Accuracy during training, on the same images each time: CHECKED_IMAGES of the evaluation set, evenly spaced."""

    def __init__(self, model: FullPrecisionModel, evaluation_set: EvaluationSet, series: str, reporter: Reporter) -> None:
        self.model, self.series, self.reporter = model, series, reporter
        count = len(evaluation_set)
        self.indices = torch.linspace(0, count - 1, min(CHECKED_IMAGES, count)).round().long()
        self.evaluation_set = evaluation_set
        self.step = 0  # the last one reported
        self.seconds = 0.0  # spent measuring

    def measure(self, network: nn.Module, step: int) -> None:
        """Measures and reports. Does not poll for pauses: a single step would be consumed in the middle of a measurement."""
        began = time.perf_counter()
        hits = top1_hits(network, self.model, Subset(self.evaluation_set, self.indices.tolist()))
        self.seconds += time.perf_counter() - began
        self.report(step, hits)

    def report(self, step: int, hits: Tensor) -> None:
        """hits: for each of `indices`, whether the network was right."""
        self.step = step
        accuracy = accuracy_of(hits[self.evaluation_set.readable[self.indices]], "")
        figures = {"top1": accuracy.top1, "standard_error": accuracy.standard_error, "images": accuracy.images, "seconds": self.seconds}
        self.reporter.record(TEST, self.series, step, figures)
