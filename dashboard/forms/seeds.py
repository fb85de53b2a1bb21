"""Seeds as people write them. No streamlit in here."""

from __future__ import annotations

import re

from core.errors import ConfigError


def seeds_of(written: str) -> list[int]:
    """The seeds in a text such as "0, 1, 2". Raises ConfigError."""
    parts = re.split(r"[\s,;]+", written.strip())
    if not all(part.isascii() and part.isdecimal() for part in parts):
        raise ConfigError(f"seeds must be numbers such as 0, 1, 2, got {written!r}")
    return [int(part[:12]) for part in parts]
