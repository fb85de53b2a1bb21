"""Stage: one bit width, from calibration to the analysis of its layers."""

import copy
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from core.config import RunConfig, TrainingConfig
from core.data.image_sets import ImageSet
from core.data.labeled import EvaluationSet
from core.evaluation.accuracy import Accuracy, accuracy_of, top1_hits
from core.evaluation.agreement import Agreement, agreement
from core.files import write_json
from core.generation.sources.base import JointSource
from core.memory import memory_advice
from core.models.full_precision import FullPrecisionModel
from core.quantization.analysis import ANALYZED_IMAGES, analyze
from core.quantization.saved_network import save_quantized
from core.quantization.training import QuantizationTraining
from core.reporting import TEST, WARNING, Reporter
from core.stages.context import Context

CHECKED_IMAGES = 500  # of the evaluation set, at most, on which accuracy is checked during training


@dataclass(frozen=True)
class QuantizationInput:
    """One method's images at one bit width.

    images: the set to train on; with `source`, a joint method's, it is only analyzed. evaluation_set, full_precision: what accuracy is
    measured on and compared with. held_out: uint8 `(N, C, H, W)`, on which the calibrated and the trained network are compared; None
    keeps the trained one.
    """

    model: FullPrecisionModel
    method: str
    images: ImageSet
    evaluation_set: EvaluationSet
    full_precision: Accuracy
    source: JointSource | None = None
    held_out: Tensor | None = None


def quantize(given: QuantizationInput, config: RunConfig, bits: int, folder: Path, context: Context) -> dict[str, Any]:
    """Calibrates, evaluates, trains, evaluates and analyzes one bit width, and saves the network in `folder`. Accuracies in percent.

    With `given.held_out`, what is saved is the calibrated or the trained network, whichever has the smaller mean KL divergence from the
    full-precision one on these images. No label takes part in the choice.

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
        self.series = f"{given.method} {self.config.width}"
        self.stage = f"quantize/{given.method}/{self.config.width}"
        self.result_name = f"accuracy/{given.method}/{self.config.width}"
        self.compared: dict[str, Agreement] = {}  # "calibrated", "trained" -> how close it is to full precision
        self.check = AccuracyCheck(given.model, given.evaluation_set, self.series, context.reporter)

    def outcome(self) -> dict[str, Any]:
        """The figures of this bit width; also reported and written to quantize.json."""
        state = self.context.saved_state(self.stage)
        self.began = time.perf_counter() - (state["seconds"] if state else 0.0)
        self._calibrate(state)
        final = self.trained = self._train() if self.config.steps else self.calibrated
        self.kept = "trained" if self.config.steps else "calibrated"
        if self.compared:
            final = self._keep_better()
        self._analyze()
        self.folder.mkdir(parents=True, exist_ok=True)
        save_quantized(self.training.quantized, self.config, self.folder)
        outcome = self._figures(final)
        write_json(self.folder / "quantize.json", outcome)
        self.context.reporter.result(self.result_name, {**outcome, "bits": self.config.weight_bits})
        return outcome

    def _calibrate(self, state: Mapping[str, Any] | None) -> None:
        """Sets the ranges and measures the calibrated network, or continues where `state` was taken."""
        given, reporter = self.given, self.context.reporter
        reporter.stage(f"calibrating {self.series}", 0)
        with memory_advice(f"the calibration of {self.series}", "calibration_images", self.config.calibration_images):
            images: Any = given.source or given.images
            self.training = QuantizationTraining(given.model, images, self.config, self.seed, self.series, reporter)
        if self.given.held_out is not None and self.config.steps:
            # before the state is loaded: calibration is repeated on resume, to the same bits
            self.compared["calibrated"] = self._agreement()
            self.at_start = copy.deepcopy(self.training.quantized)
        reporter.rewind("training", self.series, state["training"]["step_count"] if state else 0)
        reporter.rewind(TEST, self.series, state.get("tested", 0) if state else -1)
        if state:
            self.training.load_state(state["training"])
            self.calibrated = Accuracy(**state["calibrated"])
            self.check.step, self.check.seconds = state.get("tested", 0), state.get("test_seconds", 0.0)
        else:
            self.calibrated = self._measure(step=0)
        reporter.result(self.result_name, {"calibrated": self.calibrated.top1, "bits": self.config.weight_bits})
        if not state:
            self.context.save(self.stage, self._state)  # so that a resumed run does not calibrate again

    def _measure(self, step: int) -> Accuracy:
        """Accuracy on the whole evaluation set, and its part for the checks as a record."""
        given = self.given
        hits = top1_hits(self.training.inference_network(), given.model, given.evaluation_set, pause_point=self.context.control.pause_point)
        self.check.report(step, hits[self.check.indices])
        return accuracy_of(hits[given.evaluation_set.readable], given.evaluation_set.description)

    def _state(self) -> dict[str, Any]:
        return {
            "training": self.training.state(),
            "calibrated": asdict(self.calibrated),
            "seconds": time.perf_counter() - self.began,
            "tested": self.check.step,
            "test_seconds": self.check.seconds,
        }

    def _train(self) -> Accuracy:
        """All steps, with accuracy checks between them; the accuracy after the last one."""
        training, context = self.training, self.context
        checked = self.evaluation.check_steps(self.config.steps)
        context.reporter.stage(f"training {self.series}", self.config.steps, training.step_count)
        with memory_advice(f"the training of {self.series}", "training_batch_size", self.config.training_batch_size):
            while not training.finished:
                context.between_steps(self.stage, self._state)
                if self.check.step < training.step_count and training.step_count in checked:
                    self.check.measure(training.inference_network(), training.step_count)
                training.step()
        context.save(self.stage, self._state)  # evaluation may take long, and may be stopped
        context.reporter.stage(f"evaluating {self.series}", 0)
        return self._measure(training.step_count)

    def _agreement(self) -> Agreement:
        assert self.given.held_out is not None
        return agreement(self.training.inference_network(), self.given.model, self.given.held_out)

    def _keep_better(self) -> Accuracy:
        """Goes back to the calibrated network if it is closer to full precision than the trained one; the accuracy of what is kept."""
        self.compared["trained"] = self._agreement()
        calibrated, trained = self.compared["calibrated"], self.compared["trained"]
        if trained.kl <= calibrated.kl:  # false for NaN
            return self.trained
        self.kept = "calibrated"
        self.training.quantized = self.at_start
        self.context.reporter.result(
            f"{WARNING}/kept/{self.given.method}/{self.config.width}",
            f"Training {self.series} moved it away from full precision (KL on held-out images {calibrated.kl:.3f} before, {trained.kl:.3f} "
            "after), so the calibrated network is kept. Try a smaller training_lr.",
        )
        return self.calibrated

    def _analyze(self) -> None:
        """What quantization does to each layer, as a result of the run."""
        self.context.reporter.stage(f"analyzing the layers of {self.series}", 0)
        self.context.control.pause_point()
        images = self.given.images.images
        chosen = self.training.calibrated_on
        seen = images[:ANALYZED_IMAGES] if chosen is None else images[chosen[:ANALYZED_IMAGES]]
        name = f"layers/{self.given.method}/{self.config.width}"
        self.context.reporter.result(name, analyze(self.given.model, self.training.quantized, seen))

    def _figures(self, final: Accuracy) -> dict[str, Any]:
        summary = self.training.summary()
        return {
            **summary,
            "full_precision": self.given.full_precision.top1,
            "calibrated": self.calibrated.top1,
            "trained": self.trained.top1,
            "kept": self.kept,
            "held_out": {name: asdict(figures) for name, figures in self.compared.items()},
            "quantized": final.top1,
            "standard_error": final.standard_error,
            "evaluated_on": final.evaluated_on,
            "training_seconds": summary["seconds"],
            "test_seconds": round(self.check.seconds, 3),
            "seconds": round(time.perf_counter() - self.began, 3),
        }


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
