"""Images on which two networks disagree, with both answers, as HTML. Pure: no streamlit in here."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from core.channels import as_rgb
from core.comparison.confusion import Confusion
from core.evaluation.answers import Answers
from dashboard.images.contact_sheet import data_uri
from dashboard.text import one_line_text


class Disagreements(NamedTuple):
    """images: uint8 `(n, C, H, W)`. positions: `(n,)`, of each among the answers."""

    images: np.ndarray
    positions: np.ndarray


def read(file: Path, confusion: Confusion) -> Disagreements | None:
    """What a stage saved for these answers; None without a file."""
    try:
        stored = load_file(file)
    except (OSError, SafetensorError):  # no disagreement, or a run of an earlier version
        return None
    positions = stored["positions"]
    return Disagreements(stored["images"], positions) if len(positions) and positions.max() < len(confusion.labels) else None


def html(found: Disagreements, confusion: Confusion, names: Sequence[str], quantized: str) -> str:
    """Every image with its label and both answers with their confidences. quantized: what the quantized network is called."""
    cells = []
    for image, position in zip(as_rgb(found.images), found.positions.tolist()):
        label = one_line_text(names[int(confusion.labels[position])], 60) if confusion.labeled else ""
        lines = [
            _answer("full precision", confusion.full_precision, position, confusion, names),
            _answer(quantized, confusion.quantized, position, confusion, names),
        ]
        title = f'<b style="font-weight:600">{escape(label)}</b><br>' if label else ""
        cells.append(
            '<div style="display:flex;gap:8px;font-size:0.8rem;line-height:1.5;min-width:0">'
            f'<img alt="{escape(label or "evaluation image")}" src="{data_uri(image.transpose(1, 2, 0))}" style="width:72px;height:72px;'
            'object-fit:contain;image-rendering:pixelated;border-radius:4px;flex:none">'
            f'<div style="min-width:0;overflow-wrap:anywhere">{title}{"<br>".join(lines)}</div></div>'
        )
    return f'<div style="display:grid;grid-template-columns:repeat(auto-fill,minmax(250px,1fr));gap:12px">{"".join(cells)}</div>'


def _answer(network: str, answers: Answers, position: int, confusion: Confusion, names: Sequence[str]) -> str:
    """A line with a class and its confidence, and whether that is right."""
    given = int(answers.classes[position])
    mark = (" ✓" if given == int(confusion.labels[position]) else " ✗") if confusion.labeled else ""
    return f"{escape(network)}: {escape(one_line_text(names[given], 60))} {100 * float(answers.confidence[position]):.0f} %{mark}"
