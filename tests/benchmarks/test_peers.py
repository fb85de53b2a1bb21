"""The reimplemented loops of the peers: losses against sums written out by hand, falling losses, removed hooks."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.peers.deepinversion import DeepInversion
from benchmarks.peers.intraq import IntraQ
from benchmarks.peers.zeroq import ZeroQ, initial_images

PEERS = (DeepInversion, IntraQ, ZeroQ)
LABELS = torch.arange(12) % 4


@pytest.fixture
def noise():
    return torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def observed(network, images):
    """Logits of the small network, and input, running mean and running variance of each BatchNorm layer, computed by hand."""
    with torch.no_grad():
        first = network.conv1(images)
        hidden = network.relu(network.bn1(first))
        second = network.conv2(hidden)
        logits = network.output(network.relu(network.bn2(second) + hidden).mean(dim=(2, 3)))
    return logits, [(x, bn.running_mean, bn.running_var) for x, bn in ((first, network.bn1), (second, network.bn2))]


def hooks_of(network):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules())


def test_deepinversion_loss(small, noise, monkeypatch):
    monkeypatch.setattr(DeepInversion, "max_shift", 0)
    peer = DeepInversion(small, LABELS, noise)
    peer.step()
    logits, layers = observed(small.network, noise)
    distances = sum(
        (x.mean(dim=(0, 2, 3)) - mean).square().sum().sqrt()
        + (x.transpose(0, 1).flatten(1).var(dim=1, correction=0) - var).square().sum().sqrt()
        for x, mean, var in layers
    )
    height = width = range(8)
    variation = 0.0
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        pairs = [(i, j) for i in height for j in width if i + down in height and j + right in width]
        variation += math.sqrt(sum(float((noise[..., i, j] - noise[..., i + down, j + right]).square().sum()) for i, j in pairs))
    expected = F.cross_entropy(logits, LABELS) + 100 * distances + 2.5e-5 * variation
    assert peer.loss == pytest.approx(float(expected), rel=1e-4)


def test_deepinversion_shifts_images_and_keeps_the_last_as_the_best(small, noise):
    peer = DeepInversion(small, LABELS, noise)
    shifts = set()
    network, forward = peer.network, peer.network.forward
    network.forward = lambda x: shifts.add(tuple(x[0, 0, :, 0].tolist())) or forward(x)
    for _ in range(6):
        peer.step()
    assert len(shifts) > 1
    assert torch.equal(peer.best_images, peer.images)


def test_zeroq_loss(small, noise):
    peer = ZeroQ(small, LABELS, noise)
    peer.step()
    _, layers = observed(small.network, noise)
    expected = 0.0
    for x, mean, var in [*layers, (noise, torch.zeros(3), torch.ones(3))]:
        root = var.sqrt() if x is noise else (var + 1e-6).sqrt()
        for image in x:
            rows = image.flatten(1)
            deviations = (rows.square().mean(dim=1) - rows.mean(dim=1).square()) * 64 / 63
            expected += float((rows.mean(dim=1) - mean).square().sum() + ((deviations + 1e-6).sqrt() - root).square().sum()) / len(x)
    assert peer.loss == pytest.approx(expected, rel=1e-4)


def test_zeroq_hooks_the_input_of_each_batch_norm_layer(embedded):
    peer = ZeroQ(embedded, LABELS[:2], torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)), freeze=True)
    entered = []
    for module in peer.network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(lambda _module, inputs: entered.append(inputs[0]))
    peer.network(peer.images)
    assert len(entered) == 21
    assert all(any(hook.output is x for hook in peer._hooks) for x in entered)
    for hook, (mean, _) in zip(peer._hooks, peer._running):
        assert hook.output.shape[1] == len(mean)


def test_zeroq_lowers_its_step_size_on_a_plateau(small, noise, monkeypatch):
    monkeypatch.setattr(ZeroQ, "patience", 1)
    monkeypatch.setattr(ZeroQ, "learning_rate", 0.0002)
    peer = ZeroQ(small, LABELS, noise)
    for _ in range(4):
        peer._scheduler.step(1.0)
    assert peer._optimizer.param_groups[0]["lr"] == 1e-4


def test_zeroq_initial_images():
    images = initial_images(64, 8, torch.Generator().manual_seed(0))
    assert float(images.std()) == pytest.approx(0.0136, abs=2e-4)
    assert float(images.min()) == pytest.approx(-127.5 / 5418.75)
    assert float(images.max()) == pytest.approx(126.5 / 5418.75)


def test_intraq_loss(small, noise, monkeypatch):
    monkeypatch.setattr(IntraQ, "augmented", 0.0)
    peer = IntraQ(small, LABELS, noise)
    targets = peer._targets.sum(dim=1)
    assert 0.95 <= float(targets.min()) < 1.0
    assert float(targets.max()) == 1.0
    assert torch.equal(peer._targets.argmax(dim=1), LABELS)
    peer.step()
    logits, layers = observed(small.network, noise)
    mean = sum(((x.mean(dim=(0, 2, 3)) - mean) ** 2).mean() for x, mean, _ in layers) / len(layers)
    var = sum(((x.transpose(0, 1).flatten(1).var(dim=1, correction=0) - var) ** 2).mean() for x, _, var in layers) / len(layers)
    target = ((logits.softmax(dim=1)[torch.arange(12), LABELS] - targets) ** 2).mean()
    wanted = {"mean": mean, "variance": var, "target": target, "near": 0.0, "far": 0.0}
    assert peer.parts == pytest.approx({name: float(value) for name, value in wanted.items()}, rel=1e-4)
    assert peer.loss == pytest.approx(float(mean + var + target), rel=1e-4)


def test_intraq_averages_over_images_of_seen_classes(small, noise):
    peer = IntraQ(small, LABELS, noise)
    peer._earlier_mask[:3] = 1.0
    excess = torch.tensor([0.5, -1.0, 0.1, 9.0, *[0.0] * 8])
    assert float(peer._mean_of_seen(excess)) == pytest.approx(0.2, rel=1e-5)


def test_intraq_crops_each_image_separately(small, noise, monkeypatch):
    monkeypatch.setattr(IntraQ, "augmented", 1.0)
    peer = IntraQ(small, LABELS, noise[:1].expand(12, 3, 8, 8))
    seen = []
    network, forward = peer.network, peer.network.forward
    network.forward = lambda x: seen.append(x.detach()) or forward(x)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        peer.step()
    assert seen[0].shape == noise.shape
    assert len({tuple(image.flatten().tolist()) for image in seen[0]}) > 6


@pytest.mark.parametrize("peer_class", PEERS)
def test_steps_change_the_images_and_lower_the_loss(small, noise, peer_class):
    before = noise.clone()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        peer = peer_class(small, LABELS, noise)
        losses = []
        for _ in range(40):
            peer.step()
            losses.append(peer.loss)
    assert torch.equal(noise, before)
    assert not torch.equal(peer.images, before)
    assert peer.images.shape == before.shape
    assert not peer.images.requires_grad
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


@pytest.mark.parametrize("peer_class", PEERS)
def test_close_removes_the_hooks(small, noise, peer_class):
    peer = peer_class(small, LABELS, noise)
    assert hooks_of(peer.network) >= 2
    peer.step()
    peer.close()
    assert hooks_of(peer.network) == 0
    assert hooks_of(small.network) == 0


@pytest.mark.parametrize("peer_class", PEERS)
def test_weights_have_gradients_unless_frozen(small, noise, peer_class):
    small.network.to(memory_format=torch.channels_last)
    for freeze in (False, True):
        peer = peer_class(small, LABELS, noise.contiguous(memory_format=torch.channels_last), freeze=freeze)
        peer.step()
        assert (peer.network.conv1.weight.grad is None) == freeze
        assert peer.network.conv2.weight.is_contiguous()
        assert peer.images.is_contiguous()
    assert not any(parameter.requires_grad for parameter in small.network.parameters())


def test_zeroq_needs_a_convolution_for_each_batch_norm_layer(small, noise):
    small.network.bn3 = nn.BatchNorm2d(8)
    with pytest.raises(ValueError, match="at least 3, one for each BatchNorm layer, got 2"):
        ZeroQ(small, LABELS, noise)
