"""Keeps the measurements of a finished run as rows of the paper's table in the repository: `python benchmarks/paper.py RUN`.

Start the run first, for example with `python -m core run --preset quick --threads 1`, on the same machine and in the same environment,
because this script records the versions that it finds. Writes an entry for each row into assets/paper/measured.json, replacing an earlier
one of the same row, network and commands. Refuses a run with live changes, because no command reproduces it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.machine import machine
from core.errors import CoreError, RunError
from core.export.commands import commands
from core.files import write_json
from core.runs.paper_table import MEASURED, measurements, read_kept
from core.runs.store import RunStore


def entries(store: RunStore, run_id: str) -> list[dict[str, Any]]:
    """The measurements of the run as JSON entries. Raises RunError if it has none or a command cannot reproduce it."""
    run = store.run(run_id)
    if store.changes(run_id):
        raise RunError(f"run {run_id!r} must be reproducible by a command, got one whose knobs were changed while it ran")
    measured = list(measurements(store, run))
    if not measured:
        raise RunError(
            f"run {run_id!r} must be a complete run of a network and bit width in the paper's table, got one that measured no row"
        )
    config, here = store.config(run_id), machine()
    return [
        {
            "row": one.row,
            "model": one.model,
            "date": one.when[:10],
            "commands": commands(config),
            "full_precision": one.full_precision,
            "top1": one.top1,
            "standard_error": one.standard_error,
            "evaluated_on": one.evaluated_on,
            "processor": here["processor"],
            "python": here["python"],
            "versions": here["versions"],
            "config": config.to_dict(),
        }
        for one in measured
    ]


def keep(new: Sequence[dict[str, Any]], path: Path) -> None:
    """Adds the entries to the file, replacing earlier ones of the same row, network and commands."""

    def about(entry: dict[str, Any]) -> tuple:
        return entry["row"], entry["model"], entry["commands"]

    replaced = [about(entry) for entry in new]
    known = read_kept(path)
    others = [entry for entry in known["runs"] if about(entry) not in replaced]
    write_json(path, known | {"runs": sorted([*others, *new], key=lambda entry: (entry["row"], entry["model"], entry["date"]))})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", help="ID of the run, as `python -m core runs` lists it")
    parser.add_argument("--runs", type=Path, help="folder that keeps the runs (default: RUNS_DIR, or runs)")
    arguments = parser.parse_args()
    try:
        store = RunStore(arguments.runs)
        found = entries(store, arguments.run)
    except CoreError as error:
        sys.exit(str(error))
    keep(found, MEASURED)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
