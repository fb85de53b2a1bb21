"""The order of the stages: full precision, generation, diversity, quantization. Nothing else.

Used by both the command line and the worker processes. `reporter` receives progress; `control` pauses, stops and changes live values.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from core import layout
from core.checkpoints import SECONDS_BETWEEN, Checkpoints
from core.config import EVALUATION_SETS, EvaluationConfig, RunConfig, TrainingConfig
from core.data.image_sets import ImageSet, load_image_set
from core.data.labelled import EvaluationSet, load_evaluation_set
from core.errors import DataError, RunStopped
from core.evaluation.accuracy import Accuracy, accuracy_of, correct, evaluate
from core.evaluation.diversity import DRAWN, measure_diversity
from core.evaluation.encoder import Encoder, load_encoder
from core.evaluation.references import NOISE, REAL, noise_images, real_images
from core.files import remove, remove_partials, write_json
from core.generation.loop import GenerationLoop
from core.generation.methods import METHODS
from core.generation.sources.pixels import check_half_resolution
from core.memory import memory_advice
from core.models.full_precision import FullPrecisionModel, load_model
from core.models.registry import split_name
from core.quantization.analysis import ANALYSED_IMAGES, analyse
from core.quantization.placement import check_layer_bits
from core.quantization.saved_network import save_quantized
from core.quantization.training import QuantizationTraining, check_images
from core.reporting import TEST, Control, Reporter
from core.threads import cpu_threads

SNAPSHOTS = "snapshots"
TEST_IMAGES = 500  # of the evaluation set, at most: on which the accuracy is measured while a training goes on
REFERENCES = {NOISE: "noise", REAL: "real images"}  # what the diversity of synthetic images is compared with


@dataclass(frozen=True)
class Prepared:
    """Everything that a run needs, loaded and checked."""

    config: RunConfig
    model: FullPrecisionModel
    sets: Mapping[str, ImageSet]  # those given; empty when the run generates its own
    evaluation_set: EvaluationSet | None
    encoder: Encoder | None


def prepare(config: RunConfig, reporter: Reporter) -> Prepared:
    """Loads and checks all that can be refused, before the first image is computed. Raises CoreError for bad input."""
    if split_name(config.model):
        reporter.stage(f"loading {config.model}", 0)
    model = load_model(config.model, config.machine.device)
    sets = {method: load_image_set(path, model.spec) for method, path in given_images(config).items()}
    for image_set in sets.values():
        check_images(model, image_set)
    if not sets:
        check_half_resolution(model, config.generation)
    if config.bits:
        size = model.spec.image_size
        check_layer_bits(model.network, config.training, torch.zeros(1, 3, size, size, device=model.device))
    evaluation_set = load_evaluation_set(config.evaluation.data, model.spec) if config.bits else None
    encoder = None
    if config.evaluation.encoder:
        reporter.stage(f"loading encoder {config.evaluation.encoder}", 0)
        encoder = load_encoder(config.evaluation.encoder, config.machine.device)
    return Prepared(config, model, sets, evaluation_set, encoder)


def execute(
    config: RunConfig, folder: Path, reporter: Reporter, control: Control, prepared: Prepared | None = None, every: float = SECONDS_BETWEEN
) -> dict[str, Any]:
    """A whole run; files go into `folder`, which exists. Returns the result as `python -m core run --json` prints it.

    Where an earlier call with the same config and folder ended before its time, however it did, this one goes on from its last
    checkpoint and ends with the same bits. `control` must turn what was turned then, at the same iterations.

    prepared: what `prepare` returned for this config, where it was called before. every: seconds between two checkpoints.
    Raises RunStopped when `control` says so, CoreError for bad input.
    """
    # one setting of threads and device for the whole run, as RunConfig says
    with cpu_threads(config.machine.threads):
        prepared = prepared or prepare(config, reporter)
        remove_partials(folder)
        checkpoints = Checkpoints(folder / layout.CHECKPOINT, reporter.flush, every)
        result = _Execution(prepared, folder, reporter, control, checkpoints).result()
    write_json(folder / layout.RESULT, result)
    checkpoints.clear()
    return result


class _Execution:
    """The parts of one run in their order, each computed once or taken from the checkpoints."""

    def __init__(self, prepared: Prepared, folder: Path, reporter: Reporter, control: Control, checkpoints: Checkpoints) -> None:
        self.prepared, self.config, self.folder = prepared, prepared.config, folder
        self.reporter, self.control, self.checkpoints = reporter, control, checkpoints

    def result(self) -> dict[str, Any]:
        config, model = self.config, self.prepared.model
        methods = list(self.prepared.sets or config.methods)
        result: dict[str, Any] = {"methods": {method: {} for method in methods}}
        full_precision = None
        if self.prepared.evaluation_set is not None:
            full_precision = Accuracy(**self._part("full_precision", self._full_precision))
            result["full_precision"] = full_precision.top1
        sets = self.prepared.sets
        if not sets:
            self._part("generation", self._generate)
            # only now: a state that was saved before needs them
            remove(self.checkpoints.folder / SNAPSHOTS)
            sets = {method: load_image_set(self.folder / layout.IMAGES / method, model.spec) for method in methods}
        for method, image_set in sets.items():
            if "summary" in image_set.manifest:
                result["methods"][method]["generation"] = image_set.manifest["summary"]
                self.reporter.result(f"generation/{method}", image_set.manifest["summary"])
        if self.prepared.encoder is not None:
            for method, image_set in sets.items():
                measured = self._part(f"diversity/{method}", partial(self._diversity, method, image_set))
                result["methods"][method]["diversity"] = _figures(measured)
            result["references"] = {}
            for name in REFERENCES:
                measured = self._part(f"reference/{name}", partial(self._reference, name))
                result["references"][name] = _figures(measured)
        if full_precision is not None:
            for method, image_set in sets.items():
                accuracy = result["methods"][method]["accuracy"] = {}
                for bits in config.bits:
                    accuracy[str(bits)] = self._quantized(method, image_set, bits, full_precision)
        result["seconds"] = round(self.checkpoints.seconds, 3)
        return result

    def _part(self, name: str, compute: Callable[[], Any]) -> Any:
        outcome = self.checkpoints.outcome(name)
        if outcome is None:
            outcome = compute()
            self.checkpoints.finish(name, outcome)
        return outcome

    def _full_precision(self) -> dict[str, Any]:
        assert self.prepared.evaluation_set is not None
        return asdict(measure_full_precision(self.prepared.model, self.prepared.evaluation_set, self.reporter, self.control))

    def _generate(self) -> list[str]:
        snapshots = self.checkpoints.folder / SNAPSHOTS
        loops = generate(self.prepared.model, self.config, self.reporter, self.control, self.checkpoints, snapshots)
        for loop in loops:
            target = self.folder / layout.IMAGES / loop.method
            target.mkdir(parents=True, exist_ok=True)
            loop.save(target)
        return [loop.method for loop in loops]

    def _diversity(self, method: str, image_set: ImageSet) -> dict[str, Any]:
        assert self.prepared.encoder is not None
        return diversity({method: image_set}, self.prepared.encoder, self.reporter, self.control)[method]

    def _reference(self, name: str) -> dict[str, Any]:
        """The diversity of what synthetic images are compared with, or {"left_out": why}."""
        prepared = self.prepared
        assert prepared.encoder is not None
        self.reporter.stage(f"diversity of {REFERENCES[name]}", 0)
        try:
            if name == NOISE:
                images = noise_images(prepared.model, self.config.generation, self.config.machine.seed)
            else:
                images = real_images(prepared.evaluation_set or self._real_set())
            measured = measure_diversity(images, prepared.encoder, pause_point=self.control.pause_point, pictured=False)
            measured["description"] = images.manifest["description"]
        except DataError as error:  # nothing of the run depends on it
            measured = {"left_out": str(error)}
        self.reporter.result(f"reference/{name}", measured)
        return measured

    def _real_set(self) -> EvaluationSet:
        """Real images for a run that is not evaluated. Raises DataError where there are none, rather than download any."""
        data = self.config.evaluation.data
        return load_evaluation_set("embedded" if data in EVALUATION_SETS else data, self.prepared.model.spec)

    def _quantized(self, method: str, image_set: ImageSet, bits: int, full_precision: Accuracy) -> dict[str, Any]:
        model, evaluation_set = self.prepared.model, self.prepared.evaluation_set
        assert evaluation_set is not None
        config = self.config.training_for(bits)
        target = self.folder / layout.QUANTIZED / method / config.width
        return self._part(
            f"quantize/{method}/{config.width}",
            lambda: quantize(
                model,
                image_set,
                config,
                self.config.evaluation,
                self.config.seed_of_training,
                evaluation_set,
                full_precision,
                method,
                target,
                self.reporter,
                self.control,
                self.checkpoints,
            ),
        )


def _figures(measured: Mapping[str, Any]) -> dict[str, Any]:
    """Of a measured diversity, what is no part of a drawing."""
    return {name: value for name, value in measured.items() if name not in DRAWN}


def given_images(config: RunConfig) -> dict[str, Path]:
    """MethodImages -> folder of the images that the run starts from, as `layout.given_sets` finds them; empty when it generates its own."""
    return layout.given_sets(Path(config.images_from), config.methods) if config.images_from else {}


def measure_full_precision(model: FullPrecisionModel, evaluation_set: EvaluationSet, reporter: Reporter, control: Control) -> Accuracy:
    """Top-1 of the full-precision network."""
    reporter.stage("evaluating full precision", 0)
    accuracy = evaluate(model.network, model, evaluation_set, pause_point=control.pause_point)
    reporter.result(
        "full_precision", {"top1": accuracy.top1, "standard_error": accuracy.standard_error, "evaluated_on": accuracy.evaluated_on}
    )
    return accuracy


def generate(
    model: FullPrecisionModel,
    config: RunConfig,
    reporter: Reporter,
    control: Control,
    checkpoints: Checkpoints | None = None,
    folder: Path | None = None,
) -> list[GenerationLoop]:
    """All methods in step: each in turn does one iteration, so that whoever watches sees them at the same one.

    checkpoints, folder: where the state is saved and found, and where the images are kept until all are made.
    """
    with memory_advice("the generation", "batch_size", config.generation.batch_size, least=2):
        loops = [
            GenerationLoop(model, config.generation, method, config.machine, reporter, control, folder and folder / method)
            for method in config.methods
        ]
        reporter.result("layers", loops[0].layer_names)
        reporter.result("terms", loops[0].terms())
        reporter.result("methods", [{"name": method, "title": METHODS[method].title} for method in config.methods])
        reporter.running_statistics(loops[0].running_statistics())
        state = checkpoints and checkpoints.state("generation")
        for loop in loops:
            if state:
                loop.load_state(state[loop.method])
            reporter.rewind("generation", loop.method, loop.step_count)
        reporter.stage("generation", sum(loop.steps for loop in loops), sum(loop.step_count for loop in loops))
        while any(not loop.finished for loop in loops):
            _between_steps(control, checkpoints, "generation", lambda: {loop.method: loop.state() for loop in loops})
            for loop in loops:
                if not loop.finished:
                    loop.step()
        return loops


def _between_steps(control: Control, checkpoints: Checkpoints | None, part: str, state: Callable[[], Mapping[str, Any]]) -> None:
    """Saves when it is time to; when the run is stopped here, it can go on from here."""
    if checkpoints is not None and checkpoints.due():
        checkpoints.save(part, state())
    try:
        control.pause_point()
    except RunStopped:
        if checkpoints is not None:
            checkpoints.save(part, state())
        raise


def diversity(sets: Mapping[str, ImageSet], encoder: Encoder, reporter: Reporter, control: Control) -> dict[str, dict[str, Any]]:
    """CLIP similarity of each set. Name -> figures."""
    measured = {}
    for name, image_set in sets.items():
        reporter.stage(f"diversity of {name}", 0)
        measured[name] = measure_diversity(image_set, encoder, pause_point=control.pause_point)
        reporter.result(f"diversity/{name}", measured[name])
    return measured


def quantize(
    model: FullPrecisionModel,
    images: ImageSet,
    config: TrainingConfig,
    evaluation: EvaluationConfig,
    seed: int,
    evaluation_set: EvaluationSet,
    full_precision: Accuracy,
    method: str,
    folder: Path,
    reporter: Reporter,
    control: Control,
    checkpoints: Checkpoints | None = None,
) -> dict[str, Any]:
    """One bit width: calibrate, evaluate, train, evaluate, look into it, and the network as a file in `folder`. Accuracies in percent.

    On the way the accuracy is announced as records of TEST: after calibration, after `evaluation.check_steps` and after the last step, all
    on the same part of the evaluation set, and of the weights with which the training would end there.
    """
    name, part = f"{method} {config.width}", f"quantize/{method}/{config.width}"
    state = checkpoints and checkpoints.state(part)
    began = time.perf_counter() - (state["seconds"] if state else 0.0)
    reporter.stage(f"calibrating {name}", 0)
    with memory_advice(f"the calibration of {name}", "calibration_images", config.calibration_images):
        training = QuantizationTraining(model, images, config, seed, name, reporter, control)
    test = _Test(model, evaluation_set, name, reporter)
    reporter.rewind("training", name, state["training"]["step_count"] if state else 0)
    reporter.rewind(TEST, name, state.get("tested", 0) if state else -1)
    if state:
        training.load_state(state["training"])
        calibrated = Accuracy(**state["calibrated"])
        test.step, test.seconds = state.get("tested", 0), state.get("test_seconds", 0.0)
    else:
        hits = correct(training.as_it_ends(), model, evaluation_set, pause_point=control.pause_point)
        calibrated = accuracy_of(hits, evaluation_set.description)
        test.announce(0, hits[test.indices])
    reporter.result(f"accuracy/{method}/{config.width}", {"calibrated": calibrated.top1, "bits": config.weight_bits})

    def current() -> dict[str, Any]:
        return {
            "training": training.state(),
            "calibrated": asdict(calibrated),
            "seconds": time.perf_counter() - began,
            "tested": test.step,
            "test_seconds": test.seconds,
        }

    if checkpoints is not None and not state:
        checkpoints.save(part, current())  # so that nobody has to wait for the calibration again
    final = calibrated
    checked = evaluation.check_steps(config.steps)
    if config.steps:
        reporter.stage(f"training {name}", config.steps, training.step_count)
        with memory_advice(f"the training of {name}", "training_batch_size", config.training_batch_size):
            while not training.finished:
                _between_steps(control, checkpoints, part, current)
                if test.step < training.step_count and training.step_count in checked:
                    test.measure(training.as_it_ends(), training.step_count)
                training.step()
        if checkpoints is not None:
            checkpoints.save(part, current())  # evaluating may take long, and may be stopped
        reporter.stage(f"evaluating {name}", 0)
        hits = correct(training.as_it_ends(), model, evaluation_set, pause_point=control.pause_point)
        final = accuracy_of(hits, evaluation_set.description)
        test.announce(training.step_count, hits[test.indices])
    reporter.stage(f"looking into the layers of {name}", 0)
    control.pause_point()
    seen = images.images[training.calibrated_on[:ANALYSED_IMAGES]]
    reporter.result(f"layers/{method}/{config.width}", analyse(model, training.quantized, seen))
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
        "test_seconds": round(test.seconds, 3),
        "seconds": round(time.perf_counter() - began, 3),
    }
    write_json(folder / "quantize.json", outcome)
    reporter.result(f"accuracy/{method}/{config.width}", {**outcome, "bits": config.weight_bits})
    return outcome


class _Test:
    """Accuracy while a training goes on, on the same images each time: TEST_IMAGES of the evaluation set, spread evenly over it."""

    def __init__(self, model: FullPrecisionModel, evaluation_set: EvaluationSet, series: str, reporter: Reporter) -> None:
        self.model, self.series, self.reporter = model, series, reporter
        count = len(evaluation_set)
        self.indices = torch.linspace(0, count - 1, min(TEST_IMAGES, count)).round().long()
        self.images = Subset(evaluation_set, self.indices.tolist())
        self.step = 0  # the last that was announced
        self.seconds = 0.0  # that measuring took

    def measure(self, network: nn.Module, step: int) -> None:
        """Short enough to be no place to pause: a step that was asked for would be taken by a part of it."""
        began = time.perf_counter()
        hits = correct(network, self.model, self.images)
        self.seconds += time.perf_counter() - began
        self.announce(step, hits)

    def announce(self, step: int, hits: Tensor) -> None:
        """hits: for each of `indices` whether it was right."""
        self.step = step
        accuracy = accuracy_of(hits, "")
        self.reporter.record(
            TEST,
            self.series,
            step,
            {"top1": accuracy.top1, "standard_error": accuracy.standard_error, "images": accuracy.images, "seconds": self.seconds},
        )
