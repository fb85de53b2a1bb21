"""Recipe of the embedded full-precision network, for CIFAR-10 or any folder of labeled images.

SGD with Nesterov momentum, a warm-up, cosine decay to zero, label smoothing for the first 80 % of epochs, random crop and flip,
autocast to bfloat16 where that is faster. The result is the exponential moving average of the weights, including the BatchNorm statistics.
"""

import copy
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from core.channels import MODES, for_channels, height_and_width
from core.config import PretrainConfig
from core.data.labeled import Cover, LabeledImages
from core.data.pictures import in_mode
from core.errors import ConfigError, DataError, ModelError, first_line
from core.files import check_parents, named_as, parents_of
from core.models.full_precision import batch_norm_layers, build_architecture, resolve_device, save_checkpoint
from core.models.registry import ModelSpec
from core.recipes.mixed_precision import bfloat16_autocast
from core.schedules import cosine_below_warm_up
from core.threads import cpu_threads

# also for other images, because the first BatchNorm layer learns the rest; their average for other than three channels
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def pretrain(
    dataset: LabeledImages,
    classes: Sequence[str],
    config: PretrainConfig,
    out: Path,
    on_step: Callable[[int, int, float], None] | None = None,
) -> ModelSpec:
    """Trains `config.architecture` on `dataset` and writes a weights file, whose path can be used as a model name.

    dataset: yields (PIL image of any mode, class index). out: a new .safetensors file. on_step: called with (step, steps, loss).
    Raises ConfigError if `out` has another suffix or the architecture does not support this image size, DataError if `out` already
    exists or there are fewer images than one batch, ModelError if the architecture has no BatchNorm layer.
    """
    out = new_checkpoint(out)
    if len(dataset) < config.batch_size:
        raise DataError(f"the training set must have at least one batch of {config.batch_size} images, got {len(dataset)}")
    device = resolve_device(config.device)
    with cpu_threads(config.threads), torch.random.fork_rng():
        torch.manual_seed(config.seed)
        network = build_architecture(config.architecture, len(classes), config.channels)
        if not batch_norm_layers(network):
            raise ModelError(
                f"architecture must have at least one BatchNorm layer, from which images are generated, got {config.architecture!r}"
            )
        network = network.to(device).to(memory_format=torch.channels_last)
        _check_image_size(network, len(classes), config)
        averaged = fit(network, dataset, config, device, on_step)
    spec = ModelSpec(
        name=out.stem,
        architecture=config.architecture,
        classes=tuple(classes),
        image_size=config.image_size,
        mean=for_channels(CIFAR10_MEAN, config.channels),
        std=for_channels(CIFAR10_STD, config.channels),
        trained_on=f"{len(dataset):,} images of {config.data}" if config.data != "cifar10" else "the 50,000 CIFAR-10 training images",
    )
    with parents_of(out):
        save_checkpoint(averaged, spec, out)
    return spec


def new_checkpoint(out: Path) -> Path:
    """`out` with the ending .safetensors. Raises ConfigError or DataError unless a weights file can be written there."""
    out = named_as(out, ".safetensors")
    if os.path.lexists(out):
        raise DataError(f"out must be a new file, {str(out)!r} already exists")
    check_parents(out)
    return out


@torch.no_grad()
def _check_image_size(network: nn.Module, classes: int, config: PretrainConfig) -> None:
    """One forward pass in evaluation mode, which changes no state. Raises ConfigError if the network does not support this image size."""
    height, width = height_and_width(config.image_size)
    images = torch.zeros(2, config.channels, height, width, device=next(network.parameters()).device).to(memory_format=torch.channels_last)
    try:
        shape = tuple(network.eval()(images).shape)
        reason = f"its output is {shape}"
    except (RuntimeError, ValueError, AssertionError, AttributeError) as error:
        shape, reason = (), first_line(error)
    if shape != (2, classes):
        made_for = getattr(network, "in_size", ("unknown",))[0]
        raise ConfigError(
            f"image_size must be one at which {config.architecture}, made for {made_for}, returns one score per class "
            f"in channels-last memory, got {height} x {width} ({reason})"
        )


def fit(network: nn.Module, dataset: LabeledImages, config: PretrainConfig, device: torch.device, on_step) -> nn.Module:
    size = height_and_width(config.image_size)
    transform = v2.Compose(
        [
            v2.PILToTensor(),
            Cover(size),
            v2.CenterCrop(size),
            v2.Pad(config.crop_padding, padding_mode="reflect"),
            v2.RandomCrop(size),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(*(for_channels(values, config.channels) for values in (CIFAR10_MEAN, CIFAR10_STD))),
        ]
    )
    loader = DataLoader(
        _Transformed(dataset, MODES[config.channels], transform),
        batch_size=config.batch_size,
        shuffle=True,
        drop_last=True,
        generator=torch.Generator().manual_seed(config.seed),
    )
    decayed = [p for p in network.parameters() if p.ndim >= 2]
    others = [p for p in network.parameters() if p.ndim < 2]
    optimizer = torch.optim.SGD(
        [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=config.lr,
        momentum=0.9,
        nesterov=True,
    )
    steps, warm_up = config.epochs * len(loader), min(2, config.epochs / 4) * len(loader)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cosine_below_warm_up(step, steps, warm_up))
    averaged = copy.deepcopy(network).eval()
    network.train()
    step = 0
    for epoch in range(config.epochs):
        smoothing = config.label_smoothing if epoch < 0.8 * config.epochs else 0.0
        for images, labels in loader:
            images = images.to(device, memory_format=torch.channels_last)
            with bfloat16_autocast(device):
                logits = network(images)
            loss = F.cross_entropy(logits.float(), labels.to(device), label_smoothing=smoothing)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
            # the last step too: the average would miss a training of fewer than five steps
            if step % 5 == 0 or step == steps:
                # a low decay at first, so that the average of a short training does not contain the random initial weights
                _average_into(averaged, network, min(0.998, step / (step + 50)))
            if on_step is not None:
                on_step(step, steps, float(loss.detach()))
    return averaged


@torch.no_grad()
def _average_into(averaged: nn.Module, network: nn.Module, decay: float) -> None:
    """Exponential moving average of every floating-point tensor, including the BatchNorm statistics."""
    # not by their names in the state dict, of which a shared tensor has several
    for value, current in zip((*averaged.parameters(), *averaged.buffers()), (*network.parameters(), *network.buffers()), strict=True):
        if value.is_floating_point():
            value.lerp_(current, 1 - decay)
        else:
            value.copy_(current)


class _Transformed(Dataset):
    def __init__(self, base: LabeledImages, mode: str, transform: v2.Transform) -> None:
        self.base, self.mode, self.transform = base, mode, transform

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, index: int):
        image, label = self.base[index]
        return self.transform(in_mode(image, self.mode)), label
