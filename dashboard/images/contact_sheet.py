"""Image arrays to one picture: a contact sheet as a data URI, so that a refresh replaces one element and needs no other request.

(`st.image` serves files that Streamlit deletes at the next refresh, so that a slow browser gets a 404.)
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from core.channels import as_rgb
from core.export.contact_sheet import EMPTY, class_columns, contact_sheet
from core.reporting import Frame
from dashboard.text import one_line_text

MOST_COLUMNS_OF_CLASSES = 10  # with more classes, images are in the order of the set
COLUMNS = 8  # of such a sheet


def data_uri(pixels: np.ndarray) -> str:
    """uint8 `(H, W, 3 or 4)` as a PNG in a data URI."""
    height, width, channels = pixels.shape
    rows = np.zeros((height, 1 + width * channels), np.uint8)  # the first byte of each is its filter: none
    rows[:, 1:] = pixels.reshape(height, -1)
    # noise does not compress: trying takes 20 ms per picture and saves nothing, and PIL tries filters even without compression, for 6 ms
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, {3: 2, 4: 6}[channels], 0, 0, 0)),
        (b"IDAT", zlib.compress(rows.tobytes(), 0)),
        (b"IEND", b""),
    )
    file = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content)) for kind, content in parts
    )
    return "data:image/png;base64," + base64.b64encode(file).decode()


def _uri_of(image: np.ndarray) -> str:
    """An image uint8 `(C, H, W)` as a PNG in a data URI."""
    return data_uri(as_rgb(image[None])[0].transpose(1, 2, 0))


def sheet_html(images: np.ndarray, labels: np.ndarray, classes: Sequence[str], alt: str, rows: int = 6) -> str:
    """HTML of a contact sheet as wide as its column: one named column per class if there are at most ten, else 8 images per row."""
    if len(classes) <= MOST_COLUMNS_OF_CLASSES:
        rows = min(rows, max(1, len(images) // len(classes)))
        pixels = contact_sheet(images, len(classes), class_columns(labels, range(len(classes)), rows))
        style = "flex:1;min-width:0;text-align:center;overflow:hidden;text-overflow:ellipsis"
        names = "".join(f'<div style="{style}">{escape(one_line_text(name, 60))}</div>' for name in classes)
        header = f'<div style="display:flex;font-size:0.68rem;opacity:0.75;line-height:1.6">{names}</div>'
    else:
        pixels, header = contact_sheet(images, COLUMNS), ""
    height, width = pixels.shape[:2]
    return (
        f'{header}<img alt="{escape(one_line_text(alt))}" src="{data_uri(pixels)}" '
        f'style="width:100%;aspect-ratio:{width}/{height};'
        'image-rendering:pixelated;display:block;border-radius:4px">'
    )


@dataclass(frozen=True)
class Sheet:
    """A contact sheet and the contents of its cells, row by row."""

    picture: str  # data URI
    width: int  # of the picture, in pixels
    height: int
    columns: int
    header: list[str]  # names of the columns; empty if they have none
    cells: list[list | None]  # [index of the image, its description, whether the teacher predicts another class]; None: no image
    step: int  # of the images


def sheet(frame: Frame, classes: Sequence[str]) -> Sheet:
    """All images of a frame: one class per column if there are at most ten, else 8 images per row. As many images per row as classes,
    sorted by class, where a column would be more than 1.5 times as high as with equally many images of each class: generators that choose
    the classes make almost all images of one.
    """
    count = len(frame.labels)
    if len(classes) <= MOST_COLUMNS_OF_CLASSES:
        columns, header = len(classes), [one_line_text(name, 60) for name in classes]
        cells = class_columns(frame.labels, range(columns))
        if len(cells) > 1.5 * columns * -(-count // columns):
            header, cells = [], np.argsort(frame.labels, kind="stable").tolist()
    else:
        columns, header, cells = COLUMNS, [], list(range(count))
    pixels = contact_sheet(frame.images, columns, cells)
    height, width = pixels.shape[:2]
    contents = [
        None if index == EMPTY else [index, describe_image(frame, index, classes), is_predicted_otherwise(frame, index)] for index in cells
    ]
    return Sheet(data_uri(pixels), width, height, columns, header, contents, frame.step)


def describe_image(frame: Frame, index: int, classes: Sequence[str]) -> str:
    """Two lines about one image: its class, and the teacher's prediction with its confidence if the frame has it."""
    lines = [one_line_text(classes[int(frame.labels[index])], 60)]
    if frame.predicted is not None and frame.confidence is not None:
        lines.append(f"teacher: {one_line_text(classes[int(frame.predicted[index])], 60)}, {100 * float(frame.confidence[index]):.0f} %")
    return "\n".join(lines)


def is_predicted_otherwise(frame: Frame, index: int) -> bool:
    """Whether the teacher predicts another class than the image's label."""
    return frame.predicted is not None and int(frame.predicted[index]) != int(frame.labels[index])


def large_html(frame: Frame, index: int, alt: str) -> str:
    """One image at the width of its column, at most 256 pixels wide and high."""
    height, width = frame.images.shape[2:]
    return (
        f'<img alt="{escape(one_line_text(alt))}" src="{_uri_of(frame.images[index])}" '
        f'style="width:100%;max-width:{256 * width / max(height, width):g}px;aspect-ratio:{width}/{height};'
        'image-rendering:pixelated;display:block;border-radius:4px">'
    )


def single_image(frame: Frame, index: int) -> Frame:
    """The frame reduced to one of its images."""
    own = slice(index, index + 1)
    return Frame(
        frame.step,
        frame.images[own].copy(),
        frame.labels[own],
        None if frame.predicted is None else frame.predicted[own],
        None if frame.confidence is None else frame.confidence[own],
    )


def strip_html(frames: Sequence[Frame], titles: Sequence[str], classes: Sequence[str], shown_step: int) -> str:
    """The first image of each frame, as a button that shows its iteration (see player.js), with its title and the teacher's confidence."""
    cells = [_strip_cell(frame, title, classes, frame.step == shown_step) for frame, title in zip(frames, titles)]
    return f'<div style="display:flex;flex-wrap:wrap;gap:6px">{"".join(cells)}</div>'


def _strip_cell(frame: Frame, title: str, classes: Sequence[str], is_shown: bool) -> str:
    confidence = f"{100 * float(frame.confidence[0]):.0f} %" if frame.confidence is not None else ""
    other = " ◥" if is_predicted_otherwise(frame, 0) else ""
    border = "currentColor" if is_shown else "transparent"
    known = describe_image(frame, 0, classes)
    return (
        f'<button type="button" data-step="{frame.step}" title="{escape(known)}" '
        'style="all:unset;cursor:pointer;width:68px;text-align:center;font-size:0.75rem;line-height:1.4;font-variant-numeric:tabular-nums" '
        f'aria-label="{escape(one_line_text(f"show iteration {title}: {known}"))}">'
        f'<img alt="" src="{_uri_of(frame.images[0])}" style="width:64px;height:64px;object-fit:contain;image-rendering:pixelated;'
        f'display:block;margin:auto;border:2px solid {border};border-radius:4px">'
        f'<b style="font-weight:600">{escape(title)}</b><br>{confidence}{other}</button>'
    )


def row_html(frame: Frame, classes: Sequence[str]) -> str:
    """All images of a frame side by side, each with its class and, on hover, the teacher's prediction."""
    cells = []
    for index in range(len(frame.labels)):
        known = describe_image(frame, index, classes)
        other = " ◥" if is_predicted_otherwise(frame, index) else ""
        cells.append(
            f'<div title="{escape(known)}" style="width:68px;text-align:center;font-size:0.75rem;line-height:1.4">'
            f'<img alt="{escape(one_line_text(known))}" src="{_uri_of(frame.images[index])}" style="width:64px;height:64px;'
            f'object-fit:contain;image-rendering:pixelated;display:block;margin:auto;border-radius:4px">'
            f"{escape(one_line_text(classes[int(frame.labels[index])], 60))}{other}</div>"
        )
    return f'<div style="display:flex;flex-wrap:wrap;gap:6px">{"".join(cells)}</div>'
