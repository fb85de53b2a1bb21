"""IntraQ: its terms by hand and by the reimplementation of the authors' loop, its settings, and that the network recognizes its images."""

import pytest
import torch
from torch import nn

from benchmarks.peers import intraq as peer
from core.config import PRESETS, GenerationConfig, MachineConfig
from core.generation.bn_statistics import collect_statistics
from core.generation.features import classified_features
from core.generation.loop import GenerationLoop, synthesize
from core.generation.losses import ForwardOutputs
from core.generation.method_terms import statistics_loss
from core.generation.sources.intraq import IntraQImages, margin_loss, soft_inception

CONFIG = GenerationConfig(images=24, iterations=3, batch_size=12, snapshots=1)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_soft_inception_by_hand():
    logits = torch.tensor([[0.0, 0.0], [0.0, 3.0]])
    second = torch.tensor(3.0).sigmoid().item()
    loss = soft_inception(logits, torch.tensor([0, 1]), torch.tensor([1.0, 0.96]))
    assert loss.item() == pytest.approx(((0.5 - 1) ** 2 + (second - 0.96) ** 2) / 2)


def test_margins_by_hand():
    """Class 0 has the center (1, 0), class 1 the center (0, 2); class 2 has no earlier images."""
    sums, counts = torch.tensor([[3.0, 0.0], [0.0, 4.0], [0.0, 0.0]]), torch.tensor([3.0, 2.0, 0.0])
    features = torch.tensor([[2.0, 0.0], [3.0, 4.0], [1.0, 1.0]])
    labels = torch.tensor([0, 1, 2])
    # distances 0 and 1 - 4/5
    assert margin_loss(features, labels, sums, counts, 0.05, -1).item() == pytest.approx(0.05 / 2)
    assert margin_loss(features, labels, sums, counts, 0.15, 1).item() == pytest.approx(0.05 / 2, rel=1e-4)
    assert margin_loss(features, labels, sums, torch.zeros(3), 0.15, 1).item() == 0


def test_statistics_loss_is_that_of_the_authors_loop(embedded):
    images, labels = noise(4, 3, 32, 32), torch.arange(4)
    theirs = peer.IntraQ(embedded, labels, images)
    theirs.augmented = 0.0
    theirs.step()
    theirs.close()
    with collect_statistics(embedded.network) as statistics:
        logits = embedded.network(images)
    loss = statistics_loss(ForwardOutputs(images, labels, logits, statistics.layer_losses(), statistics=statistics))
    # they take the biased variance: the last layers have 4 x 64 values
    assert loss.item() == pytest.approx(theirs.parts["mean"] + theirs.parts["variance"], rel=0.01)


def test_features_are_the_input_of_the_last_layer(small):
    with classified_features(small.network) as found:
        logits = small.network(noise(2, 3, 8, 8))
    last = [layer for layer in small.network.modules() if isinstance(layer, nn.Linear)][-1]
    assert torch.allclose(last(found[0]), logits, atol=1e-6)
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = noise(2, 3, 8, 8)
    with classified_features(network) as found:
        logits = network(images)
    assert torch.allclose(found[0] @ network[2].weight[:, :, 0, 0].T + network[2].bias, logits, atol=1e-5)


def test_centers_are_means_of_the_features_of_earlier_batches(small):
    loop = GenerationLoop(small, CONFIG, "intraq")
    seen = []
    while not loop.finished:
        last = (loop.step_count + 1) % CONFIG.iterations == 0
        labels = loop.source.labels
        loop.step()
        if last and not loop.finished:
            assert loop.source._counts.sum() == 12
        if last:
            seen.append((loop.image_set().images[-12:], labels))
    network, sums = small.network, torch.zeros(4, loop.source._sums.shape[1])
    for pixels, labels in seen:
        with classified_features(network) as found:
            network(small.normalize(pixels))
        sums.index_add_(0, labels, found[0])
    assert loop.source._counts.tolist() == [6, 6, 6, 6]
    # the saved images have 256 levels
    assert torch.allclose(loop.source._sums, sums, atol=0.05 * sums.abs().max().item())


def test_targets_are_soft_for_half_of_the_images(small):
    source = IntraQImages(small, GenerationConfig(images=400, batch_size=400, snapshots=1, intraq_target=0.6), MachineConfig())
    soft = source._targets[source._targets < 1]
    assert 150 < len(soft) < 250
    assert 0.6 <= soft.min() < 0.65
    assert 0.75 < soft.mean() < 0.85


@pytest.mark.parametrize("crop", [0.0, 0.5, 1.0])
def test_crops_come_in_their_share_of_the_iterations(small, crop):
    source = IntraQImages(small, GenerationConfig(images=4, batch_size=4, snapshots=1, intraq_crop=crop), MachineConfig())
    cropped = sum(not torch.equal(source.images(iteration), source.current()) for iteration in range(40))
    assert {0.0: cropped == 0, 0.5: 10 < cropped < 30, 1.0: cropped == 40}[crop]


def test_settings_of_the_authors():
    generation = PRESETS["intraq"].generation
    assert (generation.images, generation.batch_size, generation.iterations, generation.noise) == (5120, 256, 1000, "white")
    assert (generation.intraq_lr, generation.schedule, generation.patience) == (0.5, "plateau", 50)
    peers = (peer.IntraQ.lowest_target, peer.IntraQ.nearest, peer.IntraQ.farthest, peer.IntraQ.crop_area)
    assert (generation.intraq_target, generation.intraq_near, generation.intraq_far, generation.intraq_area) == peers


def test_network_recognizes_the_images(embedded):
    config = GenerationConfig(images=8, iterations=40, batch_size=8, snapshots=1)
    assert synthesize(embedded, config, "intraq")[1]["teacher_agreement"] >= 50
