"""Diversity of a set of images: pairwise cosine similarity of their CLIP embeddings. Lower is more diverse."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from core.data.image_sets import ImageSet
from core.errors import DataError
from core.evaluation.encoder import Encoder

HISTOGRAM_BINS = 60
MATRIX_IMAGES = 200  # side of the matrix that is kept to be looked at
_ENTRIES = 1 << 23  # of the similarity matrix that are in memory at once: 32 MB, however many images there are


def mean_similarity(embeddings: Tensor) -> float:
    """Mean cosine over all pairs of different images; embeddings `(N, D)`, L2-normalised, N at least 2.

    sum over i != j of e_i . e_j = ||sum of e||^2 - sum of ||e||^2, so no matrix is needed.
    """
    count = len(embeddings)
    values = embeddings.double()
    pairs = values.sum(dim=0).square().sum() - values.square().sum()
    return float(pairs / (count * (count - 1)))


def within_class_similarity(embeddings: Tensor, labels: Tensor) -> float | None:
    """Mean cosine over all pairs of different images with the same label; None when no class has two."""
    total, pairs = 0.0, 0
    for label in labels.unique():
        members = embeddings[labels == label]
        count = len(members)
        if count > 1:
            total += mean_similarity(members) * count * (count - 1)
            pairs += count * (count - 1)
    return total / pairs if pairs else None


def similarity_histogram(embeddings: Tensor) -> dict[str, list[float]]:
    """Share of pairs in each of HISTOGRAM_BINS equal bins over [-1, 1]: {"edges": bins + 1 values, "share": bins values}."""
    counts = torch.zeros(HISTOGRAM_BINS, dtype=torch.float64)
    rows = max(1, _ENTRIES // max(1, len(embeddings)))
    for start in range(0, len(embeddings), rows):
        block = (embeddings[start : start + rows] @ embeddings[start:].T).clamp_(-1, 1)
        # each pair once: entries right of the diagonal, which the first square of the block holds
        square = block[:, : len(block)]
        above = torch.triu_indices(len(square), len(square), 1, device=block.device)
        for part in (square[above[0], above[1]], block[:, len(block) :]):
            counts += torch.histc(part, bins=HISTOGRAM_BINS, min=-1, max=1).double().cpu()
    edges = torch.linspace(-1, 1, HISTOGRAM_BINS + 1).tolist()
    return {"edges": [round(edge, 6) for edge in edges], "share": (counts / counts.sum().clamp_min(1)).tolist()}


def similarity_matrix(embeddings: Tensor, labels: Tensor) -> dict[str, list]:
    """Cosine between at most MATRIX_IMAGES images, spread evenly over the set and ordered by class: {"labels", "cosine"}."""
    count = len(embeddings)
    chosen = torch.linspace(0, count - 1, min(count, MATRIX_IMAGES)).round().long().unique()
    chosen = chosen[torch.argsort(labels[chosen], stable=True)]
    cosine = embeddings[chosen] @ embeddings[chosen].T
    return {"labels": labels[chosen].tolist(), "cosine": [[round(value, 3) for value in row] for row in cosine.tolist()]}


def measure_diversity(images: ImageSet, encoder: Encoder, checkpoint: Callable[[], None] | None = None) -> dict[str, Any]:
    """Everything above for one set, fit for JSON, with the encoder's name and what it was trained on.

    Raises DataError for fewer than two images.
    """
    if len(images) < 2:
        raise DataError(f"the set has {len(images)} images: allowed is at least 2, as similarity is between pairs")
    embeddings = encoder.embed_images(images.images, checkpoint=checkpoint)
    within = within_class_similarity(embeddings, images.labels)
    return {
        "encoder": encoder.name,
        "encoder_trained_on": encoder.trained_on,
        "images": len(images),
        "mean_similarity": round(mean_similarity(embeddings), 5),
        "within_class_similarity": None if within is None else round(within, 5),
        "histogram": similarity_histogram(embeddings),
        "matrix": similarity_matrix(embeddings, images.labels),
    }
