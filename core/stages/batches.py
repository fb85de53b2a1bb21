"""Stage: batches that fit into memory. An operating system that runs out of memory ends a process without a word."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from core.config import RunConfig
from core.memory import available_bytes
from core.models.full_precision import FullPrecisionModel
from core.reporting import WARNING, Reporter

_SHARE = 0.6  # of the memory that is free may be used
# tensors of a layer's output that are in memory at once: the output, its gradient, and what BatchNorm, activation and quantizers keep
_GENERATION, _TRAINING = 3.0, 6.0
_LEAST = 2


def fitting(model: FullPrecisionModel, config: RunConfig, reporter: Reporter) -> RunConfig:
    """The config with batches of a size that fits into the memory that is free now; a warning says what was changed."""
    free = available_bytes(model.device)
    if free is None:
        return config
    image = output_bytes(model)
    generation = _fitting(config.generation.batch_size, config.generation.noise_images, _GENERATION * image, free)
    training = _fitting(config.training.training_batch_size, config.training.training_batch_size, _TRAINING * image, free)
    if generation and not config.images_from:
        config = replace(config, generation=replace(config.generation, batch_size=generation))
        _warn("generation", generation, _GENERATION * image, free, reporter)
    if training and config.bits:
        config = replace(config, training=replace(config.training, training_batch_size=training))
        _warn("training", training, _TRAINING * image, free, reporter)
    return config


def _warn(stage: str, size: int, image: float, free: int, reporter: Reporter) -> None:
    reporter.result(
        f"{WARNING}/memory/{stage}",
        f"Batches of the {stage} have {size} images, because {free / 1e9:.1f} GB of memory are free and an image needs about "
        f"{image / 1e6:.0f} MB.",
    )


def _fitting(size: int, images: int, image: float, free: int) -> int:
    """The largest power of two whose batch fits, if the batch does not; else 0. image: bytes."""
    most = int(_SHARE * free / image)
    if min(size, images) <= most:
        return 0
    return max(_LEAST, 1 << max(0, most.bit_length() - 1))


def output_bytes(model: FullPrecisionModel) -> int:
    """Bytes of the outputs of all layers for one image."""
    sizes: list[int] = []

    def count(_module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            sizes.append(output.numel() * output.element_size())

    handles = [module.register_forward_hook(count) for module in model.network.modules() if not list(module.children())]
    try:
        with torch.no_grad():
            model.network(torch.zeros(1, *model.spec.shape, device=model.device))
    finally:
        for handle in handles:
            handle.remove()
    return max(1, sum(sizes))
