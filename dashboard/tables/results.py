"""Results of a run as rows of tables: accuracies, diversities, the paper's table with our measurements. No streamlit in here."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from core.generation.methods import in_order, method_order
from core.runs.paper_table import KEPT, PAPER_METHODS, Measurement, PaperRow, paper_rows, weights_source
from dashboard.names import method_name
from dashboard.tables.columns import Column

# how close a network is to full precision, measured on: words -> its key in a result, and the beginning of keys in a row of `accuracies`
MEASURED_ON: Mapping[str, tuple[str, str]] = {"real": ("real", "real_"), "synthetic": ("held_out", "")}
_NETWORKS = {"": "", "calibrated_": "calibrated", "trained_": "trained"}  # beginning of a key -> network; without one, the kept one
AGREEMENTS = tuple(f"{network}{start}agreement" for _, start in MEASURED_ON.values() for network in _NETWORKS)
CLOSENESS = (
    *AGREEMENTS,
    *(f"{name}_error" for name in AGREEMENTS),
    *(f"{start}{name}" for _, start in MEASURED_ON.values() for name in ("kl", "score_sqnr")),
)


def accuracies(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row for each method and bit width of a run's results, in that order: `quantized` is the accuracy of what is `kept`, which is
    absent until the end. Accuracies are None without labeled images, and those of `closeness` without the images they are measured on.
    """
    rows = []
    for name, value in results.items():
        kind, _, rest = name.partition("/")
        if kind == "accuracy":
            # runs of earlier versions kept what training ended with
            before = {} if value.get("quantized") is None else {"trained": value["quantized"], "kept": "trained"}
            row = {**before, **value, "method": rest.partition("/")[0]}
            rows.append(row | closeness(row))
    return sorted(rows, key=lambda row: (method_order(row["method"]), row["method"], row["bits"]))


def closeness(row: Mapping[str, Any]) -> dict[str, float | None]:
    """How close the networks of a bit width are to full precision: figures of CLOSENESS, None where not measured.

    Those that begin with "real" are on the evaluation images, the others on held-out images. Those without the name of a network are of
    the one that is kept, and until the end of the calibrated one.
    """
    known: dict[str, float | None] = {}
    for key, start in MEASURED_ON.values():
        for network, name in _NETWORKS.items():
            figures = _figures_of(row, key, name)
            known[f"{network}{start}agreement"] = figures.get("agreement")
            known[f"{network}{start}agreement_error"] = figures.get("standard_error")
        kept = _figures_of(row, key)
        known |= {f"{start}{name}": kept.get(name) for name in ("kl", "score_sqnr")}
    return known


def _figures_of(row: Mapping[str, Any], key: str, network: str = "") -> Mapping[str, Any]:
    return (row.get(key) or {}).get(network or row.get("kept") or "calibrated") or {}


def measured_on(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """On which images `closeness` was measured, given rows of `accuracies`: words of MEASURED_ON -> the images, as far as there are any."""
    found = {}
    for words, (key, _) in MEASURED_ON.items():
        for figures in (_figures_of(row, key) for row in rows):
            if figures:
                # runs of earlier versions have only their number
                images = f"{figures['images']:,} " if "images" in figures else ""
                found[words] = figures.get("measured_on", f"{images}held-out synthetic images")
    return found


def protocols(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """For each method with an authors' protocol among rows of `accuracies`, how its networks were trained."""
    words = {"shared": "shared protocol", "authors": "authors' protocol"}
    return list(dict.fromkeys(f"{method_name(row['method'])}: {words[row['protocol']]}" for row in rows if row.get("protocol")))


def agreement_of(row: Mapping[str, Any]) -> tuple[str, float | None, float | None]:
    """The agreement of a row of `accuracies` on real images, else on held-out ones: words of MEASURED_ON, and with its standard error."""
    for words, (_, start) in MEASURED_ON.items():
        if row.get(f"{start}agreement") is not None:
            return words, row[f"{start}agreement"], row[f"{start}agreement_error"]
    return "", None, None


def layers_measured_on(analysis: Mapping[str, Any]) -> str:
    """The images that the layers of a result `layers/...` were analyzed on. Earlier versions used those of the calibration."""
    return str(analysis.get("measured_on", f"{analysis['images']:,} calibration images"))


def has_accuracy(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether there are labeled evaluation images, given rows of `accuracies`; also where there are no rows yet."""
    return not rows or any(row["calibrated"] is not None for row in rows)


def diversities(results: Mapping[str, Any]) -> dict[str, Any]:
    """Method -> diversity, of a run's results."""
    known = {name.partition("/")[2]: value for name, value in results.items() if name.startswith("diversity/")}
    return {method: known[method] for method in in_order(known)}


def references(results: Mapping[str, Any]) -> dict[str, Any]:
    """Diversity of noise and of real images, as far as the run measured them."""
    known = {name: results.get(f"reference/{name}", {}) for name in ("noise", "real")}
    # a given set may have any name, including these
    return {name: value for name, value in known.items() if "mean_similarity" in value and f"diversity/{name}" not in results}


DIVERSITY_TITLES = {"within a class": "same class", "snapshots": "snapshots of one image", "nearly the same %": "near-duplicates %"}
# column of `diversity_table` -> what it means, and which direction is better
DIVERSITY_COLUMNS: Mapping[str, str] = {
    "all pairs": "Mean cosine similarity over all pairs of images. Lower is more diverse.",
    "within a class": "Mean over pairs of the same class. Lower is more diverse; far above all pairs, classes are easy to distinguish.",
    "snapshots": "Mean over snapshots of the same noise image. Lower: several snapshots of an image are more than copies.",
    "nearest": "Mean cosine similarity to the most similar image, without snapshots of the same noise image. Lower is more diverse. "
    "Increases with the number of images.",
    "nearly the same %": "Images with another one at a cosine above 0.95. Lower is more diverse. Increases with the number of images.",
}


def diversity_table(measured: Mapping[str, Mapping[str, Any]], references: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each method, then the references. Runs of earlier versions lack some figures."""
    rows = []
    for name, figures in {**measured, **references}.items():
        close = figures.get("close_share")
        values = (
            figures["mean_similarity"],
            figures["within_class_similarity"],
            figures.get("snapshot_similarity"),
            figures.get("nearest_similarity"),
            None if close is None else 100 * close,
        )
        rows.append({"set": method_name(name), "images": figures["images"], **dict(zip(DIVERSITY_COLUMNS, values, strict=True))})
    return rows


def paper_table(model: str) -> list[dict[str, Any]]:
    """The paper's rows for this network, ready to show; empty if the paper does not have it."""
    return [{"bits": row.bits, **_paper_columns(row)} for row in paper_rows(model)]


def paper_methods(model: str) -> list[str]:
    """Columns of the paper's table that have figures for this network, the paper's own method first."""
    found = [column for column in PAPER_METHODS if any(row.methods[column] is not None for row in paper_rows(model))]
    return sorted(found, key=lambda column: column != "dffg")


def paper_accuracies(model: str, methods: Sequence[str] = ("dffg",)) -> tuple[dict[str, dict[int, float]], float | None]:
    """Title of a method -> bits -> top-1 in the paper; and full-precision top-1, None if the paper does not have the network."""
    rows = paper_rows(model)
    figures = {
        PAPER_METHODS[column]: {row.bits: top1 for row in rows if (top1 := row.methods[column]) is not None}
        for column in methods
        if column in PAPER_METHODS
    }
    return {name: by_bits for name, by_bits in figures.items() if by_bits}, rows[0].full_precision if rows else None


def _paper_columns(row: PaperRow) -> dict[str, float | None]:
    return {"full precision": row.full_precision, **{title: row.methods[column] for column, title in PAPER_METHODS.items()}}


def whole_table(table: Sequence[tuple[PaperRow, Sequence[Measurement]]]) -> list[dict[str, Any]]:
    """A line for each row of the paper, with its measurement nearest to a preset, and of equally near ones the newest. A column for each
    method that was measured.
    """
    # of those with the fewest changes, the first is the newest
    chosen = {row.name: min(measured, key=lambda one: one.changes) for row, measured in table if measured}
    methods = in_order({method for one in chosen.values() for method in one.top1})
    lines = []
    for row, _ in table:
        newest = chosen.get(row.name)
        lines.append(
            {
                "row": row.name,
                "measured": _seconds(newest.when) if newest else None,
                **{f"drop {method}": newest.drop.get(method) if newest else None for method in methods},
                "drop DFFG": row.drop,
                "DFFG": row.methods["dffg"],  # before the other methods, which one may have to scroll to
                **_paper_columns(row),
            }
        )
    return lines


def _seconds(when: str) -> float:
    """Of the `when` of a Measurement: a day, with the time if it is from a run."""
    return time.mktime(time.strptime(when, "%Y-%m-%d %H:%M" if ":" in when else "%Y-%m-%d"))


def measured_table(measured: Sequence[Measurement]) -> list[dict[str, Any]]:
    """A line for each measurement, with three columns for each method that was measured."""
    methods = in_order({method for one in measured for method in one.top1})
    return [
        {
            "row": one.row,
            "when": _seconds(one.when),
            **{
                f"{quantity} {method}": figures.get(method)
                for method in methods
                for quantity, figures in (("top-1", one.top1), ("drop", one.drop), ("±", one.standard_error))
            },
            "full precision": one.full_precision,
            "setting": one.setting,
            "images": one.evaluated_on,
            "started from": f"{one.model}, {weights_source(one.model)}",
            "run": one.run or KEPT,
        }
        for one in measured
    ]


# how tables show columns that need more than the default
PAPER_COLUMNS = {
    "row": Column(kind="link"),
    "measured": Column(kind="time"),
    "when": Column(kind="time"),
    **{name: Column(digits=2) for name in ("full precision", "drop DFFG", *PAPER_METHODS.values())},
}
DATA_FREE = [title for column, title in PAPER_METHODS.items() if column != "real_data"]  # methods of the paper's table

# column of `accuracy_table`, without what it is measured on; its key; digits
_CLOSENESS_COLUMNS = (("agreement %", "agreement", 2), ("±", "agreement_error", 2), ("KL", "kl", 4), ("score SQNR, dB", "score_sqnr", 2))
ACCURACY_COLUMNS = {
    "range": Column("range method", hidden=True),
    "runs": Column(help="Runs that are averaged: they differ only in their seeds.", hidden=True),
    "error bar": Column(help="What ± is.", hidden=True),
    **{name: Column(digits=2) for name in ("calibrated %", "trained %", "drop", "±")},
    **{f"{words} {name}": Column(digits=digits) for words in MEASURED_ON for name, _, digits in _CLOSENESS_COLUMNS},
    "seconds": Column(digits=1, help="Computing time of the training."),
}


def accuracy_table(rows: Sequence[Mapping[str, Any]], full_precision: float | None) -> list[dict[str, Any]]:
    """Rows of `accuracies` or `accuracy_series`, ready to show: calibrated, trained, which one is kept, its drop, and their errors; and
    how close it is to full precision on real and on held-out synthetic images. Groups of columns without any figure are omitted.
    """
    table = []
    for row in rows:
        quantized, trained, runs = row.get("quantized"), row.get("trained"), row.get("runs", 1)
        table.append(
            {
                "images by": method_name(row["method"]),
                "setting": row.get("label", ""),
                "bits": row["bits"],
                "range": row.get("range"),
                "runs": runs,
                "calibrated %": _rounded(row["calibrated"], 2),
                "trained %": _rounded(trained, 2),
                "kept": row.get("kept"),
                "drop": None if quantized is None or full_precision is None else round(full_precision - quantized, 2),
                "±": _rounded(row.get("standard_error"), 2),
                "error bar": "" if quantized is None else "standard error" if runs == 1 else f"deviation over {runs} seeds",
                **{
                    f"{words} {name}": _rounded(row.get(f"{start}{key}"), digits)
                    for words, (_, start) in MEASURED_ON.items()
                    for name, key, digits in _CLOSENESS_COLUMNS
                },
                "steps": row.get("steps"),
                "seconds": row.get("seconds"),
            }
        )
    omitted = {
        name
        for columns, shown in (
            (("setting",), any(row["setting"] for row in table)),
            (("calibrated %", "trained %", "drop", "±", "error bar"), has_accuracy(rows)),
            *(
                ([f"{words} {name}" for name, *_ in _CLOSENESS_COLUMNS], any(row[f"{words} agreement %"] is not None for row in table))
                for words in MEASURED_ON
            ),
        )
        for name in columns
        if not shown
    }
    return [{name: value for name, value in row.items() if name not in omitted} for row in table]


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
