"""Images and their most similar images, as rows of pictures. No streamlit in here."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image

from core.channels import as_rgb
from dashboard.images.contact_sheet import data_uri
from dashboard.text import one_line_text

LARGEST = 112  # pixels of a side on the page: larger images are downscaled before they are sent


def strip(groups: Sequence[np.ndarray], between: int) -> np.ndarray:
    """Groups of images, uint8 `(n, 3, H, W)` each, in one row: uint8 RGBA `(H, width, 4)`.

    Transparent gaps: one pixel between images of a group, `between` pixels between groups.
    """
    height, width = groups[0].shape[2:]
    widths = [len(group) * (width + 1) - 1 for group in groups]
    row = np.zeros((height, sum(widths) + between * (len(groups) - 1), 4), dtype=np.uint8)
    left = 0
    for group in groups:
        for image in group:
            row[:, left : left + width, :3] = image.transpose(1, 2, 0)
            row[:, left : left + width, 3] = 255
            left += width + 1
        left += between - 1
    return row


def row_html(groups: Sequence[np.ndarray], captions: Sequence[str], alt: str) -> str:
    """HTML of one picture as wide as its column: groups of images, uint8 `(n, 1 to 4, H, W)` each, with a caption below each group."""
    groups = [_small(as_rgb(group)) for group in groups]
    between = max(2, groups[0].shape[3] // 6)
    pixels = strip(groups, between)
    widths = [len(group) * (groups[0].shape[3] + 1) - 1 for group in groups]
    gap = f'<div style="flex:{between} 1 0"></div>'
    below = gap.join(
        f'<div title="{escape(one_line_text(caption))}" style="flex:{width} 1 0;min-width:0;overflow:hidden;text-overflow:ellipsis;'
        f'white-space:nowrap;text-align:center">{escape(one_line_text(caption, 60))}</div>'
        for width, caption in zip(widths, captions, strict=True)
    )
    style = f"width:100%;aspect-ratio:{pixels.shape[1]}/{pixels.shape[0]};image-rendering:pixelated;display:block"
    return (
        f'<img alt="{escape(one_line_text(alt))}" src="{data_uri(pixels)}" style="{style}">'
        f'<div style="display:flex;font-size:0.75rem;opacity:0.85;line-height:1.8">{below}</div>'
    )


def _small(images: np.ndarray) -> np.ndarray:
    height, width = images.shape[2:]
    if max(height, width) <= LARGEST:
        return images
    size = (max(1, width * LARGEST // max(height, width)), max(1, height * LARGEST // max(height, width)))
    smaller = [np.asarray(Image.fromarray(image.transpose(1, 2, 0)).resize(size, Image.Resampling.BOX)) for image in images]
    return np.stack(smaller).transpose(0, 3, 1, 2)
