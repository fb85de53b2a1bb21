"""The paper's table with our measurements: finished runs of the store, and figures kept with the program.

A run measures a row if its network is the row's, all layers have the row's width, and it generated its images. Imports no torch.
"""

import csv
import json
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from types import MappingProxyType
from typing import Any

from core.config import AUTO_DATA, RunConfig, nearest_preset
from core.errors import ConfigError, DataError, UnknownNameError, one_line
from core.models.registry import ASSETS
from core.runs.lists import RunFilter
from core.runs.run import Run
from core.runs.state import RunState
from core.runs.store import RunStore

PAPER = ASSETS / "paper" / "results.csv"
MEASURED = ASSETS / "paper" / "measured.json"
NOT_MEASURED = "not measured"
KEPT = "kept with the program"  # source of a figure that is not from a run of the store
# column -> title of the method
PAPER_METHODS: Mapping[str, str] = MappingProxyType(
    {
        "real_data": "real data",
        "zeroq": "ZeroQ",
        "dsg": "DSG",
        "zaq": "ZAQ",
        "qimera": "Qimera",
        "gdfq": "GDFQ",
        "intraq": "IntraQ",
        "dffg": "DFFG",
    }
)
# (data set, network) of a row -> the networks that measure it: the paper's weights first, then ours of the same architecture
NETWORKS: Mapping[tuple[str, str], tuple[str, ...]] = MappingProxyType(
    {
        ("cifar10", "resnet20"): ("pytorchcv:resnet20_cifar10", "resnet20_cifar10"),
        ("cifar100", "resnet20"): ("pytorchcv:resnet20_cifar100",),
        ("imagenet", "resnet18"): ("pytorchcv:resnet18",),
        ("imagenet", "mobilenetv2"): ("pytorchcv:mobilenetv2_w1",),
        ("imagenet", "resnet50"): ("pytorchcv:resnet50",),
    }
)
EMBEDDED_DATA = "cifar10"  # the only data set of the paper with embedded images
WIDTH = 140  # characters in a line of `as_text`


@dataclass(frozen=True)
class PaperRow:
    """One row of the paper: top-1 in percent, None if a method is not reported."""

    dataset: str
    network: str
    bits: int  # of weights and activations, in all layers
    full_precision: float
    methods: Mapping[str, float | None]

    @property
    def name(self) -> str:
        """Name of the row, such as cifar10/resnet20/4."""
        return f"{self.dataset}/{self.network}/{self.bits}"

    @property
    def width(self) -> str:
        """Width of weights and activations, such as W4A4."""
        return f"W{self.bits}A{self.bits}"

    @property
    def networks(self) -> tuple[str, ...]:
        """Names for `load_model` that measure this row, the paper's weights first."""
        return NETWORKS[self.dataset, self.network]

    @property
    def drop(self) -> float | None:
        """Drop of the paper's method from full precision, in points."""
        dffg = self.methods["dffg"]
        return None if dffg is None else round(self.full_precision - dffg, 2)


@dataclass(frozen=True)
class Measurement:
    """One measurement of a row. top1: method -> percent; standard_error: method -> points. Of several seeds, top1 is their mean and
    standard_error their standard deviation, as `setting` says.
    """

    row: str
    model: str  # the full-precision network
    full_precision: float
    top1: Mapping[str, float]
    standard_error: Mapping[str, float]
    evaluated_on: str
    setting: str
    when: str  # such as 2026-11-25, with the time if it is from a run
    run: str  # its id; empty for a figure kept with the program

    @property
    def changes(self) -> int:
        """How many settings are not those of the nearest preset."""
        _, _, different = self.setting.partition(";")[0].partition(" with ")
        return len(different.split(", ")) if different else 0

    @property
    def drop(self) -> dict[str, float]:
        """Method -> drop from full precision, in points."""
        return {method: round(self.full_precision - top1, 2) for method, top1 in self.top1.items()}


def paper_rows(model: str = "") -> list[PaperRow]:
    """The paper's rows in its order. model: only those of this network (a name for `load_model`); none if the paper does not have it."""
    with PAPER.open(newline="", encoding="utf-8") as file:
        rows = [
            PaperRow(
                line["dataset"],
                line["model"],
                int(line["bits"]),
                float(line["full_precision"]),
                {column: float(line[column]) if line[column] else None for column in PAPER_METHODS},
            )
            for line in csv.DictReader(file)
        ]
    return [row for row in rows if not model or model in row.networks]


def paper_row(name: str) -> PaperRow:
    """The row of that name. Raises UnknownNameError."""
    rows = {row.name: row for row in paper_rows()}
    if name not in rows:
        raise UnknownNameError("row", name, rows)
    return rows[name]


def table(store: RunStore, most: int | None = None) -> list[tuple[PaperRow, list[Measurement]]]:
    """Every row of the paper with its measurements, the newest first. most: runs of each network of a row; default: all of them."""
    kept, found = _kept(), []
    for row in paper_rows():
        measured = [one for one in kept if one.row == row.name]
        for model in row.networks:
            which = RunFilter(states=(RunState.COMPLETE,), generates=True, model=model, width=row.width, one_width=True)
            measured += [one for run in store.runs(which, most) for one in measurements(store, run, row)]
        found.append((row, sorted(measured, key=lambda one: one.when, reverse=True)))
    return found


def read_kept(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The figures kept with the program, each with the commands and config that reproduce it: "runs", one entry for each row of the paper
    that a run measured, as benchmarks/paper.py writes them; "comparisons" of methods, as benchmarks/comparison.py does.
    """
    return json.loads(path.read_text(encoding="utf-8"))


def _kept() -> list[Measurement]:
    kept = read_kept(MEASURED)
    of_runs = [
        Measurement(
            entry["row"],
            entry["model"],
            entry["full_precision"],
            entry["top1"],
            entry["standard_error"],
            entry["evaluated_on"],
            setting(RunConfig.from_dict(entry["config"]), paper_row(entry["row"]).bits),
            entry["date"],
            "",
        )
        for entry in kept["runs"]
    ]
    return [*of_runs, *(one for entry in kept["comparisons"] for one in _of_comparison(entry))]


def _of_comparison(entry: Mapping[str, Any]) -> Iterator[Measurement]:
    """The rows of the paper that a comparison of methods measured."""
    config = RunConfig.from_dict(entry["config"])
    for row in paper_rows(entry["model"]) if _is_of_the_paper(config) else []:
        measured = [one for one in entry["rows"] if one["width"] == row.width]
        if not measured:
            continue
        seeds = max(len(one["seeds"]) for one in measured)
        yield Measurement(
            row.name,
            entry["model"],
            measured[0]["full_precision"],
            {one["method"]: round(mean(one["top1"]), 3) for one in measured},
            {one["method"]: round(stdev(one["top1"]), 3) if len(one["top1"]) > 1 else one["standard_error"] for one in measured},
            measured[0]["evaluated_on"],
            setting(config, row.bits) + (f"; mean and standard deviation of {seeds} seeds, last training step" if seeds > 1 else ""),
            entry["date"],
            "",
        )


def _is_of_the_paper(config: RunConfig) -> bool:
    """Whether the images are generated and all layers have the same width, as in the paper."""
    return not (config.images_from or config.training.mixed)


def measurements(store: RunStore, run: Run, only: PaperRow | None = None) -> Iterator[Measurement]:
    """The measurements of a run; none if it is not complete or does not measure a row. only: of this row."""
    if run.state is not RunState.COMPLETE:
        return
    try:
        config = store.config(run.id)
    except ConfigError:  # of a version that cannot be read
        return
    if not _is_of_the_paper(config):
        return
    for row in [only] if only else paper_rows(config.model):
        if row.bits not in config.bits or config.training.activation_bits not in (0, row.bits):
            continue
        figures = {method: store.result(run.id, f"accuracy/{method}/{row.width}") for method in config.methods}
        done = {method: figure for method, figure in figures.items() if figure is not None and figure.get("quantized") is not None}
        if not done:
            continue
        changed = sorted({change["name"] for change in store.changes(run.id)})
        any_method = next(iter(done.values()))
        yield Measurement(
            row.name,
            config.model,
            any_method["full_precision"],
            {method: figure["quantized"] for method, figure in done.items()},
            {method: figure["standard_error"] for method, figure in done.items()},
            any_method["evaluated_on"],
            setting(config, row.bits) + (f"; changed live: {', '.join(changed)}" if changed else ""),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(run.ended)),
            run.id,
        )


def setting(config: RunConfig, bits: int) -> str:
    """The nearest preset, and how the run differs from it at this width. Network, evaluation images and machine are not part of it."""
    nearest, different = nearest_preset(config, bits)
    words = ", ".join(f"{knob} {value:g}" if type(value) is float else f"{knob} {value}" for knob, value in different.items())
    return f"{nearest} with {words}" if words else nearest


def row_config(name: str, start: RunConfig, model: str = "", data: str = "") -> RunConfig:
    """The config that measures a row with the settings and methods of `start`.

    model: one of the row's networks; empty: that with the paper's weights. data: evaluation images; empty: those of `default_data`. Raises
    UnknownNameError for an unknown row or network, DataError if `data` is needed and empty.
    """
    row = paper_row(name)
    model = model or row.networks[0]
    if model not in row.networks:
        raise UnknownNameError(f"network of row {name}", model, row.networks)
    if not data and row.dataset != EMBEDDED_DATA:
        raise DataError(f"data must be a folder of {row.dataset} images for row {name!r}, got none: only those of CIFAR-10 are embedded")
    return replace(
        start,
        bits=(row.bits,),
        images_from="",
    ).with_knobs(
        {
            "model": model,
            "first_last_8bit": False,
            "layer_bits": (),
            "layer_weight_bits": (),
            "size": 0.0,
            "activation_bits": 0,
            "data": data or default_data(start, row),
            "encoder": "",  # the table has no column for diversity
        }
    )


def default_data(start: RunConfig, row: PaperRow) -> str:
    """The evaluation images of a row on CIFAR-10: those of `start`; where these are not named and it has the paper's settings, the whole
    test set, as in the paper.
    """
    nearest, _ = nearest_preset(start, row.bits)
    return row.dataset if start.evaluation.data == AUTO_DATA and nearest == "paper" else start.evaluation.data


def to_dict(row: PaperRow, measured: Sequence[Measurement]) -> dict[str, Any]:
    """A row of `table` as JSON values."""
    return {
        "row": row.name,
        "dataset": row.dataset,
        "network": row.network,
        "bits": row.bits,
        "paper": {"full_precision": row.full_precision, **row.methods, "drop": row.drop},
        "measured": [{**asdict(one), "drop": one.drop} for one in measured],
    }


def weights_source(model: str) -> str:
    """Whose weights a network has. Figures that start from other weights than the paper's are compared by their drop."""
    return "the paper's weights" if ":" in model else "this project's weights, not the paper's"


def as_text(rows: Sequence[tuple[PaperRow, Sequence[Measurement]]]) -> str:
    """The table for a terminal of WIDTH columns: a line with each row, followed by its measurements, newest first."""
    titles = ["full", *PAPER_METHODS.values(), "DFFG drop"]
    lines = ["".join([f"{'row':<24}", *(f"{title:>10}" for title in titles)])]
    for row, measured in rows:
        figures = [row.full_precision, *row.methods.values(), row.drop]
        lines.append("".join([f"{row.name:<24}", *(f"{'-' if figure is None else format(figure, '.2f'):>10}" for figure in figures)]))
        for text in [_measurement_text(one) for one in measured] or [NOT_MEASURED]:
            lines += textwrap.wrap(text, WIDTH, initial_indent="    ", subsequent_indent="        ", break_on_hyphens=False)
    return "\n".join(lines)


def _measurement_text(one: Measurement) -> str:
    figures = ", ".join(
        f"{method} {top1:.2f} ± {one.standard_error[method]:.2f} (drop {one.drop[method]:.2f})" for method, top1 in one.top1.items()
    )
    where = f"run {one.run}" if one.run else KEPT
    return one_line(
        f"{figures}, from {one.full_precision:.2f} of {one.model} ({weights_source(one.model)}); {one.setting}; "
        f"on {one.evaluated_on}; {one.when}, {where}"
    )
