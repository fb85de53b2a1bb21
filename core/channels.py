"""Images of one to four channels: grey, two channels, RGB, four channels. Imports no torch."""

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
