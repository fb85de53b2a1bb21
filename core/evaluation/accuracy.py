"""Top-1 accuracy with its standard error."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from core.data.labeled import EvaluationSet
from core.errors import DataError
from core.models.full_precision import FullPrecisionModel


@dataclass(frozen=True)
class Accuracy:
    """Top-1 in percent, its standard error in points, the number of images, and their description."""

    top1: float
    standard_error: float
    images: int
    evaluated_on: str


def top1_of(accuracy: Accuracy | None) -> float | None:
    """Top-1 in percent; None where there are no evaluation images."""
    return None if accuracy is None else accuracy.top1


def evaluate(
    network: nn.Module,
    model: FullPrecisionModel,
    evaluation_set: EvaluationSet,
    batch_size: int = 0,
    pause_point: Callable[[], None] | None = None,
) -> Accuracy:
    """Top-1 accuracy of `network` on `evaluation_set`, with the normalization of `model`. Restores the network's training modes.

    Arguments and errors are those of `top1_hits`.
    """
    hits = top1_hits(network, model, evaluation_set, batch_size, pause_point)
    return accuracy_of(hits[evaluation_set.readable], evaluation_set.description)


def accuracy_of(hits: Tensor, evaluated_on: str) -> Accuracy:
    """The accuracy p of n predictions with its standard error sqrt(p (1 - p) / n). hits: bool `(n,)`, n at least 1."""
    count = len(hits)
    share = int(hits.sum()) / count
    return Accuracy(
        top1=round(100 * share, 3),
        standard_error=round(100 * (share * (1 - share) / count) ** 0.5, 3),
        images=count,
        evaluated_on=evaluated_on,
    )


def top1_hits(
    network: nn.Module,
    model: FullPrecisionModel,
    evaluation_set: EvaluationSet | Subset,
    batch_size: int = 0,
    pause_point: Callable[[], None] | None = None,
) -> Tensor:
    """Whether `network` scores the label of each image highest: bool `(N,)`, on the CPU. False where an image cannot be read.

    Arguments and errors are those of `each_batch`.
    """
    hits: list[Tensor] = []
    each_batch(network, model, evaluation_set, lambda scores, labels: hits.append(scores.argmax(dim=1) == labels), batch_size, pause_point)
    return torch.cat(hits)


def each_batch(
    network: nn.Module,
    model: FullPrecisionModel,
    evaluation_set: EvaluationSet | Subset,
    see: Callable[[Tensor, Tensor], None],
    batch_size: int = 0,
    pause_point: Callable[[], None] | None = None,
) -> None:
    """Calls `see` with the scores `(B, classes)` and the labels `(B,)` of each batch, in order, on the CPU.

    The label of an image that cannot be read, here and in the evaluation set, becomes UNREADABLE.

    batch_size: 0 chooses by the device. pause_point: called between batches; may raise to stop early. Raises DataError for an empty set.
    """
    if not len(evaluation_set):
        description = getattr(evaluation_set, "description", "the set")
        raise DataError(f"{description} must have at least one image, got none")
    # on a CPU, tensors of larger batches exceed the cache, and every layer allocates new memory
    batch_size = batch_size or (64 if model.device.type == "cpu" else 256)
    # of each module: a network may be in training mode with its BatchNorm layers frozen
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.no_grad():
            for pixels, labels in DataLoader(evaluation_set, batch_size=batch_size):
                if pause_point is not None:
                    pause_point()
                images = model.normalize(pixels).contiguous(memory_format=torch.channels_last)
                see(network(images).cpu(), labels)
    finally:
        for module, training in modes:
            module.training = training
