"""A network on real images: its accuracy, where they have labels, and how close it is to full precision, in one pass."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from core.data.labeled import UNREADABLE, EvaluationSet
from core.evaluation.accuracy import Accuracy, accuracy_of, each_batch
from core.evaluation.agreement import Agreement, Comparison
from core.evaluation.answers import Answers
from core.evaluation.diversity import evenly_spaced
from core.files import atomic_write
from core.models.full_precision import FullPrecisionModel

MOST_SCORES = 1 << 24  # kept of the full-precision network: 64 MB, enough for 16,000 images of 1,000 classes


@dataclass(frozen=True)
class RealScores:
    """Scores of the full-precision network, float32 `(n, classes)`, on the evaluation images with these indices, int64 `(n,)`, in order."""

    scores: Tensor
    indices: Tensor

    def save(self, file: Path) -> None:
        """Writes a file in an existing folder."""
        with atomic_write(file) as partial:
            save_file({"scores": self.scores, "indices": self.indices}, partial)

    @classmethod
    def load(cls, file: Path, model: FullPrecisionModel, evaluation_set: EvaluationSet) -> "RealScores | None":
        """What was saved for these images; None if there is no file, or the number of images has changed."""
        found = cls(**load_file(file)) if file.exists() else None
        return found if found is not None and torch.equal(found.indices, _compared(model, evaluation_set)) else None


def measure_full_precision(
    model: FullPrecisionModel, evaluation_set: EvaluationSet, pause_point: Callable[[], None] | None = None
) -> tuple[Accuracy | None, RealScores]:
    """The accuracy of the full-precision network, None without labels; and its scores, on all images or on as many, evenly spaced, as
    MOST_SCORES allows. Raises DataError for an empty set.
    """
    indices = _compared(model, evaluation_set)
    kept: list[Tensor] = []
    batches = _Batches(indices, len(evaluation_set))

    def see(scores: Tensor, labels: Tensor) -> None:
        chosen, _ = batches.chosen(scores, labels)
        kept.append(scores[chosen].float())

    each_batch(model.network, model, evaluation_set, see, pause_point=pause_point)
    return batches.accuracy(evaluation_set), RealScores(torch.cat(kept), indices)


def _compared(model: FullPrecisionModel, evaluation_set: EvaluationSet) -> Tensor:
    """Indices of the images whose scores are kept."""
    return evenly_spaced(len(evaluation_set), max(1, MOST_SCORES // len(model.spec.classes)))


@dataclass(frozen=True)
class Measured:
    """hits: whether the network gives each image its label, bool `(N,)`. accuracy: None without labels. agreement: with full precision.
    answers, expected: of the network and of full precision, on the images that are compared and can be read, in order.
    """

    hits: Tensor
    accuracy: Accuracy | None
    agreement: Agreement
    answers: Answers
    expected: Answers


def measure(
    network: nn.Module,
    model: FullPrecisionModel,
    evaluation_set: EvaluationSet,
    expected: RealScores,
    pause_point: Callable[[], None] | None = None,
) -> Measured:
    """`network`, whose training modes are restored, on the evaluation images. expected: of `measure_full_precision` on the same images."""
    comparison, batches = Comparison(), _Batches(expected.indices, len(evaluation_set))

    def see(scores: Tensor, labels: Tensor) -> None:
        chosen, place = batches.chosen(scores, labels)
        read = labels[chosen] != UNREADABLE
        comparison.add(scores[chosen][read], expected.scores[place][read])

    each_batch(network, model, evaluation_set, see, pause_point=pause_point)
    return Measured(torch.cat(batches.hits), batches.accuracy(evaluation_set), comparison.figures(), *comparison.answers())


def compared_indices(evaluation_set: EvaluationSet, expected: RealScores) -> Tensor:
    """Indices of the images that `measure` has compared, int64 `(n,)`: those that can be read."""
    return expected.indices[evaluation_set.readable[expected.indices]]


class _Batches:
    """Which images of each batch are among those with `indices`, and the hits of all batches so far. count: of all images."""

    def __init__(self, indices: Tensor, count: int) -> None:
        self._is_chosen = torch.zeros(count, dtype=torch.bool)
        self._is_chosen[indices] = True
        self._seen = self._taken = 0
        self.hits: list[Tensor] = []

    def chosen(self, scores: Tensor, labels: Tensor) -> tuple[Tensor, slice]:
        """Of the next batch: its chosen images, bool `(B,)`, and their place among all chosen ones."""
        self.hits.append(scores.argmax(dim=1) == labels)
        chosen = self._is_chosen[self._seen : self._seen + len(labels)]
        place = slice(self._taken, self._taken + int(chosen.sum()))
        self._seen, self._taken = self._seen + len(labels), place.stop
        return chosen, place

    def accuracy(self, evaluation_set: EvaluationSet) -> Accuracy | None:
        if not evaluation_set.labeled:
            return None
        return accuracy_of(torch.cat(self.hits)[evaluation_set.readable], evaluation_set.description)
