"""Keeps a comparison of methods in the repository: `python benchmarks/comparison.py RUN --title TITLE`.

RUN is any complete run of it: all complete runs of the store with the same settings, of any method and seed, are its cells, as on the page
Methods. Start them with `python -m core compare`, on the same machine and in the same environment, because this script records the
versions that it finds. Writes an entry into assets/paper/measured.json, replacing an earlier one of the same title. Without RUN, prints the
comparisons that are kept, as in docs/methods.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.machine import machine
from core.comparison.kept import Comparison, entry, kept
from core.comparison.table import Row
from core.errors import CoreError
from core.files import write_json
from core.generation.methods import METHODS, in_order
from core.runs.paper_table import MEASURED, read_kept
from core.runs.store import RunStore


def keep(new: dict[str, Any], path: Path) -> None:
    """Adds the comparison to the file, replacing an earlier one of the same title."""
    known = read_kept(path)
    others = [one for one in known["comparisons"] if one["title"] != new["title"]]
    write_json(path, known | {"comparisons": sorted([*others, new], key=lambda one: one["title"])})


def as_markdown(comparison: Comparison) -> str:
    """A table with a line for each method, those of the smallest drop at the lowest width first, and the command that measures it."""
    table = comparison.rows
    widths = list(dict.fromkeys(row.width for row in table))
    known = {(row.method, row.width): row for row in table}
    methods = in_order({row.method for row in table})
    methods.sort(key=lambda method: known[method, widths[0]].drop if (method, widths[0]) in known else 100.0)
    titles = ["method", *(f"drop {width}" for width in widths), "paper's drop", "CLIP", "generation, s", "training, s", "seeds"]
    lines = [f"| {' | '.join(titles)} |", f"|---{'|---:' * (len(titles) - 1)}|"]
    for method in methods:
        own = [known[method, width] for width in widths if (method, width) in known]
        drops = [_drop(known.get((method, width))) for width in widths]
        lines.append(f"| {' | '.join([METHODS[method].title, *drops, *_others(own)])} |")
    about = f"{comparison.title}; {table[0].evaluated_on}; full precision {table[0].full_precision:g}; {comparison.date}."
    return "\n".join([about, "", *lines, "", "```sh", comparison.command, "```"])


def _drop(row: Row | None) -> str:
    if row is None:
        return ""
    spread = "" if row.spread is None else f" ± {row.spread:.2f}"
    tied = row.behind is None or not row.behind.is_significant
    return f"{row.drop:.2f}{spread}" + (" =" if tied else "")


def _others(own: Sequence[Row]) -> list[str]:
    paper = [f"{row.paper_drop:.2f}" for row in own if row.paper_drop is not None]
    similarity = own[0].similarity
    return [
        " / ".join(paper),
        "" if similarity is None else f"{similarity:.3f}",
        f"{own[0].generation_seconds:.0f}",
        f"{mean(row.training_seconds for row in own):.0f}",
        str(len(own[0].seeds)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", nargs="?", help="ID of a run, as `python -m core runs` lists it")
    parser.add_argument("--title", help="what was compared, such as the network and the preset")
    parser.add_argument("--runs", type=Path, help="folder that keeps the runs (default: RUNS_DIR, or runs)")
    arguments = parser.parse_args()
    if bool(arguments.run) != bool(arguments.title):
        parser.error("RUN and --title belong together")
    if arguments.run:
        try:
            found = entry(RunStore(arguments.runs), arguments.run, arguments.title)
        except CoreError as error:
            sys.exit(str(error))
        here = machine()
        keep({**found, "date": here["date"], **{name: here[name] for name in ("processor", "python", "versions")}}, MEASURED)
    print("\n\n".join(as_markdown(one) for one in kept()))


if __name__ == "__main__":
    main()
