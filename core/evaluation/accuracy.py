"""Top-1 accuracy with its standard error."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from core.data.labelled import EvaluationSet
from core.errors import DataError
from core.models.full_precision import FullPrecisionModel


@dataclass(frozen=True)
class Accuracy:
    """Top-1 in percent, its standard error in points, how many images, and which."""

    top1: float
    standard_error: float
    images: int
    evaluated_on: str


def evaluate(
    network: nn.Module,
    model: FullPrecisionModel,
    evaluation_set: EvaluationSet,
    batch_size: int = 0,
    pause_point: Callable[[], None] | None = None,
) -> Accuracy:
    """Top-1 accuracy of `network` on `evaluation_set`, normalised as `model` wants it; the network is put back as it was.

    Arguments and errors as those of `correct`.
    """
    return accuracy_of(correct(network, model, evaluation_set, batch_size, pause_point), evaluation_set.description)


def accuracy_of(hits: Tensor, evaluated_on: str) -> Accuracy:
    """The accuracy p of n answers, bool `(n,)`, at least one, with its standard error sqrt(p (1 - p) / n)."""
    count = len(hits)
    share = int(hits.sum()) / count
    return Accuracy(
        top1=round(100 * share, 3),
        standard_error=round(100 * (share * (1 - share) / count) ** 0.5, 3),
        images=count,
        evaluated_on=evaluated_on,
    )


def correct(
    network: nn.Module,
    model: FullPrecisionModel,
    evaluation_set: EvaluationSet | Subset,
    batch_size: int = 0,
    pause_point: Callable[[], None] | None = None,
) -> Tensor:
    """Which images of the set `network` gives its highest score for their own class: bool `(N,)`, on the CPU.

    batch_size: 0 takes what suits the network's device. pause_point: called between batches; may raise to end early.
    Raises DataError for an empty set.
    """
    if not len(evaluation_set):
        description = getattr(evaluation_set, "description", "the set")
        raise DataError(f"{description} is empty: allowed is at least one image")
    # on the CPU tensors of larger batches leave the cache, and their memory is asked of the system again for every layer
    batch_size = batch_size or (64 if model.device.type == "cpu" else 256)
    # each module's own mode: a network may be in training with its BatchNorm layers frozen
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    hits = []
    try:
        with torch.no_grad():
            for pixels, labels in DataLoader(evaluation_set, batch_size=batch_size):
                if pause_point is not None:
                    pause_point()
                images = model.normalise(pixels).contiguous(memory_format=torch.channels_last)
                hits.append(network(images).argmax(dim=1).cpu() == labels)
    finally:
        for module, training in modes:
            module.training = training
    return torch.cat(hits)
