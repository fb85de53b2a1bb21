"""ZeroQ: its loss by hand and by the reimplementation of the authors' loop, its start, and what its images have."""

import pytest
import torch
from torch import nn

from benchmarks.peers import zeroq as peer
from core.config import PRESETS, GenerationConfig
from core.generation.bn_statistics import collect_statistics
from core.generation.loop import GenerationLoop
from core.generation.losses import ForwardOutputs
from core.generation.noise import initial_noise
from core.generation.sources.zeroq import image_loss

CONFIG = GenerationConfig(images=8, iterations=60, batch_size=8, snapshots=1)


def outputs(network, images, labels=None):
    with collect_statistics(network, per_image=True) as statistics:
        logits = network(images)
    return ForwardOutputs(images, labels, logits, statistics.layer_losses(), statistics=statistics)


def test_loss_by_hand():
    """Two images of one channel and two pixels, through a BatchNorm layer with mean 1 and variance 4."""
    network = nn.Sequential(nn.BatchNorm2d(1)).eval()
    network[0].running_mean.fill_(1.0)
    network[0].running_var.fill_(4.0)
    images = torch.tensor([[[[0.0, 2.0]]], [[[3.0, 5.0]]]])
    # each image has the standard deviation sqrt(2); means 1 and 4
    of_layer = (1 - 1) ** 2 + (1 - 4) ** 2 + 2 * (2 - 2**0.5) ** 2
    of_images = 1**2 + 4**2 + 2 * (1 - 2**0.5) ** 2
    assert image_loss(outputs(network, images)).item() == pytest.approx((of_layer + of_images) / 2, rel=1e-5)


def test_loss_and_gradient_are_those_of_the_authors_loop(embedded):
    start = initial_noise("pink", 4, (3, 32, 32), torch.Generator().manual_seed(0))
    theirs = peer.ZeroQ(embedded, torch.zeros(4, dtype=torch.long), start)
    theirs.step()
    theirs.close()
    images = start.clone().requires_grad_(True)
    loss = image_loss(outputs(embedded.network, images))
    assert loss.item() == pytest.approx(theirs.loss, rel=1e-4)
    (gradient,) = torch.autograd.grad(loss, images)
    # the first step of Adam: each pixel moves by its step size against the sign of the gradient
    clear = gradient.abs() > 1e-4
    assert torch.allclose((start - theirs.images)[clear], 0.5 * gradient[clear].sign(), atol=1e-2)


def test_start_of_the_authors():
    noise = initial_noise("gray", 4, (3, 8, 8), torch.Generator().manual_seed(1))
    assert torch.equal(noise, peer.initial_images(4, 8, torch.Generator().manual_seed(1)))
    assert PRESETS["zeroq"].generation.noise == "gray"


def test_each_image_matches_the_running_statistics(small):
    """Of every image by itself, unlike images of methods that match the statistics of the batch."""
    distances = {}
    for method in ("mi-fgsm", "zeroq"):
        loop = GenerationLoop(small, CONFIG, method)
        start = image_loss(outputs(small.network, loop.source.current())).item()
        while not loop.finished:
            loop.step()
        distances[method] = image_loss(outputs(small.network, loop.source.current())).item()
    assert distances["zeroq"] < 0.25 * start
    assert distances["zeroq"] < 0.7 * distances["mi-fgsm"]


def test_plateau_of_the_authors():
    generation = PRESETS["zeroq"].generation
    assert (generation.batch_size, generation.iterations, generation.zeroq_lr) == (64, 500, 0.5)
    assert (generation.schedule, generation.patience) == ("plateau", 100)
