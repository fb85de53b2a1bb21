"""Diversity of a set of images: cosine of their CLIP embeddings, for all pairs and for nearest neighbours. Lower is more diverse."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from core.config import GenerationConfig, upgrade_generation
from core.data.image_sets import ImageSet
from core.errors import ConfigError, DataError
from core.evaluation.encoder import Encoder

HISTOGRAM_BINS = 60
MATRIX_IMAGES = 200  # side of the matrix that is kept to be looked at
NEIGHBOURS = 5  # kept of each of as many images as the matrix has
PAIRS = 8  # of the most alike images that are kept
CLOSE = 0.95  # cosine above which two images count as nearly the same
QUERIES = 2048  # images whose nearest is looked for, among all: in a larger set, evenly spread ones
DRAWN = frozenset({"histogram", "matrix", "neighbours"})  # what a figure or picture is made of, rather than a figure
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


def spread(count: int, most: int) -> Tensor:
    """At most `most` of the numbers 0 to count - 1, evenly spread over them, in order."""
    return torch.linspace(0, count - 1, min(count, most)).round().long().unique()


def similarity_matrix(embeddings: Tensor, labels: Tensor) -> dict[str, list]:
    """Cosine between at most MATRIX_IMAGES images, spread evenly over the set and ordered by class: {"labels", "cosine"}."""
    chosen = spread(len(embeddings), MATRIX_IMAGES)
    chosen = chosen[torch.argsort(labels[chosen], stable=True)]
    cosine = embeddings[chosen] @ embeddings[chosen].T
    return {"labels": labels[chosen].tolist(), "cosine": [[round(value, 3) for value in row] for row in cosine.tolist()]}


def families_of(images: ImageSet) -> Tensor | None:
    """The numbers of the images that began as the same noise image, a row for each, `(F, k)`; None where that is not known."""
    try:
        starts = torch.tensor(GenerationConfig.from_dict(upgrade_generation(images.manifest["config"])).starts)
    except (KeyError, TypeError, AttributeError, ConfigError):  # not generated, or by another version
        return None
    if len(starts) != len(images):
        return None
    families = torch.argsort(starts, stable=True).view(int(starts.max()) + 1, -1)
    # one noise image has one label: where it has not, somebody has put the images into another order
    labels = images.labels[families]
    return families if bool((labels == labels[:, :1]).all()) else None


def family_similarity(embeddings: Tensor, families: Tensor) -> float | None:
    """Mean cosine over all pairs of different images of one family; None when they have one image each. families: `(F, k)`."""
    k = families.shape[1]
    if k < 2:
        return None
    values = embeddings.double()
    sums = torch.stack([values[column] for column in families.T]).sum(dim=0)
    # as in `mean_similarity`, for each family
    return float((sums.square().sum() - values.square().sum()) / (families.numel() * (k - 1)))


def nearest_images(embeddings: Tensor, queries: Tensor, count: int, families: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Cosines and numbers of the `count` images most alike to each of the images `queries` `(Q,)`: both `(Q, count)`, nearest first.

    families: `(F, k)`, of which none is met twice, nor that of the image itself; without them each image is one of its own.
    count: fewer come back where there are no more.
    """
    if families is None:
        families = torch.arange(len(embeddings))[:, None]
    family = _family_numbers(families)
    count = min(count, len(families) - 1)
    cosines, numbers = [], []
    for block in queries.split(max(1, _ENTRIES // max(1, len(embeddings)))):
        # (q, F, k) -> the nearest of each family
        best, which = (embeddings[block] @ embeddings.T).clamp_(-1, 1)[:, families].max(dim=2)
        best.scatter_(1, family[block][:, None], -2)
        top = best.topk(count, dim=1)
        cosines.append(top.values)
        numbers.append(families[top.indices, which.gather(1, top.indices)])
    return torch.cat(cosines), torch.cat(numbers)


def _family_numbers(families: Tensor) -> Tensor:
    """Image -> row of `families` that it is in."""
    numbers = torch.empty(families.numel(), dtype=torch.long)
    numbers[families] = torch.arange(len(families))[:, None]
    return numbers


def alike_pairs(queries: Tensor, cosines: Tensor, numbers: Tensor, families: Tensor | None = None) -> list[list[float]]:
    """The PAIRS images most alike to their nearest, [number, number of the nearest, cosine] each, no family twice.

    queries, cosines, numbers: `(Q,)`, images and their one nearest. families: as in `nearest_images`.
    """
    family = None if families is None else _family_numbers(families).tolist()
    pairs: list[list[float]] = []
    seen: set[int] = set()
    for place in torch.argsort(cosines, descending=True, stable=True).tolist():
        both = [int(queries[place]), int(numbers[place])]
        own = set(both) if family is None else {family[image] for image in both}
        if own & seen:
            continue
        pairs.append([*both, round(float(cosines[place]), 4)])
        seen |= own
        if len(pairs) == PAIRS:
            break
    return pairs


def _neighbours(embeddings: Tensor, families: Tensor | None) -> dict[str, Any]:
    """How near the nearest is, and for some images which it is."""
    queries = spread(len(embeddings), QUERIES)
    cosines, numbers = nearest_images(embeddings, queries, 1, families)
    shown = spread(len(embeddings), MATRIX_IMAGES)
    near, which = nearest_images(embeddings, shown, NEIGHBOURS, families)
    return {
        "nearest_similarity": round(float(cosines.double().mean()), 5),
        "close_above": CLOSE,
        "close_share": round(float((cosines > CLOSE).double().mean()), 5),
        "neighbours": {
            "pairs": alike_pairs(queries, cosines[:, 0], numbers[:, 0], families),
            "images": shown.tolist(),
            "nearest": which.tolist(),
            "cosine": [[round(value, 4) for value in row] for row in near.tolist()],
        },
    }


def measure_diversity(
    images: ImageSet, encoder: Encoder, pause_point: Callable[[], None] | None = None, pictured: bool = True
) -> dict[str, Any]:
    """Everything above for one set, fit for JSON, with the encoder's name and what it was trained on.

    Neighbours are looked for among images that began as other noise images: snapshots of the same one are almost always the nearest,
    and how alike those are is `snapshot_similarity`: None where the set does not say which began as the same.
    pictured: whether the parts that are to be looked at image by image, matrix and neighbours, are kept.
    Raises DataError for fewer than two images.
    """
    if len(images) < 2:
        raise DataError(f"the set has {len(images)} images: allowed is at least 2, as similarity is between pairs")
    embeddings = encoder.embed_images(images.images, pause_point=pause_point)
    within = within_class_similarity(embeddings, images.labels)
    families = families_of(images)
    snapshots = None if families is None else family_similarity(embeddings, families)
    measured = {
        "encoder": encoder.name,
        "encoder_trained_on": encoder.trained_on,
        "images": len(images),
        "mean_similarity": round(mean_similarity(embeddings), 5),
        "within_class_similarity": None if within is None else round(within, 5),
        "snapshot_similarity": None if snapshots is None else round(snapshots, 5),
        "histogram": similarity_histogram(embeddings),
        "matrix": similarity_matrix(embeddings, images.labels),
        **_neighbours(embeddings, families),
    }
    return measured if pictured else {name: value for name, value in measured.items() if name not in ("matrix", "neighbours")}
