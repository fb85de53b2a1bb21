"""The evaluation images to which a quantized network gives another class than full precision, for people to look at."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from core.data.labeled import EvaluationSet
from core.evaluation.answers import DISAGREEMENTS, Answers
from core.files import atomic_write

MOST = 24  # images
LARGEST = 112  # pixels of a side: larger images are saved smaller


def save_disagreements(
    images: EvaluationSet, compared: Tensor, full_precision: Mapping[str, Any], quantized: Mapping[str, Any], folder: Path
) -> None:
    """Writes DISAGREEMENTS into an existing folder: "images", uint8 `(n, C, H, W)`, n at most MOST, and "positions", int64 `(n,)`, among
    the answers; no file if there are none. First those of which the less certain network is the most certain.

    compared: indices of the images that the answers are of, in order. full_precision, quantized: packed Answers.
    """
    theirs, ours = Answers.unpacked(full_precision), Answers.unpacked(quantized)
    different = np.flatnonzero(theirs.classes != ours.classes)
    certainty = np.minimum(theirs.confidence, ours.confidence)[different]
    chosen = torch.from_numpy(different[np.argsort(-certainty, kind="stable")][:MOST])
    if not len(chosen):
        return
    pixels = torch.stack([_small(image) for image, _ in images.__getitems__(compared[chosen].tolist())])
    with atomic_write(folder / DISAGREEMENTS) as partial:
        save_file({"images": pixels, "positions": chosen.long()}, partial)


def _small(image: Tensor) -> Tensor:
    """uint8 `(C, H, W)`, averaged to at most LARGEST pixels a side."""
    height, width = image.shape[1:]
    factor = LARGEST / max(height, width)
    if factor >= 1:
        return image
    size = (max(1, round(height * factor)), max(1, round(width * factor)))
    return F.interpolate(image[None].float(), size, mode="area")[0].round().to(torch.uint8)
