import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from core.config import GenerationConfig
from core.data.image_sets import ImageSet
from core.errors import DataError
from core.evaluation import diversity
from core.evaluation.diversity import (
    HISTOGRAM_BINS,
    MATRIX_IMAGES,
    group_similarity,
    mean_similarity,
    measure_diversity,
    most_similar_pairs,
    nearest_images,
    similarities,
    similarity_histogram,
    similarity_matrix,
    snapshot_groups,
    within_class_similarity,
)
from core.evaluation.encoder import Encoder


def unit_vectors(count: int, seed: int = 0, size: int = 6) -> torch.Tensor:
    return F.normalize(torch.randn(count, size, generator=torch.Generator().manual_seed(seed)) + 0.3, dim=1)


def pair_cosines(embeddings: torch.Tensor, labels: torch.Tensor | None = None) -> list[float]:
    """The cosine of each pair once; with labels, of pairs with the same label only."""
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


def test_similarities_of_groups_average_to_the_mean_over_pairs():
    embeddings, groups = unit_vectors(24), torch.randperm(24, generator=torch.Generator().manual_seed(1)).view(8, 3)
    found = similarities(embeddings, groups)
    others = [sum(float(embeddings[i] @ embeddings[j]) for j in range(24) if j != i) / 23 for i in groups[2].tolist()]
    assert float(found[2]) == pytest.approx(sum(others) / 3, abs=1e-6)
    assert float(found.mean()) == pytest.approx(np.mean(pair_cosines(embeddings)), abs=1e-6)
    assert float(similarities(embeddings).mean()) == pytest.approx(mean_similarity(embeddings))


def test_within_class_similarity_is_the_mean_over_pairs_of_a_class():
    embeddings, labels = unit_vectors(23), torch.tensor([0] * 10 + [7] * 5 + [2] + [3] * 7)[torch.randperm(23)]
    assert within_class_similarity(embeddings, labels) == pytest.approx(np.mean(pair_cosines(embeddings, labels)), abs=1e-6)
    assert within_class_similarity(embeddings, torch.arange(23)) is None


@pytest.mark.parametrize("entries", [1 << 23, 7 * 31, 1])
def test_histogram_equals_numpy(monkeypatch, entries):
    monkeypatch.setattr(diversity, "_ENTRIES", entries)
    embeddings = unit_vectors(31)
    histogram = similarity_histogram(embeddings)
    counts, edges = np.histogram(pair_cosines(embeddings), bins=HISTOGRAM_BINS, range=(-1, 1))
    assert histogram["edges"] == pytest.approx(edges.tolist(), abs=1e-6)
    assert sum(histogram["share"]) == pytest.approx(1)
    assert histogram["share"] == pytest.approx((counts / counts.sum()).tolist())


def test_histogram_of_equal_and_opposite_images():
    # rounding may push a cosine above 1; it still counts, in the last bin
    same = F.normalize(torch.full((5, 128), 0.1), dim=1) * (1 + 1e-6)
    assert similarity_histogram(same)["share"][-1] == 1
    assert similarity_histogram(torch.stack([same[0], -same[0]]))["share"][0] == 1


def test_matrix_is_ordered_by_class_and_then_by_index():
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
    # the cosine to the first image gives the position on the arc
    positions = np.arccos(np.array(matrix["cosine"][0]).clip(-1, 1))
    assert positions[0] == 0
    assert positions[-1] == pytest.approx(3, abs=0.01)
    assert np.abs(positions[20:-20] - np.linspace(0, 3, MATRIX_IMAGES)[20:-20]).max() < 0.02


class MeanColor(torch.nn.Module):
    def encode_image(self, pixels):
        return pixels.mean(dim=(2, 3))


def color_encoder() -> Encoder:
    def preprocess(image):
        return torch.tensor(np.array(image)).permute(2, 0, 1).float() / 255

    return Encoder("color", "nothing", MeanColor(), preprocess, torch.device("cpu"))


def test_measure_diversity():
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    images[0, 0], images[1, 0], images[2, 1], images[3, 2] = 255, 80, 255, 255  # red, dark red, green, blue
    measured = measure_diversity(ImageSet(images, torch.tensor([0, 0, 1, 1])), color_encoder())
    assert measured["mean_similarity"] == pytest.approx(1 / 6, abs=1e-5)  # of six pairs only the two reds agree
    assert measured["within_class_similarity"] == pytest.approx(0.5)
    assert (measured["encoder"], measured["encoder_trained_on"], measured["images"]) == ("color", "nothing", 4)
    assert json.loads(json.dumps(measured)) == measured


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_images_are_refused(count):
    with pytest.raises(DataError, match=f"at least 2 images to measure diversity, got {count}"):
        measure_diversity(ImageSet(torch.zeros(count, 3, 8, 8, dtype=torch.uint8), torch.zeros(count)), color_encoder())


def generated(config: GenerationConfig) -> ImageSet:
    """An image set with the labels and the manifest of a generation."""
    starts = torch.tensor(config.starts)
    return ImageSet(torch.zeros(config.images, 3, 8, 8, dtype=torch.uint8), starts % 3, {"config": config.to_dict()})


# 5 noise images in batches of 2 and 3, because no batch has a single image; each saved twice
IN_BATCHES = GenerationConfig(images=10, snapshots=2, batch_size=2, iterations=4)


def test_groups_are_snapshots_of_the_same_noise_image():
    assert IN_BATCHES.starts == [0, 1, 0, 1, 2, 3, 4, 2, 3, 4]
    assert snapshot_groups(generated(IN_BATCHES)).tolist() == [[0, 2], [1, 3], [4, 7], [5, 8], [6, 9]]


def test_groups_from_a_manifest_of_version_1():
    images = generated(IN_BATCHES)
    config = {name: value for name, value in IN_BATCHES.to_dict().items() if name != "half_resolution_fraction"}
    config |= {"model": "x", "optimizer": "adam", "half_resolution": 0.0, "seed": 3, "compile": False, "threads": 1, "device": "cpu"}
    of_version_1 = ImageSet(images.images, images.labels, {"config": config})
    assert torch.equal(snapshot_groups(of_version_1), snapshot_groups(images))


def test_groups_are_unknown_without_a_matching_manifest():
    whole = generated(IN_BATCHES)
    assert snapshot_groups(ImageSet(whole.images, whole.labels)) is None
    assert snapshot_groups(ImageSet(whole.images[:8], whole.labels[:8], whole.manifest)) is None
    assert snapshot_groups(ImageSet(whole.images, whole.labels.sort().values, whole.manifest)) is None  # in another order
    assert snapshot_groups(ImageSet(whole.images, whole.labels, {"config": {"images": "many"}})) is None
    assert snapshot_groups(ImageSet(whole.images, whole.labels, {"config": []})) is None


def test_group_similarity_is_the_mean_over_pairs_within_groups():
    embeddings, groups = unit_vectors(10), snapshot_groups(generated(IN_BATCHES))
    pairs = [(0, 2), (1, 3), (4, 7), (5, 8), (6, 9)]
    expected = np.mean([float(F.cosine_similarity(embeddings[i], embeddings[j], dim=0)) for i, j in pairs])
    assert group_similarity(embeddings, groups) == pytest.approx(expected, abs=1e-6)
    assert group_similarity(embeddings, torch.arange(10)[:, None]) is None
    three = torch.tensor([[0, 4, 8], [1, 2, 3]])
    expected = np.mean(pair_cosines(embeddings[three[0]]) + pair_cosines(embeddings[three[1]]))
    assert group_similarity(embeddings[three.flatten()], torch.arange(6).view(2, 3)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("entries", [1 << 23, 25, 1])
def test_nearest_images_equal_a_sort_of_all_others(monkeypatch, entries):
    monkeypatch.setattr(diversity, "_ENTRIES", entries)
    embeddings, groups, queries = unit_vectors(10), snapshot_groups(generated(IN_BATCHES)), torch.tensor([1, 7, 4])
    for rows in ([[i] for i in range(10)], groups.tolist()):
        cosines, numbers = nearest_images(embeddings, queries, 3, None if len(rows) == 10 else groups)
        for place, query in enumerate(queries.tolist()):
            best = [max((float(embeddings[query] @ embeddings[j]), j) for j in row) for row in rows if query not in row]
            expected = sorted(best, reverse=True)[:3]
            assert numbers[place].tolist() == [j for _, j in expected]
            assert cosines[place].tolist() == pytest.approx([cosine for cosine, _ in expected], abs=1e-6)


def test_fewer_nearest_images_than_requested():
    cosines, numbers = nearest_images(unit_vectors(3), torch.arange(3), 5)
    assert cosines.shape == numbers.shape == (3, 2)
    cosines, _ = nearest_images(unit_vectors(4), torch.arange(4), 5, torch.tensor([[0, 1], [2, 3]]))
    assert cosines.shape == (4, 1)


def test_pairs_start_with_the_most_similar_and_repeat_no_image():
    queries, numbers = torch.arange(5), torch.tensor([1, 0, 1, 4, 3])
    cosines = torch.tensor([0.9, 0.9, 0.8, 0.95, 0.95])
    assert most_similar_pairs(queries, cosines, numbers) == [[3, 4, pytest.approx(0.95)], [0, 1, pytest.approx(0.9)]]
    # 2 is in the group of 3, which is already in a pair, so 2 and its nearest neighbor do not form another
    queries, numbers, cosines = torch.arange(6), torch.tensor([1, 0, 1, 4, 3, 0]), torch.tensor([0.1, 0.1, 0.8, 0.95, 0.95, 0.0])
    groups = torch.tensor([[0, 1], [2, 3], [4, 5]])
    assert most_similar_pairs(queries, cosines, numbers, groups) == [[3, 4, pytest.approx(0.95)], [0, 1, pytest.approx(0.1)]]


def test_neighbors_come_from_other_noise_images():
    config = GenerationConfig(images=8, snapshots=2, batch_size=4, iterations=4)
    images = generated(config)
    images.labels = torch.tensor([0, 1, 2, 3] * 2)
    # noise images 0 and 1 are red, 2 is green, 3 is blue; their two snapshots differ in brightness
    for index, (channel, value) in enumerate([(0, 255), (0, 200), (1, 255), (2, 255), (0, 90), (0, 255), (1, 80), (2, 10)]):
        images.images[index, channel] = value
    measured = measure_diversity(images, color_encoder())
    assert measured["snapshot_similarity"] == 1
    # the nearest neighbor of a red image is red, cosine 1; for green and blue only cosine 0 is left
    assert measured["nearest_similarity"] == pytest.approx(0.5)
    assert (measured["close_above"], measured["close_share"]) == (0.95, 0.5)
    neighbours = measured["neighbours"]
    assert neighbours["images"] == list(range(8))
    assert neighbours["nearest"][0][0] in (1, 5)
    assert neighbours["cosine"][0] == pytest.approx([1, 0, 0])  # one for each of the three other noise images
    assert neighbours["pairs"][0][2] == pytest.approx(1)
    assert len({image % 4 for pair in neighbours["pairs"] for image in pair[:2]}) == 2 * len(neighbours["pairs"])
    assert json.loads(json.dumps(measured)) == measured
    without = measure_diversity(images, color_encoder(), keep_matrices=False)
    assert without == {name: value for name, value in measured.items() if name not in ("matrix", "neighbours")}


def test_neighbors_in_a_large_set_are_searched_for_some_images_only(monkeypatch):
    monkeypatch.setattr(diversity, "QUERIES", 3)
    images = torch.zeros(9, 3, 8, 8, dtype=torch.uint8)
    images[:, 0] = 255  # all red except the fifth, which is the second of the three queries
    images[4, 0], images[4, 1] = 0, 255
    measured = measure_diversity(ImageSet(images, torch.zeros(9, dtype=torch.long)), color_encoder())
    assert measured["close_share"] == pytest.approx(2 / 3, abs=1e-5)
