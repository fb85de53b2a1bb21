"""The low-pass filter on waves, whose amplitude after it is known."""

import math

import pytest
import torch

from core.data.low_pass import low_pass


@pytest.mark.parametrize(("height", "width"), [(16, 16), (12, 9)])
def test_waves_fade_by_their_frequency(height, width):
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    for down, across in ((0, 0), (1, 0), (2, 3), (4, 4)):
        wave = torch.cos(2 * math.pi * (down * rows / height + across * columns / width) + 0.3).expand(2, 3, height, width)
        gain = math.exp(-(down**2 + across**2) / (2 * 2.5**2))
        assert torch.allclose(low_pass(wave, 2.5), gain * wave, atol=1e-5)


def test_a_cutoff_of_80_hardly_changes_images_of_32_pixels():
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert (low_pass(images, 80.0) - images).abs().max() < 0.2
    assert low_pass(images, 80.0 / 7).var() < 0.7 * images.var()
