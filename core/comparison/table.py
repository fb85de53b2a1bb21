"""The table of a comparison: for each method and bit width the drop over all seeds, and how certain it is. Imports no torch."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import mean, stdev
from typing import Any

from core.comparison.cells import Cell
from core.comparison.differences import Difference, difference
from core.evaluation.hits import HITS, unpacked
from core.generation.methods import METHODS, in_order
from core.runs.paper_table import paper_rows
from core.runs.store import RunStore

# method -> its column in the paper's table
PAPER_COLUMNS = {
    "mi-fgsm": "dffg", "zeroq": "zeroq", "dsg": "dsg", "dsg-g": "dsg", "intraq": "intraq", "gdfq": "gdfq", "qimera": "qimera", "zaq": "zaq",
    "real": "real_data",
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One method at one bit width. Lists have an entry for each seed; accuracies are top-1 in percent, drops are in points.

    top1: after the last training step, also where a run keeps the calibrated network. seconds: of generation and training, the mean over
    seeds. similarity: mean CLIP similarity of two images, lower is more diverse; None without an encoder. paper_drop: in the paper's
    table, None if it has no such row. behind: top-1 of the best method at this width minus that of this one; None for the best one, and
    for runs of a version that did not keep which images are classified correctly.
    """

    method: str
    width: str
    seeds: tuple[int, ...]
    runs: tuple[str, ...]
    full_precision: float
    top1: tuple[float, ...]
    standard_error: float
    generation_seconds: float
    training_seconds: float
    similarity: float | None
    paper_drop: float | None
    evaluated_on: str
    behind: Difference | None = None

    @property
    def title(self) -> str:
        """The method's name for people."""
        return METHODS[self.method].title

    @property
    def drop(self) -> float:
        """Mean over seeds."""
        return round(self.full_precision - mean(self.top1), 3)

    @property
    def spread(self) -> float | None:
        """Standard deviation of the drop between seeds; None with one seed."""
        return round(stdev(self.top1), 3) if len(self.top1) > 1 else None

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "drop": self.drop, "spread": self.spread}


def rows(store: RunStore, measured: Sequence[tuple[Cell, str]]) -> list[Row]:
    """The table, by bit width, the smallest drop first. measured: cells, each with the id of a complete run that measures it."""
    found: list[Row] = []
    for bits in sorted({bits for cell, _ in measured for bits in cell.config.bits}):
        own = [_row(store, measured, method, bits) for method in in_order({cell.method for cell, _ in measured})]
        known = sorted((row for row in own if row is not None), key=lambda row: row.drop)
        found += _behind(store, known)
    return found


def _row(store: RunStore, measured: Sequence[tuple[Cell, str]], method: str, bits: int) -> Row | None:
    """None where the runs have no accuracy, as without labeled evaluation images."""
    of_method = sorted(((cell, run) for cell, run in measured if cell.method == method), key=lambda one: one[0].seed)
    config = of_method[0][0].config
    width = config.training_for(bits).width
    results = [store.results_of([run], ["accuracy", "generation", "diversity"]).get(run, {}) for _, run in of_method]
    figures = [result.get(f"accuracy/{method}/{width}") or {} for result in results]
    if any(figure.get("quantized") is None for figure in figures):
        return None
    similarities = [value for result in results if (value := (result.get(f"diversity/{method}") or {}).get("mean_similarity")) is not None]
    return Row(
        method,
        width,
        tuple(cell.seed for cell, _ in of_method),
        tuple(run for _, run in of_method),
        figures[0]["full_precision"],
        tuple(float(last_step(figure)) for figure in figures),
        round(mean(_standard_error(figure) for figure in figures), 3),
        round(mean((result.get(f"generation/{method}") or {}).get("seconds", 0.0) for result in results), 1),
        round(mean(figure["training_seconds"] for figure in figures), 1),
        round(mean(similarities), 3) if similarities else None,
        _paper_drop(config.model, method, bits),
        figures[0]["evaluated_on"],
    )


def last_step(figure: Mapping[str, Any]) -> Any:
    """Top-1 after the last training step; of the calibrated network without a training; None without labeled evaluation images."""
    trained = figure.get("trained")
    return figure["quantized"] if trained is None else trained


def _standard_error(figure: Mapping[str, Any]) -> float:
    """Of `last_step`; of the network that was kept, where the number of images is not stored."""
    images = figure.get("real", {}).get("calibrated", {}).get("images")
    share = last_step(figure) / 100
    return float(figure["standard_error"]) if not images else 100 * math.sqrt(share * (1 - share) / images)


def _paper_drop(model: str, method: str, bits: int) -> float | None:
    for row in paper_rows(model):
        top1 = row.methods.get(PAPER_COLUMNS.get(method, ""))
        if row.bits == bits and top1 is not None:
            return round(row.full_precision - top1, 2)
    return None


def _behind(store: RunStore, ranked: Sequence[Row]) -> list[Row]:
    """The rows of one width, each with its difference to the best method on the seeds that both have."""
    compared, first = [], _best(ranked) if ranked else None
    for row in ranked:
        assert first is not None
        common = [seed for seed in row.seeds if seed in first.seeds]
        best, own = (hits_of(store, one, common) for one in (first, row))
        if row is not first and best and own and len({len(hits) for hits in (*best, *own)}) == 1:
            row = replace(row, behind=difference(best, own))
        compared.append(row)
    return compared


def _best(ranked: Sequence[Row]) -> Row:
    """The row of the smallest drop among methods; among references, where there are no others."""
    return min(ranked, key=lambda row: (METHODS[row.method].is_reference, row.drop))


def hits_of(store: RunStore, row: Row, seeds: Sequence[int]) -> list[Any] | None:
    """For each seed, which images are classified correctly; None where a run does not have it."""
    found = [store.result(row.runs[row.seeds.index(seed)], f"{HITS}/{row.method}/{row.width}") for seed in seeds]
    return None if any(one is None for one in found) else [unpacked(one) for one in found]


_TITLES = (
    "width", "method", "seeds", "top-1", "drop", "spread", "behind the best", "95 % interval", "p", "generation (s)", "training (s)",
    "CLIP",
    "paper's drop",
)  # fmt: skip


def _cells(row: Row) -> list[str]:
    """A row as text in the order of _TITLES; empty where a value is unknown."""

    def number(value: float | None, digits: int) -> str:
        return "" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"

    behind = row.behind
    return [
        row.width,
        row.title,
        str(len(row.seeds)),
        number(mean(row.top1), 2),
        number(row.drop, 2),
        number(row.spread, 2),
        number(None if behind is None else behind.points, 2),
        "" if behind is None else f"{behind.low:.2f} to {behind.high:.2f}",
        number(None if behind is None else behind.p, 4),
        number(row.generation_seconds, 0),
        number(row.training_seconds, 0),
        number(row.similarity, 3),
        number(row.paper_drop, 2),
    ]


def as_text(table: Sequence[Row]) -> str:
    """The table for a terminal, and what its columns mean."""
    lines = [list(_TITLES), *(_cells(row) for row in table)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_TITLES))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]
    return "\n".join([*text, "", *explained(table)])


def explained(table: Sequence[Row]) -> list[str]:
    """Sentences about the columns."""
    if not table:
        return ["No method was measured on labeled evaluation images."]
    first = table[0]
    return [
        f"Top-1 in percent on {first.evaluated_on}, mean over seeds; full precision {first.full_precision:g}. Drop: full precision minus "
        "top-1, in points; spread: its standard deviation between seeds. Networks are those of the last training step, also where a run "
        "keeps the calibrated one.",
        "Behind the best: difference in points to the best method of the width on the same images and seeds, with the interval and the "
        "two-sided p of a paired bootstrap over images and seeds; of a single seed, p is that of McNemar's exact test.",
    ]


def as_csv(table: Sequence[Row]) -> str:
    """The table as CSV with a header."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_TITLES)
    writer.writerows(_cells(row) for row in table)
    return out.getvalue()


def as_latex(table: Sequence[Row]) -> str:
    """A booktabs table: a row for each method, a column for each width with the drop and its spread; the best method's is bold."""
    widths = list(dict.fromkeys(row.width for row in table))
    methods = in_order({row.method for row in table})
    by_place = {(row.method, row.width): row for row in table}
    best = {width: _best([row for row in table if row.width == width]) for width in widths}
    lines = [r"\begin{tabular}{l" + "r" * len(widths) + "}", r"\toprule", " & ".join(["Method", *widths]) + r" \\", r"\midrule"]
    for method in methods:
        entries = []
        for width in widths:
            row = by_place.get((method, width))
            entries.append(
                "--" if row is None else _latex_drop(row, bold=row.drop == best[width].drop and not METHODS[row.method].is_reference)
            )
        title = next(row.title for row in table if row.method == method)
        lines.append(" & ".join([title.replace("&", r"\&").replace("_", r"\_"), *entries]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _latex_drop(row: Row, bold: bool) -> str:
    drop = f"{row.drop:.2f}"
    spread = "" if row.spread is None else rf" $\pm$ {row.spread:.2f}"
    return (rf"\textbf{{{drop}}}" if bold else drop) + spread
