"""Image tensors to one picture: a contact sheet as a data URI, so that a refresh is one element and nothing can be missing on the server.

(`st.image` serves files that Streamlit drops at the next refresh, and a browser that comes late gets a 404.)
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from core.reporting import Frame
from dashboard.text import one_line_text

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
    height, width, channels = pixels.shape
    rows = np.zeros((height, 1 + width * channels), np.uint8)  # each begins with its filter: none
    rows[:, 1:] = pixels.reshape(height, -1)
    # noise does not compress: trying costs 20 ms a picture and saves nothing, and PIL tries its filters even so, for 6 ms
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, {3: 2, 4: 6}[channels], 0, 0, 0)),
        (b"IDAT", zlib.compress(rows.tobytes(), 0)),
        (b"IEND", b""),
    )
    file = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content)) for kind, content in parts
    )
    return "data:image/png;base64," + base64.b64encode(file).decode()


def sheet_html(images: np.ndarray, labels: np.ndarray, classes: Sequence[str], alt: str, rows: int = 6) -> str:
    """HTML of a contact sheet as wide as its column: one class a column with its name where there are at most ten, else 8 a row."""
    if len(classes) <= 10:
        rows = min(rows, max(1, len(images) // len(classes)))
        pixels = contact_sheet(by_class(images, labels, len(classes), rows), len(classes))
        names = "".join(
            f'<div style="flex:1;min-width:0;text-align:center;overflow:hidden;text-overflow:ellipsis">{escape(one_line_text(name, 60))}</div>'
            for name in classes
        )
        header = f'<div style="display:flex;font-size:0.68rem;opacity:0.75;line-height:1.6">{names}</div>'
    else:
        pixels, header = contact_sheet(images, 8), ""
    height, width = pixels.shape[:2]
    return (
        f'{header}<img alt="{escape(one_line_text(alt))}" src="{data_uri(pixels)}" '
        f'style="width:100%;aspect-ratio:{width}/{height};image-rendering:pixelated;display:block;border-radius:4px">'
    )


@dataclass(frozen=True)
class Sheet:
    """A contact sheet with what belongs to its places, row by row."""

    picture: str  # data URI
    width: int  # of the picture, in pixels
    height: int
    columns: int
    header: list[str]  # names of the columns; empty where they have none
    cells: list[list | None]  # [index of the image, what is known of it, whether the teacher sees another class]; None: no image


def sheet(frame: Frame, classes: Sequence[str]) -> Sheet:
    """All images of a frame: one class a column where there are at most ten, else 8 in a row."""
    count = len(frame.labels)
    if len(classes) <= 10:
        columns, header = len(classes), [one_line_text(name, 60) for name in classes]
        of_class = [np.flatnonzero(frame.labels == label) for label in range(columns)]
        rows = max(map(len, of_class))
        places = [int(own[row]) if row < len(own) else -1 for row in range(rows) for own in of_class]
    else:
        columns, header, places = 8, [], list(range(count))
    pixels = _with_gaps(frame.images, places, columns)
    height, width = pixels.shape[:2]
    cells = [[index, known_of(frame, index, classes), sees_another(frame, index)] if index >= 0 else None for index in places]
    return Sheet(data_uri(pixels), width, height, columns, header, cells)


def _with_gaps(images: np.ndarray, places: Sequence[int], columns: int) -> np.ndarray:
    """`contact_sheet` of the images in their places, transparent where a place is -1."""
    sheet = contact_sheet(images[np.maximum(places, 0)], columns)
    height, width = (side + _GAP for side in images.shape[2:])
    for place, index in enumerate(places):
        if index < 0:
            sheet[place // columns * height : (place // columns + 1) * height, place % columns * width : (place % columns + 1) * width] = 0
    return sheet


def known_of(frame: Frame, index: int, classes: Sequence[str]) -> str:
    """What is known of one image, a line each: its class; what the teacher takes it for, and how confidently."""
    lines = [one_line_text(classes[int(frame.labels[index])], 60)]
    if frame.predicted is not None and frame.confidence is not None:
        lines.append(f"teacher: {one_line_text(classes[int(frame.predicted[index])], 60)}, {100 * float(frame.confidence[index]):.0f} %")
    return "\n".join(lines)


def sees_another(frame: Frame, index: int) -> bool:
    """Whether the teacher takes an image for another class than the one it was given."""
    return frame.predicted is not None and int(frame.predicted[index]) != int(frame.labels[index])


def large_html(frame: Frame, index: int, alt: str) -> str:
    """One image as large as its place."""
    return (
        f'<img alt="{escape(one_line_text(alt))}" src="{data_uri(frame.images[index].transpose(1, 2, 0))}" '
        'style="width:100%;max-width:256px;aspect-ratio:1;image-rendering:pixelated;display:block;border-radius:4px">'
    )


def alone(frame: Frame, index: int) -> Frame:
    """The frame with only one of its images."""
    own = slice(index, index + 1)
    return Frame(
        frame.step,
        frame.images[own].copy(),
        frame.labels[own],
        None if frame.predicted is None else frame.predicted[own],
        None if frame.confidence is None else frame.confidence[own],
    )


def strip_html(frames: Sequence[Frame], titles: Sequence[str], classes: Sequence[str], shown_step: int) -> str:
    """The first image of each frame, as a button that leads there (see player.js), with its title and the teacher's confidence."""
    cells = [_strip_cell(frame, title, classes, frame.step == shown_step) for frame, title in zip(frames, titles)]
    return f'<div style="display:flex;flex-wrap:wrap;gap:6px">{"".join(cells)}</div>'


def _strip_cell(frame: Frame, title: str, classes: Sequence[str], is_shown: bool) -> str:
    confidence = f"{100 * float(frame.confidence[0]):.0f} %" if frame.confidence is not None else ""
    other = " ◥" if sees_another(frame, 0) else ""
    border = "currentColor" if is_shown else "transparent"
    known = known_of(frame, 0, classes)
    return (
        f'<button type="button" data-moment="{frame.step}" title="{escape(known)}" '
        'style="all:unset;cursor:pointer;width:68px;text-align:center;font-size:0.75rem;line-height:1.4;font-variant-numeric:tabular-nums" '
        f'aria-label="{escape(one_line_text(f"show iteration {title}: {known}"))}">'
        f'<img alt="" src="{data_uri(frame.images[0].transpose(1, 2, 0))}" style="width:64px;height:64px;image-rendering:pixelated;'
        f'display:block;margin:auto;border:2px solid {border};border-radius:4px">'
        f'<b style="font-weight:600">{escape(title)}</b><br>{confidence}{other}</button>'
    )
