"""Pixel methods: update rules, live knobs, and the noise that batches start from."""

import pytest
import torch

from core.config import GenerationConfig, MachineConfig
from core.errors import UnknownNameError
from core.generation.methods import METHODS, in_order, load_source, method_order
from core.generation.noise import starting_noise
from core.generation.optimizers import MIFGSM
from core.generation.sources.pixels import AdamImages, SignedMomentumImages

CONFIG = GenerationConfig(images=8, iterations=4, batch_size=4, snapshots=1, epsilon=0.3, mu=0.7, lr=0.2)


def test_methods_and_their_sources():
    assert load_source("mi-fgsm") is SignedMomentumImages
    assert load_source("adam") is AdamImages
    with pytest.raises(UnknownNameError, match="unknown method 'given': must be one of mi-fgsm, adam"):
        load_source("given")
    assert [method_order(name) for name in METHODS] == list(range(len(METHODS)))
    assert in_order(["given", "adam", "mi-fgsm"]) == ["mi-fgsm", "adam", "given"]


def test_update_rules_use_live_knobs_and_the_schedule(small):
    signed, adam = (source(small, CONFIG, MachineConfig()) for source in (SignedMomentumImages, AdamImages))
    assert isinstance(signed.optimizer, MIFGSM)
    assert isinstance(adam.optimizer, torch.optim.Adam)
    signed.set_knobs({"epsilon": 0.5, "mu": 0.1}, 0.5)
    adam.set_knobs({"lr": 0.4}, 0.25)
    assert [(group["lr"], group["mu"]) for group in signed.optimizer.param_groups] == [(0.25, 0.1)]
    assert [group["lr"] for group in adam.optimizer.param_groups] == [0.1]


def test_every_pixel_moves_by_epsilon_against_the_gradient(small):
    source = SignedMomentumImages(small, CONFIG, MachineConfig())
    before = source.pixels.detach().clone()
    source.pixels.grad = torch.ones_like(source.pixels)
    source.advance(0, {"epsilon": 0.01, "mu": 0.0}, 1.0)
    moved = before - source.current()
    inside = before - 0.01 > small.pixel_range()[0]
    assert torch.allclose(moved[inside], torch.full_like(moved[inside], 0.01), atol=1e-6)


def test_batches_start_from_the_same_noise_in_every_method(small):
    sources = [source(small, CONFIG, MachineConfig(seed=3)) for source in (SignedMomentumImages, AdamImages)]
    for source in sources:
        source.start_batch(1)
    noise, _ = starting_noise(small, CONFIG, 1, seed=3)
    for source in sources:
        assert torch.equal(source.current(), noise)
        assert source.labels.tolist() == [(4 + index) % len(small.spec.classes) for index in range(4)]


def test_resuming_gives_the_same_bits(small):
    first = AdamImages(small, CONFIG, MachineConfig())
    gradients = [torch.randn(first.pixels.shape, generator=torch.Generator().manual_seed(step)) for step in range(4)]

    def step(source, number):
        images = source.images(number)
        source.pixels.grad = gradients[number].contiguous(memory_format=torch.channels_last)
        source.advance(number, {"lr": 0.1}, 1.0)
        return images.detach()

    for number in range(2):
        step(first, number)
    state = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in first.state().items()}
    state["optimizer"] = torch.utils._pytree.tree_map(lambda v: v.clone() if isinstance(v, torch.Tensor) else v, state["optimizer"])
    second = AdamImages(small, CONFIG, MachineConfig())
    second.load_state(state)
    for number in (2, 3):
        assert torch.equal(step(first, number), step(second, number))
    assert torch.equal(first.current(), second.current())
