"""Diversity of an image set: cosine similarity of CLIP embeddings, over all pairs and of nearest neighbors. Lower is more diverse."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from core.data.image_sets import ImageSet
from core.data.manifests import known_config
from core.errors import DataError
from core.evaluation.encoder import Encoder
from core.generation.methods import METHODS

HISTOGRAM_BINS = 60
MATRIX_IMAGES = 200  # side of the stored similarity matrix
NEIGHBORS = 5  # stored for each of as many images as the matrix has
PAIRS = 8  # stored pairs of most similar images
CLOSE = 0.95  # cosine above which two images count as near duplicates
QUERIES = 2048  # images whose nearest neighbor is searched, evenly spaced over a larger set
CHART_DATA = frozenset({"histogram", "matrix", "neighbours", "similarities"})  # arrays for charts, pictures and tests
_ENTRIES = 1 << 23  # entries of the similarity matrix in memory at once: 32 MB for any number of images


def mean_similarity(embeddings: Tensor) -> float:
    """Mean cosine over all pairs of different images; embeddings `(N, D)`, L2-normalized, N at least 2.

    sum over i != j of e_i . e_j = ||sum of e||^2 - sum of ||e||^2, so that no matrix is needed.
    """
    count = len(embeddings)
    values = embeddings.double()
    pairs = values.sum(dim=0).square().sum() - values.square().sum()
    return float(pairs / (count * (count - 1)))


def similarities(embeddings: Tensor, groups: Tensor | None = None) -> Tensor:
    """Mean cosine of each image to all others, averaged over each group: float64 `(G,)`, whose mean is `mean_similarity`.

    embeddings: `(N, D)`, L2-normalized, N at least 2. groups: `(G, k)`, all of one size; default: each image is a group.
    """
    values = embeddings.double()
    means = (values @ values.sum(dim=0) - values.square().sum(dim=1)) / (len(values) - 1)
    return means if groups is None else means[groups].mean(dim=1)


def within_class_similarity(embeddings: Tensor, labels: Tensor) -> float | None:
    """Mean cosine over all pairs of different images with the same label; None if no class has two images."""
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
        # each pair once: entries right of the diagonal, which is in the first square of the block
        square = block[:, : len(block)]
        above = torch.triu_indices(len(square), len(square), 1, device=block.device)
        for part in (square[above[0], above[1]], block[:, len(block) :]):
            counts += torch.histc(part, bins=HISTOGRAM_BINS, min=-1, max=1).double().cpu()
    edges = torch.linspace(-1, 1, HISTOGRAM_BINS + 1).tolist()
    return {"edges": [round(edge, 6) for edge in edges], "share": (counts / counts.sum().clamp_min(1)).tolist()}


def evenly_spaced(count: int, most: int) -> Tensor:
    """At most `most` of the numbers 0 to count - 1, evenly spaced, in order."""
    return torch.linspace(0, count - 1, min(count, most)).round().long().unique()


def similarity_matrix(embeddings: Tensor, labels: Tensor) -> dict[str, list]:
    """Cosine between at most MATRIX_IMAGES images, evenly spaced over the set and ordered by class: {"labels", "cosine"}."""
    chosen = evenly_spaced(len(embeddings), MATRIX_IMAGES)
    chosen = chosen[torch.argsort(labels[chosen], stable=True)]
    cosine = embeddings[chosen] @ embeddings[chosen].T
    return {"labels": labels[chosen].tolist(), "cosine": [[round(value, 3) for value in row] for row in cosine.tolist()]}


def snapshot_groups(images: ImageSet) -> Tensor | None:
    """The images that are snapshots of the same noise image, one row each: indices `(G, k)`; None if that is unknown."""
    config, method = known_config(images.manifest.get("config")), METHODS.get(str(images.manifest.get("method")))
    if config is None or (method is not None and method.kind != "pixels"):
        return None
    starts = torch.tensor(config.starts)
    if len(starts) != len(images):
        return None
    groups = torch.argsort(starts, stable=True).view(int(starts.max()) + 1, -1)
    # a noise image has one label: if its snapshots have several, the images were reordered
    labels = images.labels[groups]
    return groups if bool((labels == labels[:, :1]).all()) else None


def group_similarity(embeddings: Tensor, groups: Tensor) -> float | None:
    """Mean cosine over all pairs of different images of one group; None if k is 1. groups: `(G, k)`."""
    k = groups.shape[1]
    if k < 2:
        return None
    values = embeddings.double()
    sums = torch.stack([values[column] for column in groups.T]).sum(dim=0)
    # as in `mean_similarity`, for each group
    return float((sums.square().sum() - values.square().sum()) / (groups.numel() * (k - 1)))


def nearest_images(embeddings: Tensor, queries: Tensor, count: int, groups: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Cosines and indices of the `count` images most similar to each query: both `(Q, count)`, nearest first. queries: indices `(Q,)`.

    groups: `(G, k)`; at most one image of each is returned, and none of the query's own; default: each image is a group.
    count: fewer are returned if there are not as many other groups.
    """
    if groups is None:
        groups = torch.arange(len(embeddings))[:, None]
    group = _group_of(groups)
    count = min(count, len(groups) - 1)
    cosines, numbers = [], []
    for block in queries.split(max(1, _ENTRIES // max(1, len(embeddings)))):
        # (q, G, k) -> the nearest of each group
        best, which = (embeddings[block] @ embeddings.T).clamp_(-1, 1)[:, groups].max(dim=2)
        best.scatter_(1, group[block][:, None], -2)
        top = best.topk(count, dim=1)
        cosines.append(top.values)
        numbers.append(groups[top.indices, which.gather(1, top.indices)])
    return torch.cat(cosines), torch.cat(numbers)


def _group_of(groups: Tensor) -> Tensor:
    """The row of `groups` that each image is in: `(N,)`."""
    numbers = torch.empty(groups.numel(), dtype=torch.long)
    numbers[groups] = torch.arange(len(groups))[:, None]
    return numbers


def most_similar_pairs(queries: Tensor, cosines: Tensor, numbers: Tensor, groups: Tensor | None = None) -> list[list[float]]:
    """The PAIRS images most similar to their nearest neighbor, as [index, index of the neighbor, cosine]; no group occurs twice.

    queries, cosines, numbers: `(Q,)`, images and their nearest neighbors. groups: as in `nearest_images`.
    """
    group = None if groups is None else _group_of(groups).tolist()
    pairs: list[list[float]] = []
    seen: set[int] = set()
    for rank in torch.argsort(cosines, descending=True, stable=True).tolist():
        both = [int(queries[rank]), int(numbers[rank])]
        own = set(both) if group is None else {group[image] for image in both}
        if own & seen:
            continue
        pairs.append([*both, round(float(cosines[rank]), 4)])
        seen |= own
        if len(pairs) == PAIRS:
            break
    return pairs


def _nearest_neighbors(embeddings: Tensor, groups: Tensor | None) -> dict[str, Any]:
    """Similarity to the nearest neighbors, and for some images which they are."""
    queries = evenly_spaced(len(embeddings), QUERIES)
    cosines, numbers = nearest_images(embeddings, queries, 1, groups)
    shown = evenly_spaced(len(embeddings), MATRIX_IMAGES)
    near, which = nearest_images(embeddings, shown, NEIGHBORS, groups)
    return {
        "nearest_similarity": round(float(cosines.double().mean()), 5),
        "close_above": CLOSE,
        "close_share": round(float((cosines > CLOSE).double().mean()), 5),
        "neighbours": {
            "pairs": most_similar_pairs(queries, cosines[:, 0], numbers[:, 0], groups),
            "images": shown.tolist(),
            "nearest": which.tolist(),
            "cosine": [[round(value, 4) for value in row] for row in near.tolist()],
        },
    }


def measure_diversity(
    images: ImageSet, encoder: Encoder, pause_point: Callable[[], None] | None = None, keep_matrices: bool = True
) -> dict[str, Any]:
    """All measures of one set as JSON values, with the encoder's name and what it was trained on.

    Neighbors are images of other noise images, because snapshots of the same one are almost always the nearest; their similarity is
    `snapshot_similarity`, None if it is unknown which images these are. keep_matrices: whether the result contains the matrix and the
    neighbors. pause_point: called between batches; may raise to stop early. Raises DataError for fewer than two images.
    """
    if len(images) < 2:
        raise DataError(f"a set must have at least 2 images to measure diversity, got {len(images)}")
    embeddings = encoder.embed_images(images.images, pause_point=pause_point)
    within = within_class_similarity(embeddings, images.labels)
    groups = snapshot_groups(images)
    snapshots = None if groups is None else group_similarity(embeddings, groups)
    measured = {
        "encoder": encoder.name,
        "encoder_trained_on": encoder.trained_on,
        "images": len(images),
        "mean_similarity": round(mean_similarity(embeddings), 5),
        "within_class_similarity": None if within is None else round(within, 5),
        "snapshot_similarity": None if snapshots is None else round(snapshots, 5),
        "similarities": [round(value, 5) for value in similarities(embeddings, groups).tolist()],
        "histogram": similarity_histogram(embeddings),
        "matrix": similarity_matrix(embeddings, images.labels),
        **_nearest_neighbors(embeddings, groups),
    }
    return measured if keep_matrices else {name: value for name, value in measured.items() if name not in ("matrix", "neighbours")}
