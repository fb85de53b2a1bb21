"""Times as people write them, for how long a run may take."""

import re

from core.config.machine import MachineConfig
from core.errors import ConfigError, quoted

_NUMBER = r"(\d+(?:\.\d+)?)\s*"
_TIME = re.compile(
    rf"(?:{_NUMBER}(?:h|hours?))?\s*(?:{_NUMBER}(?:m|min|minutes?))?\s*(?:{_NUMBER}(?:s|sec|seconds?))?",
)


def minutes_of(text: str) -> float:
    """Minutes of a time such as 10m, 90s, 1h30m or 2 hours; a number alone, or at the end, is minutes. Raises ConfigError."""
    written = text.strip().lower()
    found = _TIME.fullmatch(written + "m" * written[-1:].isdecimal())
    if found is None or not any(found.groups()):
        raise ConfigError(f"time must be written like 90s, 10m or 1h30m, got {quoted(text)}")
    hours, minutes, seconds = (float(part or 0) for part in found.groups())
    return 60 * hours + minutes + seconds / 60


def budget_of(text: str) -> float:
    """Minutes that a run may take, as `minutes_of` reads them. Raises ConfigError for none, or more than a run may take."""
    minutes = minutes_of(text)
    if not minutes:
        raise ConfigError(f"time must be more than 0, got {quoted(text)}")
    MachineConfig.check_value("budget", minutes)
    return minutes
