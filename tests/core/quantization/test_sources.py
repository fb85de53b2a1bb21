"""Batches that a training draws from a finished set."""

from dataclasses import replace

import pytest
import torch

from core.config import TrainingConfig
from core.quantization.sources import ImageSetSource

CONFIG = TrainingConfig(weight_bits=4, activation_bits=4, steps=8, training_batch_size=16, crop_padding=0, training_flip=False)


def batches(model, images, steps=8, **knobs):
    source = ImageSetSource(images, model, replace(CONFIG, **knobs), seed=3)
    return [source.batch(step, model.network, model.network) for step in range(steps)]


@pytest.mark.parametrize(("share", "protocol", "most"), [(0.0, "shared", 0), (1.0, "authors", 0), (0.5, "shared", 7), (1.0, "shared", 8)])
def test_share_of_batches_with_cutmix(small, small_images, share, protocol, most):
    drawn = batches(small, small_images, cutmix=share, protocol=protocol)
    mixed = [labels.ndim == 2 for _, labels in drawn]
    assert sum(mixed) == most if share in (0.0, 1.0) else 0 < sum(mixed) <= most
    known = {image.numpy().tobytes() for image in small.normalize(small_images.images)}
    for (images, labels), is_mixed in zip(drawn, mixed):
        assert all(image.contiguous().numpy().tobytes() in known for image in images) != is_mixed
        if is_mixed:
            torch.testing.assert_close(labels.sum(dim=1), torch.ones(len(labels)))


def test_training_on_mixed_batches_resumes_to_the_same_bits(small, small_images):
    config = replace(CONFIG, cutmix=0.5)
    one, other = (ImageSetSource(small_images, small, config, seed) for seed in (1, 2))
    for step in range(3):
        one.batch(step, small.network, small.network)
    other.load_state(one.state())
    for step in range(3, 8):
        for value, same in zip(one.batch(step, small.network, small.network), other.batch(step, small.network, small.network)):
            assert torch.equal(value, same)
