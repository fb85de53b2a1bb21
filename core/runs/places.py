"""Paths in stored runs. What is below the runs folder is stored relative to it, so that the folder can be moved or copied.

Earlier versions stored absolute paths. They name what they named wherever the folder is now: names of runs and uploads are unique.
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from core.config import RunConfig
from core.errors import RunError
from core.layout import UPLOADS

RUNS = "runs:/"  # stands for the runs folder in stored paths; stored, so the value must not change
# what a run reads: option of `resume` -> words
_READ: Mapping[str, str] = {
    "model": "network", "data": "evaluation images", "encoder": "CLIP encoder", "images": "images",
}  # fmt: skip
_RUN_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{6}")


def portable(path: str, folder: Path) -> str:
    """A path below the runs folder in its stored form; any other text unchanged.

    folder: the runs folder. A path below an earlier place of the folder counts as below it if the folder has that file.
    """
    if not os.path.isabs(path):
        before, colon, file = path.partition(":")  # ARCH:FILE of an encoder
        return before + colon + portable(file, folder) if os.path.isabs(file) else path
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
    before, mark, inside = path.partition(RUNS)
    return before + str(folder / inside) if mark and (not before or before.endswith(":")) else path


def each_text(values: Any, change: Callable[[str], str]) -> Any:
    """JSON values with every text replaced by `change(text)`; names of fields stay."""
    if isinstance(values, dict):
        return {name: each_text(value, change) for name, value in values.items()}
    if isinstance(values, list):
        return [each_text(value, change) for value in values]
    return change(values) if isinstance(values, str) else values


def gone(config: RunConfig) -> dict[str, str]:
    """What the run reads from a file or folder that does not exist: option of `resume`, without dashes -> its place."""
    named = {"model": config.model, "data": config.evaluation.data, "encoder": config.evaluation.encoder, "images": config.images_from}
    if not config.bits:
        del named["data"]
    places = {option: name.partition(":")[2] if option == "encoder" else name for option, name in named.items()}
    return {option: place for option, place in places.items() if os.path.isabs(place) and not os.path.exists(place)}


def check_places(run_id: str, config: RunConfig) -> None:
    """Raises RunError, naming what is missing and how to say where it is now, for a run that is resumed elsewhere or later."""
    for option, place in gone(config).items():
        value = "ARCH:FILE" if option == "encoder" else "PATH"
        raise RunError(
            f"the {_READ[option]} of this run must be at {place!r}, which does not exist: put it there again, or say where it is now with "
            f"`python -m core resume {run_id} --{option} {value}`"
        )


def relocated(config: RunConfig, places: Mapping[str, str]) -> RunConfig:
    """The config with new places. places: option of `resume`, without dashes -> value. Raises RunError where the old place still exists."""
    missing = gone(config)
    for option in places:
        if option not in missing:
            allowed = " and ".join(f"the {_READ[name]}" for name in missing) or "nothing"
            raise RunError(f"--{option} must give a new place to what is gone, and of this run that is {allowed}")
    if "images" in places:
        config = replace(config, images_from=places["images"])
    return config.with_knobs({option: value for option, value in places.items() if option != "images"})
