"""Contact sheets: images side by side in one array, for the pages, the report and the model card. Imports no torch."""

from collections.abc import Sequence

import numpy as np

from core.channels import as_rgb

EMPTY = -1  # a cell without an image


def contact_sheet(images: np.ndarray, columns: int, cells: Sequence[int] | None = None, gap: int = 1, scale: int = 1) -> np.ndarray:
    """uint8 `(N, C, H, W)`, as RGB -> uint8 RGBA `(rows (scale H + gap) - gap, columns (scale W + gap) - gap, 4)`; gaps are transparent.

    cells: index of the image in each cell, row by row, EMPTY for a transparent one; default: all images in order. gap: pixels between
    images. scale: whole number by which they are enlarged.
    """
    cells = range(len(images)) if cells is None else cells
    height, width = (scale * side for side in images.shape[2:])
    rows = -(-len(cells) // columns)
    sheet = np.zeros((rows * (height + gap) - gap, columns * (width + gap) - gap, 4), dtype=np.uint8)
    for number, index in enumerate(cells):
        if index == EMPTY:
            continue
        top, left = number // columns * (height + gap), number % columns * (width + gap)
        image = as_rgb(images[index : index + 1])[0].transpose(1, 2, 0).repeat(scale, axis=0).repeat(scale, axis=1)
        sheet[top : top + height, left : left + width, :3] = image
        sheet[top : top + height, left : left + width, 3] = 255
    return sheet


def class_columns(labels: np.ndarray, classes: Sequence[int], rows: int = 0) -> list[int]:
    """Cells with one class per column: indices of its first `rows` images, or of all of them if `rows` is 0; EMPTY below its last one.

    labels: `(N,)`.
    """
    of_class = [np.flatnonzero(labels == label) for label in classes]
    rows = rows or max(map(len, of_class), default=0)
    return [int(own[row]) if row < len(own) else EMPTY for row in range(rows) for own in of_class]


def evenly_spaced(values: np.ndarray, most: int) -> np.ndarray:
    """At most `most` of the values, evenly spaced, the first and the last included: of an image set, early and late snapshots alike."""
    return values[np.unique(np.linspace(0, len(values) - 1, min(most, len(values))).round().astype(int))]
