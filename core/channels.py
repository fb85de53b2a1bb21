"""Shapes of images: one to four channels (grey, two channels, RGB, four channels), height and width. Imports no torch."""

from collections.abc import Sequence
from statistics import fmean
from types import MappingProxyType
from typing import Any

# number of channels -> Pillow's mode for such an image; a picture file holds a second or fourth channel as its alpha channel
MODES = MappingProxyType({1: "L", 2: "LA", 3: "RGB", 4: "RGBA"})
_SHOWN = {1: [0, 0, 0], 2: [0, 1, 1], 3: [0, 1, 2], 4: [0, 1, 2]}


def as_rgb(images: Any) -> Any:
    """Images `(N, 1 to 4, H, W)` as `(N, 3, H, W)`, to be looked at: an array of NumPy or torch.

    One channel is grey; of two, the first is red and the second green and blue; of four, the first three are red, green and blue.
    """
    channels = images.shape[1]
    return images if channels == 3 else images[:, _SHOWN[channels]]


def channels_title(channels: int) -> str:
    """What such an image is called: "grey", "2 channels", "RGB", "4 channels"."""
    return {1: "grey", 3: "RGB"}.get(channels, f"{channels} channels")


def for_channels(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Mean or standard deviation of each channel, of images whose `values` are of other channels: their average, to four digits."""
    return tuple(values) if channels == len(values) else (round(fmean(values), 4),) * channels


def one_or_two(size: Any) -> Any:
    """An image size as specs and configs have it: one number for square images, otherwise the pair; any other value unchanged."""
    if isinstance(size, (list, tuple)) and len(size) in (1, 2):
        return size[0] if size[0] == size[-1] else tuple(size)
    return size


def height_and_width(size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width of an image size in the form of `one_or_two`."""
    return size if isinstance(size, tuple) else (size, size)
