"""Terms of generators against values computed by hand."""

import pytest
import torch

from core.generation.bn_statistics import BatchStatistics, collect_statistics
from core.generation.generator_terms import CROSS_ENTROPY, squared_gaps
from core.generation.losses import ForwardOutputs


def test_squared_gaps_by_hand():
    running = [(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 1.0])), (torch.tensor([0.0]), torch.tensor([4.0]))]
    batch = [[(torch.tensor([2.0, 4.0]), torch.tensor([1.0, 3.0]))], [(torch.tensor([3.0]), torch.tensor([2.0]))]]
    # first layer: (1 + 4) / 2 for the means, (0 + 4) / 2 for the variances; second: 9 and 4; their mean
    assert float(squared_gaps(BatchStatistics(["a", "b"], running, batch))) == pytest.approx(((2.5 + 2.0) + (9.0 + 4.0)) / 2)


def test_squared_gaps_of_a_network(small):
    images = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with collect_statistics(small.network) as statistics:
        small.network(images)
    inputs = small.network.conv1(images)
    inner = small.network.conv2(small.network.relu(small.network.bn1(inputs)))
    expected = 0.0
    for layer, x in ((small.network.bn1, inputs), (small.network.bn2, inner)):
        mean, variance = x.mean(dim=(0, 2, 3)), x.var(dim=(0, 2, 3))
        expected += (mean - layer.running_mean).square().mean() + (variance - layer.running_var).square().mean()
    assert float(squared_gaps(statistics)) == pytest.approx(float(expected) / 2, rel=1e-5)


def test_cross_entropy_of_labels_and_of_probabilities():
    logits = torch.tensor([[1.0, 3.0, 0.0]])
    log_probabilities = logits - torch.logsumexp(logits, dim=1, keepdim=True)

    def value(labels):
        return float(CROSS_ENTROPY.function(ForwardOutputs(torch.zeros(1, 3, 2, 2), labels, logits, torch.zeros(1))))

    assert value(torch.tensor([1])) == pytest.approx(-float(log_probabilities[0, 1]))
    mixed = torch.tensor([[0.25, 0.75, 0.0]])
    assert value(mixed) == pytest.approx(-float(0.25 * log_probabilities[0, 0] + 0.75 * log_probabilities[0, 1]))
