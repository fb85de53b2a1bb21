"""Image tensors to one picture: a contact sheet as a data URI, so that a refresh is one element and nothing can be missing on the server.

(`st.image` serves files that Streamlit drops at the next refresh, and a browser that comes late gets a 404.)
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image

from dashboard.text import shown

_GAP = 1  # pixels between images


def contact_sheet(images: np.ndarray, columns: int) -> np.ndarray:
    """uint8 `(N, 3, H, W)` -> uint8 `(rows H + gaps, columns W + gaps, 4)`, gaps and missing images transparent."""
    count, _, height, width = images.shape
    rows = -(-count // columns)
    sheet = np.zeros((rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 4), dtype=np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * (height + _GAP), index % columns * (width + _GAP)
        sheet[top : top + height, left : left + width, :3] = image.transpose(1, 2, 0)
        sheet[top : top + height, left : left + width, 3] = 255
    return sheet


def by_class(images: np.ndarray, labels: np.ndarray, classes: int, rows: int) -> np.ndarray:
    """The first `rows` images of each class, one class a column: `(rows * classes, 3, H, W)`; black where a class has fewer."""
    result = np.zeros((rows * classes, *images.shape[1:]), dtype=np.uint8)
    for label in range(classes):
        for row, image in enumerate(images[labels == label][:rows]):
            result[row * classes + label] = image
    return result


def data_uri(pixels: np.ndarray) -> str:
    """uint8 `(H, W, 3 or 4)` as a PNG in a data URI."""
    buffer = io.BytesIO()
    # noise does not compress: trying costs 20 ms a picture and saves nothing
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=0)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def sheet_html(images: np.ndarray, labels: np.ndarray, classes: Sequence[str], alt: str, rows: int = 6) -> str:
    """HTML of a contact sheet as wide as its column: one class a column with its name where there are at most ten, else 8 a row."""
    if len(classes) <= 10:
        rows = min(rows, max(1, len(images) // len(classes)))
        pixels = contact_sheet(by_class(images, labels, len(classes), rows), len(classes))
        names = "".join(
            f'<div style="flex:1;min-width:0;text-align:center;overflow:hidden;text-overflow:ellipsis">{escape(shown(name, 60))}</div>'
            for name in classes
        )
        header = f'<div style="display:flex;font-size:0.68rem;opacity:0.75;line-height:1.6">{names}</div>'
    else:
        pixels, header = contact_sheet(images, 8), ""
    height, width = pixels.shape[:2]
    return (
        f'{header}<img alt="{escape(shown(alt))}" src="{data_uri(pixels)}" '
        f'style="width:100%;aspect-ratio:{width}/{height};image-rendering:pixelated;display:block;border-radius:4px">'
    )
