"""Stages: images by every method; and held-out images, on which the networks of a bit width are compared without labels."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from core import layout
from core.config import GenerationConfig, RunConfig
from core.data.image_sets import ImageSet, save_image_set
from core.files import atomic_write
from core.generation.apart import are_independent, tasks
from core.generation.batches import Batches
from core.generation.loop import GenerationLoop
from core.generation.methods import DEFAULT_METHODS, METHODS, load_source
from core.generation.sources.base import JointSource
from core.memory import memory_advice
from core.models.full_precision import FullPrecisionModel
from core.reporting import WARNING, Reporter
from core.stages.context import Context

STAGE = "generation"
HELD_OUT = "held-out images"
_SEED = 1_000_003  # from the run's seed to that of its held-out images, which must not be the images it trains on
_SEEDS = 2**31
_LEAST, _MOST, _SHARE = 8, 64, 8  # noise images of each method: an eighth of the run's


def generate(
    model: FullPrecisionModel, config: RunConfig, context: Context, folder: Path | None = None, images: Path | None = None
) -> list[GenerationLoop]:
    """All methods in turn, one iteration each, so that a viewer sees the same iteration of each. folder: for the images as they are made.
    images: for finished shards, of each method in a folder of its name.
    """
    reporter = context.reporter
    with memory_advice("the generation", "batch_size", config.generation.batch_size, least=2):
        loops = [
            GenerationLoop(
                model,
                config.generation,
                method,
                config.machine,
                reporter,
                context.control,
                folder and folder / method,
                images and images / method,
            )
            for method in config.methods
        ]
        reporter.result("layers", loops[0].layer_names)
        reporter.result("terms", list({term["name"]: term for loop in loops for term in loop.terms()}.values()))
        reporter.result("methods", [{"name": method, "title": METHODS[method].title} for method in config.methods])
        reporter.running_statistics(loops[0].running_statistics())
        _load(loops, STAGE, context)
        for loop in loops:
            reporter.rewind(STAGE, loop.method, loop.step_count)
        reporter.stage(STAGE, sum(loop.steps for loop in loops), sum(loop.step_count for loop in loops))
        if context.batches is not None:
            for loop in loops:
                _finish_elsewhere(loop, loops, context.batches, context)
        _finish(loops, STAGE, context)
        for loop in loops:
            _warn_of_layers(loop, reporter)
        return loops


def _warn_of_layers(loop: GenerationLoop, reporter: Reporter) -> None:
    """Says that the images match the running statistics less than usual, and in which layers; not of a method with a loss of its own, which
    often asks for something else.
    """
    if not METHODS[loop.method].own_loss and (folds := loop.unmatched()):
        summary = loop.summary()
        layers = ", ".join(f"{name} ({fold:.1f}-fold)" for name, fold in folds.items())
        reporter.result(
            f"{WARNING}/statistics/{loop.method}",
            f"Images of {METHODS[loop.method].title} match the running statistics less than usual: L_BNS fell from "
            f"{summary['bns_loss_first']:.0f} to {summary['bns_loss_last']:.0f}, least in {layers}. Try more iterations, or more time.",
        )


def held_out_config(config: GenerationConfig) -> GenerationConfig:
    """The settings of one method's held-out images."""
    count = min(_MOST, max(_LEAST, config.noise_images // _SHARE))
    return replace(config, images=count, snapshots=1, batch_size=min(config.batch_size, count))


def generate_held_out(model: FullPrecisionModel, config: RunConfig, context: Context, folder: Path, snapshots: Path) -> None:
    """Writes images into `folder` that no network of the run is calibrated or trained on, half by MI-FGSM and half by Adam.

    They start from other noise than the run's own, and only the last snapshot is kept; otherwise the run's settings apply, as they were
    when it started. Two methods, so that a network does not win by fitting the style of the one that it was trained on. snapshots: a
    folder for what a resumed attempt needs.
    """
    own = held_out_config(config.generation)
    machine = replace(config.machine, seed=(config.machine.seed + _SEED) % _SEEDS)
    context.reporter.stage("generating held-out images", 0)
    with memory_advice("the generation", "batch_size", own.batch_size, least=2):
        loops = [GenerationLoop(model, own, method, machine, folder=snapshots / method) for method in DEFAULT_METHODS]
        _load(loops, HELD_OUT, context)
        _finish(loops, HELD_OUT, context)
    sets = [loop.image_set() for loop in loops]
    folder.mkdir(parents=True, exist_ok=True)
    manifest = {"made_by": HELD_OUT, "methods": [loop.method for loop in loops], "seed": machine.seed}
    save_image_set(ImageSet(torch.cat([one.pixels() for one in sets]), torch.cat([one.labels for one in sets]), manifest), folder)


def _load(loops: Sequence[GenerationLoop], stage: str, context: Context) -> None:
    """Continues where an earlier attempt was interrupted."""
    if state := context.saved_state(stage):
        for loop in loops:
            loop.load_state(state[loop.method])


def _finish(loops: Sequence[GenerationLoop], stage: str, context: Context) -> None:
    """All remaining iterations."""
    while any(not loop.finished for loop in loops):
        context.between_steps(stage, lambda: {loop.method: loop.state() for loop in loops})
        for loop in loops:
            if not loop.finished:
                loop.step()


def _finish_elsewhere(loop: GenerationLoop, loops: Sequence[GenerationLoop], batches: Batches, context: Context) -> None:
    """All remaining iterations of one loop, by the workers of `batches`; the rest of a batch that was begun, here. Does nothing where
    batches depend on each other.
    """
    if not are_independent(loop):
        context.reporter.result(
            f"{WARNING}/workers/{loop.method}",
            f"Images by {METHODS[loop.method].title} are made on this machine alone, because their batches depend on each other, or take "
            "less time than to send them.",
        )
        return

    def between() -> None:
        context.between_steps(STAGE, lambda: {one.method: one.state() for one in loops})

    while loop.step_count % loop.config.iterations:
        between()
        loop.step()
    for batch in batches.results(loop.method, loop.config, tasks(loop), between):
        loop.take(batch)
        between()


def save_images(loop: GenerationLoop, folder: Path, protocol: str) -> None:
    """The images of a finished loop in the run's folder and, for a method that is joint under `protocol`, the state of its source."""
    target = folder / layout.IMAGES / loop.method
    target.mkdir(parents=True, exist_ok=True)
    if METHODS[loop.method].is_joint(protocol):
        with atomic_write(target / layout.SOURCE_FILE) as partial:
            torch.save(loop.source.state(), partial)
    loop.save(target)


def joint_source(model: FullPrecisionModel, config: RunConfig, method: str, bits: int, folder: Path) -> JointSource | None:
    """The source of a joint method as the generation left it, a fresh copy for the training at this bit width; None for any other."""
    training = config.training_for(bits)
    if config.images_from or not METHODS[method].is_joint(training.protocol):
        return None
    source: JointSource = load_source(method)(model, config.generation, config.machine)
    state: dict[str, Any] = torch.load(folder / layout.IMAGES / method / layout.SOURCE_FILE, map_location=model.device, weights_only=True)
    source.load_state(state)
    source.join(training)
    return source
