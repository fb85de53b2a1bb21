import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from core.errors import ModelError
from core.generation.bn_statistics import ChannelStatistics, collect_statistics, observed_statistics


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_statistics_agree_with_torch(memory_format):
    x = (noise(8, 5, 6, 7) * 3 + 2).to(memory_format=memory_format)
    mean, variance = ChannelStatistics.apply(x)
    expected_variance, expected_mean = torch.var_mean(x, dim=(0, 2, 3), unbiased=True)
    assert torch.allclose(mean, expected_mean, rtol=1e-5)
    assert torch.allclose(variance, expected_variance, rtol=1e-4)


def test_statistics_equal_batch_norms_running_statistics():
    x = noise(16, 3, 4, 4) + 1
    layer = nn.BatchNorm2d(3, momentum=1.0).train()
    layer(x)
    mean, variance = ChannelStatistics.apply(x)
    assert torch.allclose(mean, layer.running_mean, atol=1e-6)
    assert torch.allclose(variance, layer.running_var, rtol=1e-5)


def test_gradient_matches_the_numeric_one():
    x = noise(3, 2, 3, 2).double().requires_grad_(True)
    assert torch.autograd.gradcheck(ChannelStatistics.apply, (x,))


def test_gradient_agrees_with_autograd_through_torch():
    x = noise(4, 3, 5, 5)
    weights = noise(2, 3, seed=1)
    gradients = []
    for statistics in (ChannelStatistics.apply, lambda x: torch.var_mean(x, dim=(0, 2, 3))[::-1]):
        own = x.clone().requires_grad_(True)
        mean, variance = statistics(own)
        (weights[0] @ mean + weights[1] @ variance).backward()
        gradients.append(own.grad)
    assert torch.allclose(*gradients, atol=1e-6)


class Repeated(nn.Module):
    """Layers of 2, 1 and 2 channels; the first runs twice, the second never."""

    def __init__(self):
        super().__init__()
        self.twice, self.never, self.once = nn.BatchNorm2d(2), nn.BatchNorm2d(1), nn.BatchNorm2d(2)

    def forward(self, x):
        return self.once(self.twice(self.twice(x) + 1))


def test_all_layers_end_to_end():
    x, network = noise(8, 2, 4, 4), Repeated().eval()
    with collect_statistics(network) as statistics, torch.no_grad():
        network(x)
        both = statistics.end_to_end()
        second = network.twice(x) + 1
        last = network.twice(second)
    nan = torch.tensor([float("nan")])
    for row, function in zip(both, (lambda t: t.mean(dim=(0, 2, 3)), lambda t: t.var(dim=(0, 2, 3)))):
        expected = torch.cat([(function(x) + function(second)) / 2, nan, function(last)])
        assert torch.allclose(row, expected, rtol=1e-4, atol=1e-6, equal_nan=True)


def test_loss_by_hand_and_zero_for_matching_statistics():
    x = noise(32, 3, 4, 4)
    layer = nn.BatchNorm2d(3).eval()
    variance, mean = torch.var_mean(x, dim=(0, 2, 3))
    layer.running_mean, layer.running_var = mean.clone(), variance.clone()
    network = nn.Sequential(layer)
    with collect_statistics(network) as statistics:
        network(x)
        assert statistics.layer_losses().item() == pytest.approx(0.0, abs=1e-5)
        statistics.clear()
        layer.running_mean += torch.tensor([3.0, 4.0, 0.0])  # norm 5
        layer.running_var += torch.tensor([0.0, 0.0, 2.0])  # norm 2
        network(x)
        assert statistics.layer_losses().item() == pytest.approx(7.0, abs=1e-4)


def test_divergence_equals_that_of_torch(small):
    images = noise(16, 3, 8, 8)
    with collect_statistics(small.network) as statistics:
        small.network(images)
        expected = []
        for (mean, variance), ((batch_mean, batch_variance),) in zip(statistics.running, statistics.batch):
            floor = 1e-5 + 0.01 * variance.mean()
            running, batch = (Normal(m, (v + floor).sqrt()) for m, v in ((mean, variance), (batch_mean, batch_variance)))
            expected.append(kl_divergence(batch, running).mean())
        assert torch.allclose(statistics.divergences(), torch.stack(expected), rtol=1e-4)


def test_divergence_of_a_layer_that_runs_twice_or_never():
    x, network = noise(8, 2, 4, 4), Repeated().eval()
    with collect_statistics(network) as statistics, torch.no_grad():
        network(x)
        both = statistics.divergences()
        assert both[1] == 0.0
        first, second = statistics.batch[0]
        alone = []
        for passes in ([first], [second]):
            statistics.batch[0] = passes
            alone.append(statistics.divergences()[0])
        assert both[0].item() == pytest.approx(sum(alone).item())


def test_divergence_does_not_depend_on_the_scale_of_a_layer():
    x = noise(32, 3, 4, 4)
    found = []
    for scale in (1.0, 1000.0):
        layer = nn.BatchNorm2d(3).eval()
        layer.running_mean, layer.running_var = torch.full((3,), 0.5 * scale), torch.tensor([0.5, 1.0, 2.0]) * scale**2
        with collect_statistics(nn.Sequential(layer)) as statistics:
            layer(x * scale)
            found.append(statistics.divergences().item())
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    assert found[0] > 0.1


def test_every_layer_counts_and_hooks_are_removed(embedded):
    images = noise(2, 3, 32, 32)
    with collect_statistics(embedded.network) as statistics:
        embedded.network(images)
        # the stem, 3 stages of 3 units of 2, and two projections
        assert len(statistics.names) == 1 + 18 + 2
        assert all(len(passes) == 1 for passes in statistics.batch)
        assert (statistics.layer_losses() > 0).all()
    assert not any(module._forward_pre_hooks for module in embedded.network.modules())


def test_hooks_are_removed_after_an_error(embedded):
    with pytest.raises(ZeroDivisionError), collect_statistics(embedded.network):
        raise ZeroDivisionError
    assert not any(module._forward_pre_hooks for module in embedded.network.modules())


def test_layer_that_runs_twice_counts_twice():
    layer = nn.BatchNorm2d(2).eval()

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(self.layer(x))

    x = noise(4, 2, 3, 3) * 2
    first, second = (torch.cat([v, m]) for v, m in (torch.var_mean(t, dim=(0, 2, 3)) for t in (x, layer(x))))
    target = torch.tensor([1.0, 1.0, 0.0, 0.0])
    expected = sum((part - target)[half].norm() for part in (first, second) for half in (slice(0, 2), slice(2, 4)))
    with collect_statistics(twice := Twice()) as statistics:
        twice(x)
        assert statistics.layer_losses().item() == pytest.approx(expected.item(), rel=1e-4)


def test_network_without_batch_norm_is_refused():
    with pytest.raises(ModelError, match="Linear must have a BatchNorm layer"), collect_statistics(nn.Linear(2, 2)):
        pass


@pytest.mark.parametrize("size", [(6, 7), (1, 2), (1, 1)])
def test_statistics_of_each_image_and_of_the_batch(size):
    x = noise(8, 5, *size) * 3 + 2
    mean, variance = observed_statistics(x, per_image=True)
    expected_variance, expected_mean = torch.var_mean(x, dim=(0, 2, 3))
    assert torch.allclose(mean[0], expected_mean, rtol=1e-5)
    assert torch.allclose(variance[0], expected_variance, rtol=1e-4)
    assert torch.allclose(mean[1:], x.mean(dim=(2, 3)), rtol=1e-5)
    of_images = x.var(dim=(2, 3)) if size != (1, 1) else torch.zeros(8, 5)
    assert torch.allclose(variance[1:], of_images, rtol=1e-4)
