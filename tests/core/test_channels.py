import numpy as np
import pytest
import torch
from PIL import Image

from core.channels import MODES, as_rgb, for_channels, height_and_width, one_or_two


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_as_rgb(kind):
    images = np.arange(2 * 4 * 3 * 5, dtype=np.uint8).reshape(2, 4, 3, 5)
    a, b, c, _ = images.transpose(1, 0, 2, 3)
    for channels, shown in ((1, (a, a, a)), (2, (a, b, b)), (3, (a, b, c)), (4, (a, b, c))):
        assert np.array_equal(np.asarray(as_rgb(kind(images[:, :channels]))), np.stack(shown, axis=1))


def test_modes_have_as_many_channels():
    assert {len(Image.new(mode, (1, 1)).getbands()): mode for mode in MODES.values()} == dict(MODES)


def test_mean_and_std_for_other_channels():
    assert for_channels((0.1, 0.2, 0.6), 3) == (0.1, 0.2, 0.6)
    assert for_channels((0.1, 0.2, 0.61), 1) == (0.3033,)
    assert for_channels((0.5,), 4) == (0.5,) * 4


@pytest.mark.parametrize(
    ("given", "size"),
    [(32, 32), ([32], 32), ((32, 32), 32), ([32, 48], (32, 48)), ([], []), ([1, 2, 3], [1, 2, 3]), (None, None), ("", "")],
)
def test_one_or_two(given, size):
    assert one_or_two(given) == size


def test_height_and_width():
    assert (height_and_width(32), height_and_width((32, 48))) == ((32, 32), (32, 48))
