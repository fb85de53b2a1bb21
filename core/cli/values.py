"""From the text of an argument to its value; what is wrong with it is said by argparse, next to the name of the flag."""

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

from core.errors import ConfigError, quoted


def layer_width(text: str) -> tuple[str, int]:
    name, equals, bits = text.rpartition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"must be NAME=BITS, such as output=8, got {quoted(text)}")
    return name, whole(bits)


def live_value(text: str) -> tuple[str, float]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"must be NAME=VALUE, such as epsilon=0.2, got {quoted(text)}")
    return name, number(value)


def kilobytes(text: str) -> float:
    """kB, of 150, 150kB, 0.15MB, or 153600B."""
    matched = re.fullmatch(r"(\d+|\d*\.\d+) *(B|kB|MB|)", text, re.IGNORECASE)
    if not matched:
        raise argparse.ArgumentTypeError(f"must be a size, such as 150kB or 1.5MB, got {quoted(text)}")
    return float(matched[1]) * {"b": 1e-3, "": 1.0, "kb": 1.0, "mb": 1e3}[matched[2].lower()]


def grid_values(text: str) -> tuple[str, tuple[str, ...]]:
    name, equals, listed = text.partition("=")
    found = tuple(value.strip() for value in listed.split(","))
    if not equals or not name or not all(found):
        raise argparse.ArgumentTypeError(f"must be NAME=VALUE,VALUE, such as epsilon=0.05,0.1, got {quoted(text)}")
    return name, found


def whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, such as 4, got {quoted(text)}") from None


def number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, such as 0.1, got {quoted(text)}") from None


def time_in(read: Callable[[str], float]) -> Callable[[str], float]:
    """The type of a flag whose text `read` turns into minutes."""

    def parse(text: str) -> float:
        try:
            return read(text)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


def path(text: str) -> Path:
    # it is kept with the run, as text
    if not _is_text(text):
        raise argparse.ArgumentTypeError(f"must be a path in {sys.getfilesystemencoding().upper()} without NUL, got {quoted(text)}")
    return Path(text)


def run_id(text: str) -> str:
    if not _is_text(text):
        raise argparse.ArgumentTypeError(f"must be the ID of a run, as `runs` lists them, got {quoted(text)}")
    return text


def _is_text(text: str) -> bool:
    return "\0" not in text and text == text.encode(errors="ignore").decode()
