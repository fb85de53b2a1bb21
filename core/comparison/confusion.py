"""Which classes a quantized network loses, and which it takes them for, from stored answers. Imports no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.comparison.significance import LEVEL, mcnemar
from core.evaluation.answers import FULL_PRECISION, LABELS, Answers, unpacked_numbers


@dataclass(frozen=True)
class ClassChange:
    """One class. images: that have its label. lost, gained: those that only full precision, and only the quantized network classifies
    correctly. p: McNemar's, corrected for the number of classes (Holm, Scandinavian Journal of Statistics 6, 1979).
    """

    label: int
    images: int
    lost: int
    gained: int
    p: float

    @property
    def is_measurable(self) -> bool:
        """Whether its accuracy differs from that of full precision by more than chance."""
        return self.p < LEVEL


@dataclass(frozen=True, eq=False)
class Confusion:
    """Answers of both networks on the same images, int32 `(N,)` each. labels: those of full precision where the images have none."""

    labels: NDArray[np.int32]
    full_precision: Answers
    quantized: Answers
    labeled: bool

    @classmethod
    def of(cls, answers: Mapping[str, Any], network: str) -> "Confusion | None":
        """Of a stored result (core/evaluation/answers.py): on the evaluation images, else on the held-out ones; None without answers of
        `network`, CALIBRATED or TRAINED.
        """
        for known in (answers.get("real") or {}, answers.get("held_out") or {}):
            if network in known and FULL_PRECISION in known:
                theirs, ours = (Answers.unpacked(known[name]) for name in (FULL_PRECISION, network))
                labels = unpacked_numbers(known[LABELS]) if LABELS in known else theirs.classes
                return cls(labels, theirs, ours, LABELS in known)
        return None

    @property
    def disagreements(self) -> int:
        """Images to which the networks give other classes."""
        return int((self.full_precision.classes != self.quantized.classes).sum())

    def changes(self) -> list[ClassChange]:
        """Every class that has images, the one with the largest net loss of images first."""
        before, after = self.full_precision.classes == self.labels, self.quantized.classes == self.labels
        found = []
        for label in np.unique(self.labels).tolist():
            own = self.labels == label
            lost, gained = int((own & before & ~after).sum()), int((own & after & ~before).sum())
            found.append((label, int(own.sum()), lost, gained, mcnemar(before[own], after[own])))
        corrected = _holm([p for *_, p in found])
        changes = [ClassChange(*values[:4], p) for values, p in zip(found, corrected)]
        return sorted(changes, key=lambda one: (one.gained - one.lost, -one.lost, one.label))

    def matrix_change(self, classes: Sequence[int]) -> NDArray[np.int64]:
        """Entry (i, j): images of class i that the quantized network takes for class j, minus those that full precision does."""
        counts = []
        for answers in (self.quantized, self.full_precision):
            counts.append([[int(((self.labels == own) & (answers.classes == other)).sum()) for other in classes] for own in classes])
        return np.array(counts[0]) - np.array(counts[1])


def _holm(ps: Sequence[float]) -> list[float]:
    """Corrected p of each."""
    corrected, largest = [0.0] * len(ps), 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[index]))
        corrected[index] = largest
    return corrected
