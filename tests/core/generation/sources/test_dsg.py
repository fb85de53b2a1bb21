"""DSG: its terms by hand and by numpy, its settings, and that the network recognizes its images."""

import numpy as np
import pytest
import torch
from torch import nn

from core.config import PRESETS, GenerationConfig, MachineConfig
from core.generation.bn_statistics import collect_statistics
from core.generation.loop import synthesize
from core.generation.losses import ForwardOutputs
from core.generation.method_terms import correlation_inhibition
from core.generation.sources.dsg import DSGImages, gaussian_slack, slack_loss


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def outputs(network, images):
    with collect_statistics(network, per_image=True) as statistics:
        logits = network(images)
    return ForwardOutputs(images, torch.zeros(len(images), dtype=torch.long), logits, statistics.layer_losses(), statistics=statistics)


def layers(*running):
    """BatchNorm layers of one channel, without effect, with these running means and variances."""
    network = nn.Sequential(*[nn.BatchNorm2d(1, eps=0.0, affine=False) for _ in running]).eval()
    for layer, (mean, variance) in zip(network, running):
        layer.running_mean.fill_(mean)
        layer.running_var.fill_(variance)
    return network


def test_slack_loss_by_hand():
    """Two images of two pixels in two layers, of which the first has no effect on the second."""
    network = layers((0.0, 1.0), (2.0, 9.0))
    images = torch.tensor([[[[0.0, 2.0]]], [[[3.0, 5.0]]]])
    root = 2**0.5  # the standard deviation of each image
    slack = torch.tensor([[0.5, 0.25, 0.0], [0.1, 0.2, 0.0]])
    means = [[2 * (1 - 0.5), 1 - 0.25], [4 - 0.5, 2 * (2 - 0.25)]]  # image i is doubled in layer i
    deviations = [[2 * (root - 1 - 0.1), 3 - root - 0.2], [root - 1 - 0.1, 2 * (3 - root - 0.2)]]
    of_images = 1**2 + 4**2 + 2 * (root - 1) ** 2
    expected = sum(value**2 for rows in (means, deviations) for row in rows for value in row) + of_images
    assert slack_loss(outputs(network, images), slack).item() == pytest.approx(expected / 2, rel=1e-4)
    # no image is within the slack of the images themselves, which is 0
    assert slack_loss(outputs(network, images), torch.tensor([[9.0, 9.0, 0.0]] * 2)).item() == pytest.approx(of_images / 2, rel=1e-4)


def test_slack_is_a_quantile_of_the_gaps_of_gaussian_images():
    network = nn.Sequential(nn.BatchNorm2d(3)).eval()
    network[0].running_mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
    network[0].running_var.copy_(torch.tensor([4.0, 9.0, 16.0]))
    images = noise(64, 3, 8, 8)
    slack = gaussian_slack(network, images, 0.9)
    gaps = [np.array([1.0, 2.0, 3.0]) - images.mean(dim=(0, 2, 3)).numpy(), np.array([2.0, 3.0, 4.0]) - images.std(dim=(0, 2, 3)).numpy()]
    assert slack[:, 0].tolist() == pytest.approx([np.quantile(np.abs(gap), 0.9) for gap in gaps], rel=1e-4)
    assert slack[:, 1].tolist() == [0, 0]


def test_correlation_inhibition_by_numpy():
    images, other = noise(5, 2, 4, 4), noise(5, 2, 4, 4, seed=1)
    pairs = []
    for each in (images, other):
        rows = each.flatten(1).double().numpy()
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        pairs.append(np.linalg.eigh(rows @ rows.T))
    (values, vectors), (others, other_vectors) = pairs
    weights = (others - others.min()) / (others.max() - others.min())
    # the sign of an eigenvector is arbitrary, so every combination is allowed
    overlaps = weights * (vectors * other_vectors).sum(axis=0)
    signs = np.array(np.meshgrid(*[[-1, 1]] * 5)).reshape(5, -1)
    allowed = 1e-4 * np.mean((values - others) ** 2) + np.abs(overlaps @ signs)
    assert np.abs(allowed - correlation_inhibition(images, other).item()).min() < 1e-5


def test_gradient_of_the_correlation_matches_the_numeric_one():
    images, other = noise(3, 1, 2, 3).double().requires_grad_(True), noise(3, 1, 2, 3, seed=1).double()
    assert torch.autograd.gradcheck(lambda own: correlation_inhibition(own, other), (images,))


def test_every_iteration_has_its_own_gaussian_images_and_roll(small):
    source = DSGImages(small, GenerationConfig(images=4, batch_size=4, snapshots=1), MachineConfig())
    seen = []
    for iteration in range(3):
        source.images(iteration)
        seen.append((source._other.sum().item(), source._roll))
    assert len(set(seen)) == 3
    assert all(abs(shift) <= 30 for _, roll in seen for shift in roll)


def test_settings_of_the_authors():
    generation = PRESETS["dsg"].generation
    assert (generation.batch_size, generation.iterations, generation.dsg_lr, generation.patience) == (64, 500, 0.9, 260)
    weights = (generation.dsg_slack, generation.dsg_sci, generation.dsg_beta, generation.dsg_tv, generation.dsg_l2)
    assert weights == (0.9, 1.0, 2.0, 0.01, 0.01)


def test_network_recognizes_the_images(embedded):
    config = GenerationConfig(images=8, iterations=25, batch_size=8, snapshots=1)
    assert synthesize(embedded, config, "dsg")[1]["teacher_agreement"] >= 75
