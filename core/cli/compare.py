"""The command `compare`: methods side by side under one protocol, for several seeds."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.cli.cluster import LOCAL, check_cluster, measure_on_cluster
from core.cli.commands import Interrupted, begin, resumed, run_config, with_weights
from core.errors import DataError

if TYPE_CHECKING:
    from core.comparison.cells import Cell
    from core.comparison.examples import Examples
    from core.comparison.table import Row


def compare(options: Namespace) -> dict[str, Any]:
    """Measures what is missing, in the order of its cost, then prints the table. What is interrupted goes on with the same command."""
    from core.comparison.cells import active_run, cells, complete_run, resumable_run
    from core.comparison.examples import of_table
    from core.comparison.table import as_text, rows
    from core.files import check_free
    from core.runs.store import RunStore

    out: Path | None = options.out
    options.out = None  # the files of the runs stay in their folders
    if out is not None:
        check_free(out)
    start = with_weights(run_config(options), options)
    wanted = cells(start, options.seeds)
    store = RunStore(options.runs)
    measured: list[tuple[Cell, str]] = []
    try:
        store.mark_interrupted()
        if options.executor != LOCAL and not options.found:
            check_cluster(options.executor, start)
            missing_cells = [cell for cell in wanted if complete_run(store, cell) is None and active_run(store, cell) is None]
            measure_on_cluster(store, missing_cells, options.executor, Interrupted)
        for number, cell in enumerate(wanted, start=1):
            run = complete_run(store, cell)
            # an active run is computed by another process
            if run is None and not options.found and options.executor == LOCAL and active_run(store, cell) is None:
                print(f"{cell.method}, seed {cell.seed} ({number} of {len(wanted)})", file=sys.stderr)
                if (earlier := resumable_run(store, cell)) is not None:
                    resumed(options, earlier.id)
                else:
                    begin(options.runs, cell.config)
                run = complete_run(store, cell)
            if run is not None:
                measured.append((cell, run.id))
        table = rows(store, measured)
        shown = of_table(store, table)
    finally:
        store.close()
    files = {} if out is None else _write(table, shown, out)
    known = [cell for cell, _ in measured]
    missing = [f"{cell.method} with seed {cell.seed}" for cell in wanted if cell not in known]
    if not options.json:
        note = [f"Not measured: {', '.join(missing)}."] if missing else []
        return {"text": "\n".join([as_text(table), *note])}
    return {"rows": [row.to_dict() for row in table], "missing": missing, "files": files}


def _write(table: Sequence[Row], shown: Sequence[Examples], folder: Path) -> dict[str, str]:
    """table.csv, table.tex, drops.svg and, if the runs kept images, images.png in a new folder: name -> path."""
    from PIL import Image

    from core.comparison.examples import picture
    from core.comparison.figure import as_svg
    from core.comparison.table import as_csv, as_latex
    from core.files import atomic_folder

    if not table:
        raise DataError(f"{folder} cannot be written: no method was measured on labeled evaluation images")
    files = {"table.csv": as_csv(table), "table.tex": as_latex(table), "drops.svg": as_svg(table)}
    with atomic_folder(folder) as partial:
        for name, text in files.items():
            (partial / name).write_text(text, encoding="utf-8")
        if shown:
            Image.fromarray(picture(shown)).save(partial / "images.png")
    return {name: str(folder / name) for name in [*files, *(["images.png"] if shown else [])]}
