"""The command `sweep`: runs over a grid of knobs, compared on held-out synthetic images."""

from __future__ import annotations

import hashlib
import json
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import Field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.cli.cluster import LOCAL, check_cluster, measure_on_cluster
from core.cli.commands import Interrupted, begin, resumed, run_config, with_weights
from core.config import RunConfig, find_knob
from core.errors import ConfigError, quoted

if TYPE_CHECKING:
    from core.comparison.cells import Cell
    from core.runs.store import RunStore

_FOLDER = "held-out"  # in the folder of uploads: one folder of images for each start of a sweep


def sweep(options: Namespace) -> dict[str, Any]:
    """Measures what is missing, then prints the table. What is interrupted goes on with the same command."""
    from core.comparison.cells import complete_run
    from core.comparison.sweep import as_text, held_out_config, points, rows, trials
    from core.runs.store import RunStore

    if options.random < 0:
        raise ConfigError(f"random must be at least 1, or 0 for all points of the grid, got {options.random}")
    grid = grid_of(options.grid)
    start = with_weights(run_config(options), options).with_knobs({"data": "none", "encoder": ""})
    chosen = points(grid, options.random, start.machine.seed)
    trials(start, chosen, options.seeds)  # what cannot be computed is refused before anything is
    images = held_out_config(start, options.seeds)
    if options.executor != LOCAL:
        check_cluster(options.executor, start)
    store = RunStore(options.runs)
    try:
        store.mark_interrupted()
        data = _held_out_images(options, store, images)
        wanted = trials(start.with_knobs({"data": str(data)}), chosen, options.seeds)
        _measure(options, store, [trial.cell for trial in wanted])
        found = [(trial, run.id) for trial in wanted if (run := complete_run(store, trial.cell)) is not None]
        table = rows(store, found)
    finally:
        store.close()
    if not options.json:
        note = [f"Not measured: {len(wanted) - len(found)} of {len(wanted)} runs."] if len(found) < len(wanted) else []
        return {"text": "\n".join([as_text(table), *note])}
    return {"rows": [row.to_dict() for row in table], "missing": len(wanted) - len(found), "held_out": str(data)}


def grid_of(given: Sequence[tuple[str, Sequence[str]]]) -> dict[str, list[Any]]:
    """Knob -> its values, of the texts NAME=VALUE,VALUE. Raises UnknownNameError and ConfigError for what is no value of a knob."""
    grid: dict[str, list[Any]] = {}
    for name, texts in given:
        if name in grid:
            raise ConfigError(f"grid must have each knob once, got {name} twice")
        _, field = find_knob(name)
        grid[name] = [_value(field, text) for text in texts]
    return grid


def _value(field: Field, text: str) -> Any:
    """The value of a text for a knob, whose range the config checks."""
    kind: Callable[[str], Any] = type(field.default)
    if kind is bool:
        if text not in ("true", "false"):
            raise ConfigError(f"{field.name} must be true or false, got {quoted(text)}")
        return text == "true"
    try:
        return kind(text)
    except (TypeError, ValueError):
        raise ConfigError(f"{field.name} must be {'a whole number' if kind is int else 'a number'}, got {quoted(text)}") from None


def _held_out_images(options: Namespace, store: RunStore, config: RunConfig) -> Path:
    """The folder of the images on which the networks are compared; computed where the runs are, unless it exists."""
    from core.layout import UPLOADS

    name = hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode()).hexdigest()[:16]
    folder = store.folder / UPLOADS / _FOLDER / name
    if not folder.exists():
        print("held-out images", file=sys.stderr)
        run = begin(options.runs, config, executor=options.executor)["run"]
        _write_images(store.run_folder(run), config, folder)
        store.trash.delete(run)  # the images are kept, and nothing else is needed of it
    return folder


def _write_images(run_folder: Path, config: RunConfig, folder: Path) -> None:
    """The images of a run as .png files in one folder, without labels."""
    from PIL import Image
    from safetensors.numpy import load_file

    from core import layout
    from core.files import atomic_folder

    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder) as partial:
        for method in config.methods:
            images = load_file(run_folder / layout.IMAGES / method / layout.IMAGES_FILE)["images"]
            for number, image in enumerate(images):
                pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
                Image.fromarray(pixels).save(partial / f"{method}-{number:05d}.png")


def _measure(options: Namespace, store: RunStore, wanted: Sequence[Cell]) -> None:
    """Computes the runs that are missing."""
    from core.comparison.cells import active_run, complete_run, resumable_run

    missing = [cell for cell in wanted if complete_run(store, cell) is None and active_run(store, cell) is None]
    if options.executor != LOCAL:
        measure_on_cluster(store, missing, options.executor, Interrupted)
        return
    for number, cell in enumerate(missing, start=1):
        print(f"{cell.method}, seed {cell.seed} ({number} of {len(missing)})", file=sys.stderr)
        if (earlier := resumable_run(store, cell)) is not None:
            resumed(options, earlier.id)
        else:
            begin(options.runs, cell.config)
