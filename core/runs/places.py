"""Paths in stored runs. What is below the runs folder is stored relative to it, so that the folder can be moved or copied.

Earlier versions stored absolute paths. They name what they named wherever the folder is now: names of runs and uploads are unique.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.layout import UPLOADS

RUNS = "runs:/"  # stands for the runs folder in stored paths; stored, so the value must not change
_RUN_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{6}")


def portable(path: str, folder: Path) -> str:
    """A path below the runs folder in its stored form; any other text unchanged.

    folder: the runs folder. A path below an earlier place of the folder counts as below it if the folder has that file.
    """
    if not os.path.isabs(path):
        return path
    for base, here in ((str(folder), os.path.normpath(path)), (os.path.realpath(folder), os.path.realpath(path))):
        if here == base or here.startswith(base + os.sep):
            return RUNS + here.removeprefix(base).removeprefix(os.sep)
    parts = Path(path).parts
    for start, part in enumerate(parts):
        if (part == UPLOADS or _RUN_ID.fullmatch(part)) and os.path.exists(folder.joinpath(*parts[start:])):
            return RUNS + "/".join(parts[start:])
    return path


def located(path: str, folder: Path) -> str:
    """The inverse of `portable`: where the path is now."""
    return str(folder / path.removeprefix(RUNS)) if path.startswith(RUNS) else path


def each_text(values: Any, change: Callable[[str], str]) -> Any:
    """JSON values with every text replaced by `change(text)`; names of fields stay."""
    if isinstance(values, dict):
        return {name: each_text(value, change) for name, value in values.items()}
    if isinstance(values, list):
        return [each_text(value, change) for value in values]
    return change(values) if isinstance(values, str) else values
