import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from core.data.image_sets import ImageSet
from core.errors import DataError
from core.evaluation import diversity
from core.evaluation.diversity import (
    HISTOGRAM_BINS,
    MATRIX_IMAGES,
    mean_similarity,
    measure_diversity,
    similarity_histogram,
    similarity_matrix,
    within_class_similarity,
)
from core.evaluation.encoder import Encoder


def unit_vectors(count: int, seed: int = 0, size: int = 6) -> torch.Tensor:
    return F.normalize(torch.randn(count, size, generator=torch.Generator().manual_seed(seed)) + 0.3, dim=1)


def pair_cosines(embeddings: torch.Tensor, labels: torch.Tensor | None = None) -> list[float]:
    """Each pair once, of the same label where labels are given."""
    found = []
    for i in range(len(embeddings)):
        for j in range(i + 1, len(embeddings)):
            if labels is None or labels[i] == labels[j]:
                found.append(float(F.cosine_similarity(embeddings[i], embeddings[j], dim=0)))
    return found


def test_mean_similarity_by_hand():
    assert mean_similarity(torch.tensor([[1.0, 0.0], [1.0, 0.0]])) == 1
    assert mean_similarity(torch.tensor([[1.0, 0.0], [0.0, 1.0]])) == 0
    assert mean_similarity(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])) == pytest.approx(-1 / 3)


def test_mean_similarity_is_the_mean_over_pairs():
    embeddings = unit_vectors(23)
    assert mean_similarity(embeddings) == pytest.approx(np.mean(pair_cosines(embeddings)), abs=1e-6)


def test_within_class_similarity_is_the_mean_over_pairs_of_a_class():
    embeddings, labels = unit_vectors(23), torch.tensor([0] * 10 + [7] * 5 + [2] + [3] * 7)[torch.randperm(23)]
    assert within_class_similarity(embeddings, labels) == pytest.approx(np.mean(pair_cosines(embeddings, labels)), abs=1e-6)
    assert within_class_similarity(embeddings, torch.arange(23)) is None


@pytest.mark.parametrize("entries", [1 << 23, 7 * 31, 1])
def test_histogram_equals_numpys(monkeypatch, entries):
    monkeypatch.setattr(diversity, "_ENTRIES", entries)
    embeddings = unit_vectors(31)
    histogram = similarity_histogram(embeddings)
    counts, edges = np.histogram(pair_cosines(embeddings), bins=HISTOGRAM_BINS, range=(-1, 1))
    assert histogram["edges"] == pytest.approx(edges.tolist(), abs=1e-6)
    assert sum(histogram["share"]) == pytest.approx(1)
    assert histogram["share"] == pytest.approx((counts / counts.sum()).tolist())


def test_histogram_of_equal_and_opposite_images():
    # rounding may carry a cosine past 1: it still counts, in the last bin
    same = F.normalize(torch.full((5, 128), 0.1), dim=1) * (1 + 1e-6)
    assert similarity_histogram(same)["share"][-1] == 1
    assert similarity_histogram(torch.stack([same[0], -same[0]]))["share"][0] == 1


def test_matrix_is_ordered_by_class_and_keeps_order_within():
    embeddings, labels = unit_vectors(9), torch.tensor([2, 0, 1, 0, 2, 1, 0, 0, 1])
    matrix = similarity_matrix(embeddings, labels)
    order = [1, 3, 6, 7, 2, 5, 8, 0, 4]
    assert matrix["labels"] == [0, 0, 0, 0, 1, 1, 1, 2, 2]
    for row, i in enumerate(order):
        for column, j in enumerate(order):
            cosine = float(F.cosine_similarity(embeddings[i], embeddings[j], dim=0))
            assert matrix["cosine"][row][column] == pytest.approx(cosine, abs=6e-4)


def test_matrix_of_many_images_is_spread_over_the_set():
    count = 10 * MATRIX_IMAGES
    angle = torch.linspace(0, 3, count)
    embeddings = torch.stack([angle.cos(), angle.sin()], dim=1)
    matrix = similarity_matrix(embeddings, torch.zeros(count, dtype=torch.long))
    assert len(matrix["cosine"]) == len(matrix["labels"]) == MATRIX_IMAGES
    # cosine to the first image says where on the arc an image lies
    positions = np.arccos(np.array(matrix["cosine"][0]).clip(-1, 1))
    assert positions[0] == 0
    assert positions[-1] == pytest.approx(3, abs=0.01)
    assert np.abs(positions[20:-20] - np.linspace(0, 3, MATRIX_IMAGES)[20:-20]).max() < 0.02


class MeanColour(torch.nn.Module):
    def encode_image(self, pixels):
        return pixels.mean(dim=(2, 3))


def colour_encoder() -> Encoder:
    def preprocess(image):
        return torch.tensor(np.array(image)).permute(2, 0, 1).float() / 255

    return Encoder("colour", "nothing", MeanColour(), preprocess, lambda texts: texts, torch.device("cpu"))


def test_measure_diversity():
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    images[0, 0], images[1, 0], images[2, 1], images[3, 2] = 255, 80, 255, 255  # red, dark red, green, blue
    measured = measure_diversity(ImageSet(images, torch.tensor([0, 0, 1, 1])), colour_encoder())
    assert measured["mean_similarity"] == pytest.approx(1 / 6, abs=1e-5)  # of six pairs only the two reds agree
    assert measured["within_class_similarity"] == pytest.approx(0.5)
    assert (measured["encoder"], measured["encoder_trained_on"], measured["images"]) == ("colour", "nothing", 4)
    assert json.loads(json.dumps(measured)) == measured


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_images(count):
    with pytest.raises(DataError, match=f"{count} images: allowed is at least 2"):
        measure_diversity(ImageSet(torch.zeros(count, 3, 8, 8, dtype=torch.uint8), torch.zeros(count)), colour_encoder())
