"""Stage: images by every method."""

from pathlib import Path
from typing import Any

import torch

from core import layout
from core.config import RunConfig
from core.files import atomic_write
from core.generation.loop import GenerationLoop
from core.generation.methods import METHODS, load_source
from core.generation.sources.base import JointSource
from core.memory import memory_advice
from core.models.full_precision import FullPrecisionModel
from core.stages.context import Context

STAGE = "generation"


def generate(model: FullPrecisionModel, config: RunConfig, context: Context, folder: Path | None = None) -> list[GenerationLoop]:
    """All methods in turn, one iteration each, so that a viewer sees the same iteration of each. folder: for the images."""
    reporter = context.reporter
    with memory_advice("the generation", "batch_size", config.generation.batch_size, least=2):
        loops = [
            GenerationLoop(model, config.generation, method, config.machine, reporter, context.control, folder and folder / method)
            for method in config.methods
        ]
        reporter.result("layers", loops[0].layer_names)
        reporter.result("terms", loops[0].terms())
        reporter.result("methods", [{"name": method, "title": METHODS[method].title} for method in config.methods])
        reporter.running_statistics(loops[0].running_statistics())
        state = context.saved_state(STAGE)
        for loop in loops:
            if state:
                loop.load_state(state[loop.method])
            reporter.rewind(STAGE, loop.method, loop.step_count)
        reporter.stage(STAGE, sum(loop.steps for loop in loops), sum(loop.step_count for loop in loops))
        while any(not loop.finished for loop in loops):
            context.between_steps(STAGE, lambda: {loop.method: loop.state() for loop in loops})
            for loop in loops:
                if not loop.finished:
                    loop.step()
        return loops


def save_images(loop: GenerationLoop, folder: Path) -> None:
    """The images of a finished loop in the run's folder and, for a joint method, what a training needs to continue with its source."""
    target = folder / layout.IMAGES / loop.method
    target.mkdir(parents=True, exist_ok=True)
    if isinstance(loop.source, JointSource):
        with atomic_write(target / layout.SOURCE_FILE) as partial:
            torch.save(loop.source.state(), partial)
    loop.save(target)


def joint_source(model: FullPrecisionModel, config: RunConfig, method: str, folder: Path) -> JointSource | None:
    """The source of a joint method as the generation left it, a fresh copy for each training; None for any other method."""
    if config.images_from or not METHODS[method].is_joint:
        return None
    source: JointSource = load_source(method)(model, config.generation, config.machine)
    state: dict[str, Any] = torch.load(folder / layout.IMAGES / method / layout.SOURCE_FILE, map_location=model.device, weights_only=True)
    source.load_state(state)
    return source
