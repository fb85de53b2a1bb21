"""SCRM of ZAQ against loops over positions and channels."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from core.generation.feature_relations import channel_attended, feature_relations, relation_distance, spatially_attended


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_spatial_attention_by_loops():
    features = random(1, 2, 3)
    f, found = features[0], spatially_attended(features)[0]
    for p in range(3):
        powers = [math.exp(float(f[:, p] @ f[:, q])) for q in range(3)]
        attended = sum(power / sum(powers) * f[:, q] for q, power in enumerate(powers))
        assert torch.allclose(found[:, p], 0.1 * attended + f[:, p], atol=1e-6)


def test_channel_attention_by_loops():
    features = random(1, 3, 4)
    f, found = features[0], channel_attended(features)[0]
    for c in range(3):
        energies = [float(f[c] @ f[d]) for d in range(3)]
        powers = [math.exp(max(energies) - energy) for energy in energies]
        attended = sum(power / sum(powers) * f[d] for d, power in enumerate(powers))
        assert torch.allclose(found[c], 0.1 * attended + f[c], atol=1e-6)


def test_distance_of_a_map():
    teacher, student = random(2, 3, 2, 2), random(2, 3, 2, 2, seed=1)
    flat = [F.normalize(one.flatten(2), dim=1) for one in (teacher, student)]
    expected = sum((attend(flat[0]) - attend(flat[1])).abs().mean() for attend in (spatially_attended, channel_attended))
    assert float(relation_distance(teacher, student)) == pytest.approx(float(expected), rel=1e-5)
    assert float(relation_distance(teacher, 3 * teacher)) == pytest.approx(0.0, abs=1e-6)  # of unit length
    assert torch.isfinite(relation_distance(random(1, 2, 40, 50), random(1, 2, 40, 50, seed=1)))


def test_relations_of_networks(small):
    images, student = random(4, 3, 8, 8), copy.deepcopy(small.network)
    assert [float(value) for value in feature_relations(images, small.network, student)] == [0.0, 0.0]
    with torch.no_grad():
        student.conv2.weight.mul_(-1.0)
    distance, relations = feature_relations(images, small.network, student)
    assert float(distance) == pytest.approx(float((small.network(images) - student(images)).abs().mean()), rel=1e-5)

    def last_map(network):
        # its only resolution; the ReLU behind the addition does not write into it
        return network.bn2(network.conv2(network.relu(network.bn1(network.conv1(images)))))

    assert float(relations) == pytest.approx(float(relation_distance(last_map(small.network), last_map(student))), rel=1e-4)
