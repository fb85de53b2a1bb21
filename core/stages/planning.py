"""Stage: chooses images, iterations and training steps so that a run takes about the time that it may take.

A few steps of everything that a run does are timed on this machine, on the network itself. One number, the effort, then scales the
settings of the run: at 1 they are as given. Images grow with the square root of the effort, iterations with its fourth root, training
steps with its power of 0.75, so that generation and training take the same share at every budget. Step sizes fall with the square root of
the training steps.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from core.config import GenerationConfig, RunConfig, TrainingConfig
from core.config.choices import AUTHORS
from core.data.image_sets import ImageSet
from core.data.labeled import EvaluationSet
from core.evaluation.encoder import Encoder
from core.generation.loop import GenerationLoop
from core.generation.methods import DEFAULT_METHODS, METHODS, is_reference
from core.generation.sources.base import JointSource
from core.models.full_precision import FullPrecisionModel
from core.quantization.authors.base import AuthorsImages, authors_images
from core.quantization.training import QuantizationTraining
from core.stages.context import Context
from core.stages.generation import held_out_config

_TIMED = 2  # steps of each kind, after one that warms up
_IMAGES = 64  # images that evaluation is timed on
_MARGIN = 0.94  # of the time left is planned for: steps slow down when a machine becomes warm or busy
_EFFORTS = (1e-3, 1e3)
_LEAST = {"images": 64, "iterations": 20, "steps": 20}
_MOST = {"images": 20_480, "iterations": 1_000, "steps": 20_000}


@dataclass(frozen=True)
class Costs:
    """Seconds on this machine: of an image in one iteration of a generation and of a training step, both the mean of the run's methods;
    of an image in one iteration of the held-out images; of a calibration with the analysis of its layers; of an image that the
    full-precision or the quantized network scores; and of an image that the encoder embeds."""

    image_iteration: float
    held_out_iteration: float
    step: float
    calibration: float
    score: float
    quantized_score: float
    embedding: float


@dataclass(frozen=True)
class Work:
    """What a run computes beside generation and training: how many evaluation images, and whether held-out images are made."""

    evaluated: int
    holds_out: bool
    embeds: bool


def planned(config: RunConfig, costs: Costs, work: Work, seconds: float) -> RunConfig:
    """The config with as many images, iterations and training steps as fit into `seconds`, or the fewest if none do."""
    low, high = (math.log(effort) for effort in _EFFORTS)
    for _ in range(40):
        middle = (low + high) / 2
        if seconds_of(scaled(config, math.exp(middle)), costs, work) <= seconds:
            low = middle
        else:
            high = middle
    return scaled(config, math.exp(low))


def scaled(config: RunConfig, effort: float) -> RunConfig:
    """The config with its numbers of images, iterations and training steps scaled by the effort, within bounds."""
    generation = config.generation
    if not config.images_from:
        snapshots = generation.snapshots
        noise = _bounded("images", generation.images * effort**0.5) / snapshots
        iterations = max(_bounded("iterations", generation.iterations * effort**0.25), 4 * snapshots)
        # whole batches: a small last one would cost as much time for each iteration, and match worse
        batches = max(1, round(noise / generation.batch_size))
        noise = batches * generation.batch_size if noise >= generation.batch_size else max(2, round(noise))
        generation = replace(generation, images=noise * snapshots, iterations=iterations)
    steps = {
        bits: _bounded("steps", config.training_for(bits).steps * effort**0.75) for bits in config.bits if config.training_for(bits).steps
    }
    return replace(config, generation=generation).with_steps(steps)


def _bounded(name: str, value: float) -> int:
    return int(min(_MOST[name], max(_LEAST[name], round(value))))


def seconds_of(config: RunConfig, costs: Costs, work: Work) -> float:
    """How long the stages of a run take."""
    methods = len(config.methods)
    total = 0.0
    if not config.images_from:
        optimized = sum(not is_reference(method) for method in config.methods)
        total += optimized * _image_iterations(config.generation) * costs.image_iteration
    if config.bits and work.holds_out:
        total += len(DEFAULT_METHODS) * _image_iterations(held_out_config(config.generation)) * costs.held_out_iteration
    if work.embeds:
        total += (methods + 2) * config.generation.saved_images * costs.embedding
    if config.bits:
        total += work.evaluated * costs.score
    for bits in config.bits:
        steps = config.training_for(bits).steps
        checks = 2 if steps else 1
        held_out = 2 * held_out_config(config.generation).noise_images if work.holds_out else 0
        scored = checks * (work.evaluated * costs.quantized_score + held_out * (costs.quantized_score + costs.score))
        total += methods * (costs.calibration + steps * costs.step + scored)
    return total


def _image_iterations(config: GenerationConfig) -> float:
    """Images in one iteration at full size; one at half the size costs a third."""
    return config.noise_images * config.iterations * (1 - config.half_resolution_fraction * 2 / 3)


class _Generated(NamedTuple):
    """Of one method: images, the seconds of one in an iteration, and the source if it may learn together with a student."""

    method: str
    images: ImageSet
    image_iteration: float
    source: JointSource | None = None


class Plan:
    """What a run computes, how long each part takes on this machine, and the settings that fit into the run's budget of time."""

    def __init__(
        self,
        model: FullPrecisionModel,
        config: RunConfig,
        evaluation_set: EvaluationSet | None,
        encoder: Encoder | None,
        sets: Mapping[str, ImageSet],
        holds_out: bool,
    ) -> None:
        self.model, self.config, self.evaluation_set, self.encoder, self.sets = model, config, evaluation_set, encoder, sets
        self.work = Work(0 if evaluation_set is None else len(evaluation_set), holds_out, encoder is not None)

    def measured(self, context: Context, spent: float = 0.0) -> RunConfig:
        """Measures, then returns the settings. spent: seconds that the run took so far."""
        began = time.perf_counter()
        context.reporter.stage("measuring the speed of this machine", 0)
        self.costs = self._measure(context)
        self.left = max(0.0, 60 * self.config.machine.budget - spent - (time.perf_counter() - began))
        self.chosen = planned(self.config, self.costs, self.work, _MARGIN * self.left)
        return self.chosen

    def as_result(self) -> dict[str, Any]:
        """What was chosen, for pages and the command line; times in seconds."""
        config = self.chosen
        return {
            "images": config.generation.saved_images,
            "iterations": config.generation.iterations,
            "batch_size": config.generation.batch_size,
            "steps": {str(bits): config.training_for(bits).steps for bits in config.bits},
            "training_lr": {str(bits): float(f"{config.training_for(bits).training_lr:.4g}") for bits in config.bits},
            "training_batch_size": config.training.training_batch_size,
            "expected_seconds": round(seconds_of(config, self.costs, self.work), 1),
            "seconds_left": round(self.left, 1),
            "costs": {name: float(f"{value:.4g}") for name, value in asdict(self.costs).items()},
        }

    def _measure(self, context: Context) -> Costs:
        timed = [self._generated(method, context) for method in self.sets or self.config.methods]
        optimized = [one.image_iteration for one in timed if not is_reference(one.method)]
        images, image_iteration = timed[0].images, statistics.fmean(optimized or [0.0])
        held_out = image_iteration
        if self.work.holds_out and self.config.bits:
            usual = {one.method: one for one in timed}.get(DEFAULT_METHODS[0])
            held_out = (usual or self._generated(DEFAULT_METHODS[0], context)).image_iteration
        embedding = 0.0
        if self.encoder is not None:
            sample = _repeated(images, _IMAGES).images[:_IMAGES]
            self.encoder.embed_images(sample[:2])
            began = time.perf_counter()
            self.encoder.embed_images(sample)
            embedding = (time.perf_counter() - began) / len(sample)
        trained = self._trained(timed, context) if self.config.bits else (0.0,) * 4
        return Costs(image_iteration, held_out, *trained, embedding)

    def _generated(self, method: str, context: Context) -> _Generated:
        """A batch of images and the seconds of one in an iteration; given images, if the run has some."""
        if self.sets:
            return _Generated(method, self.sets[method], 0.0)
        generation = self.config.generation
        batch = max(2, min(generation.batch_size, generation.noise_images))
        few = replace(generation, images=batch, batch_size=batch, snapshots=1, iterations=_TIMED + 1, half_resolution_fraction=0.0)
        loop = GenerationLoop(self.model, few, method, replace(self.config.machine, compile=False))
        loop.step()
        seconds = _timed(loop.step, context) / batch
        source = loop.source if isinstance(loop.source, JointSource) else None
        return _Generated(method, loop.image_set(), seconds, source)

    def _trained(self, timed: Sequence[_Generated], context: Context) -> tuple[float, float, float, float]:
        """Seconds of a training step and a calibration, and of an image that either network scores."""
        settings = replace(self.config.training_for(self.config.bits[0]), steps=_TIMED + 2)
        images = _repeated(timed[0].images, max(settings.calibration_images, settings.training_batch_size, _IMAGES))
        began = time.perf_counter()
        training = QuantizationTraining(self.model, images, settings, self.config.seed_of_training)
        calibration = 2 * (time.perf_counter() - began)  # with the analysis of the layers, which takes about as long
        training.step()
        usual = _timed(training.step, context)
        step = statistics.fmean(self._own_step(one, images, settings, context) or usual for one in timed)
        inputs = self.model.normalize(images.images[:_IMAGES]).contiguous(memory_format=torch.channels_last)
        reading = 0.0 if self.evaluation_set is None else _seconds_to_read(self.evaluation_set)
        score, quantized = (_seconds_of_scores(network, inputs) for network in (self.model.network, training.inference_network()))
        return step, calibration, score + reading, quantized + reading

    def _own_step(self, timed: _Generated, images: ImageSet, settings: TrainingConfig, context: Context) -> float:
        """Seconds of a training step by the authors' protocol, or in which the method's generator learns on; 0 for the usual one."""
        source: JointSource | AuthorsImages | None = authors_images(timed.method, images, self.model, settings)
        if timed.source is not None and METHODS[timed.method].is_joint(settings.protocol):
            source = timed.source
        if source is None:
            return 0.0
        if settings.protocol == AUTHORS:
            settings = source.authors_training(settings)
        steps = max(_TIMED, self.config.generation.student_steps)  # a generator may learn in one of these only
        settings = replace(settings, steps=steps + 2)
        if isinstance(source, JointSource):
            source.join(settings)
        training = QuantizationTraining(self.model, source, settings, self.config.seed_of_training)
        training.step()
        return _timed(training.step, context, steps)


def _timed(step: Callable[[], Any], context: Context, calls: int = _TIMED) -> float:
    """Seconds of one call: the mean of a few."""
    seconds = 0.0
    for _ in range(calls):
        context.control.pause_point()
        began = time.perf_counter()
        step()
        seconds += time.perf_counter() - began
    return seconds / calls


@torch.no_grad()
def _seconds_of_scores(network: nn.Module, inputs: Tensor) -> float:
    """Of one image."""
    network(inputs)
    began = time.perf_counter()
    float(network(inputs).sum())  # waits for a GPU
    return (time.perf_counter() - began) / len(inputs)


def _seconds_to_read(evaluation_set: EvaluationSet) -> float:
    """Of one image of the evaluation set."""
    count = min(_IMAGES, len(evaluation_set))
    began = time.perf_counter()
    for index in range(count):
        evaluation_set[index]
    return (time.perf_counter() - began) / count


def _repeated(images: ImageSet, count: int) -> ImageSet:
    """`count` images."""
    numbers = torch.arange(count) % len(images)
    return ImageSet(images.images[numbers], images.labels[numbers])
