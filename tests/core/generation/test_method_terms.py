"""Terms of generators against values computed by hand."""

import pytest
import torch

from core.generation.bn_statistics import BatchStatistics, collect_statistics
from core.generation.losses import ForwardOutputs
from core.generation.method_terms import (
    ACTIVATION,
    CROSS_ENTROPY,
    correlation_inhibition,
    gap_quantiles,
    layered_gaps,
    slack_gaps,
    squared_gaps,
)


def test_squared_gaps_by_hand():
    running = [(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 1.0])), (torch.tensor([0.0]), torch.tensor([4.0]))]
    batch = [[(torch.tensor([2.0, 4.0]), torch.tensor([1.0, 3.0]))], [(torch.tensor([3.0]), torch.tensor([2.0]))]]
    # first layer: (1 + 4) / 2 for the means, (0 + 4) / 2 for the variances; second: 9 and 4; their mean
    assert float(squared_gaps(BatchStatistics(["a", "b"], running, batch))) == pytest.approx(((2.5 + 2.0) + (9.0 + 4.0)) / 2)


def test_layered_gaps_by_hand():
    """The first of three layers is shallow: its gaps count 0.2, those of the others 1.1."""
    running = [(torch.zeros(1), torch.ones(1)) for _ in range(3)]
    batch = [[(torch.tensor([mean]), torch.tensor([variance]))] for mean, variance in ((1.0, 3.0), (2.0, 1.0), (0.0, 2.0))]
    expected = (0.2 * (1.0 + 4.0) + 1.1 * (4.0 + 0.0) + 1.1 * (0.0 + 1.0)) / 3
    assert float(layered_gaps(BatchStatistics(["a", "b", "c"], running, batch))) == pytest.approx(expected)


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


def statistics_of(batch):
    """Two layers with running statistics zero and one, and these batch means; batch variances of one."""
    running = [(torch.zeros(len(means)), torch.ones(len(means))) for means in batch]
    return BatchStatistics(["a", "b"], running, [[(torch.tensor(means), torch.ones(len(means)))] for means in batch])


def test_slack_by_hand():
    statistics = statistics_of([[3.0, -1.0], [0.5, -4.0]])
    # first layer: (3 - 1)^2, twice because it is channel 0 of layer 0; the other gap equals the slack. Second: (4 - 1)^2, twice
    assert float(slack_gaps(statistics, [(1.0, 0.0), (1.0, 0.0)])) == pytest.approx((2 * 4.0 + 2 * 9.0) / 2)
    # variances do not differ, so that their slack changes nothing
    assert float(slack_gaps(statistics, [(0.0, 7.0), (9.0, 7.0)])) == pytest.approx((2 * 9.0 + 1.0) / 2)


def test_quantiles_of_gaps_by_hand():
    found = gap_quantiles(statistics_of([[0.0, -1.0, 2.0], [5.0]]), 0.75)
    assert found == [(pytest.approx(1.5), 0.0), (5.0, 0.0)]


def test_correlation_inhibition_by_hand():
    """Two images whose cosine is c: eigenvalues 1 - c and 1 + c, eigenvectors (1, -1) and (1, 1) over sqrt(2) whatever c is."""
    images, noise = torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.tensor([[1.0, 0.0], [0.28, 0.96]])
    found = correlation_inhibition(images.view(2, 1, 1, 2), noise.view(2, 1, 1, 2))
    # weights 0 and 1, so that only the second pair counts, with 1 or -1
    assert float(found) == pytest.approx(1e-4 * (0.6 - 0.28) ** 2 + 1.0)


def test_correlation_inhibition_has_the_numeric_gradient():
    generator = torch.Generator().manual_seed(1)
    images, noise = (torch.randn(4, 1, 2, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    assert torch.autograd.gradcheck(lambda x: correlation_inhibition(x, noise), images.requires_grad_())


def test_activation_by_hand():
    features = torch.tensor([[1.0, -2.0], [0.0, 3.0]])
    outputs = ForwardOutputs(torch.zeros(2, 3, 2, 2), torch.zeros(2), torch.zeros(2, 2), torch.zeros(1), features=features)
    assert float(ACTIVATION.function(outputs)) == -1.5
