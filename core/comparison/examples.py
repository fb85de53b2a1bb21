"""The images of a method that the teacher recognizes best and worst, from what a run has stored. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from core.comparison.table import Row
from core.export.contact_sheet import EMPTY, contact_sheet
from core.reporting import Frame
from core.runs.store import RunStore

SHOWN = 5  # best and worst images of a method
EXPLAINED = (
    "Best and worst images: of those that a run kept of its last iteration, the ones whose label the teacher predicts with the highest "
    "confidence, and the ones that it takes for another class with the highest confidence or, if there are none, predicts with the lowest."
)


@dataclass(frozen=True)
class Examples:
    """Best and worst images of one run of a method, the best and the worst ones first: at most SHOWN each, and none in both."""

    method: str
    best: Frame
    worst: Frame


def examples(store: RunStore, run_id: str, method: str) -> Examples | None:
    """None where the run kept no images, or not what the teacher makes of them, as earlier versions did not."""
    frame = store.frames.read(run_id, method)
    if frame is None or frame.predicted is None or frame.confidence is None:
        return None
    order = by_recognition(frame)
    count = min(SHOWN, len(order) // 2)
    return Examples(method, _chosen(frame, order[:count]), _chosen(frame, order[::-1][:count]))


def by_recognition(frame: Frame) -> np.ndarray:
    """Indices of the images, best first: by the confidence of the teacher, which counts as negative where it predicts another class."""
    assert frame.predicted is not None
    assert frame.confidence is not None
    recognized = np.where(frame.predicted == frame.labels, frame.confidence, -frame.confidence)
    return np.argsort(-recognized, kind="stable")


def _chosen(frame: Frame, indices: np.ndarray) -> Frame:
    assert frame.predicted is not None
    assert frame.confidence is not None
    return replace(
        frame,
        images=frame.images[indices],
        labels=frame.labels[indices],
        predicted=frame.predicted[indices],
        confidence=frame.confidence[indices],
    )


def of_table(store: RunStore, table: Sequence[Row]) -> list[Examples]:
    """Those of each method, in the order of the table, from its first run that has some."""
    runs: dict[str, list[str]] = {}
    for row in table:
        runs.setdefault(row.method, []).extend(row.runs)
    found = ((examples(store, run, method) for run in own) for method, own in runs.items())
    return [one for of_method in found if (one := next(filter(None, of_method), None)) is not None]


def picture(shown: Sequence[Examples]) -> np.ndarray:
    """A row for each method: its best images, a gap, and its worst. uint8 RGBA `(H, W, 4)`."""
    images, cells = np.concatenate([part.images for one in shown for part in (one.best, one.worst)]), []
    first = 0
    for one in shown:
        for part in (one.best, one.worst):
            count = len(part.labels)
            cells += [*range(first, first + count), *[EMPTY] * (SHOWN - count), *([EMPTY] if part is one.best else [])]
            first += count
    return contact_sheet(images, 2 * SHOWN + 1, cells)
