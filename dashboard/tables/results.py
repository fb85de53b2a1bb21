"""From what the store holds to what the pages show: accuracies as rows, the paper's table beside them. No streamlit in here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from core.generation.methods import DEFAULT_METHODS, method_order
from core.runs.paper_table import KEPT, METHODS, NOT_MEASURED, Measurement, PaperRow, checkpoint_of, paper_rows
from dashboard.names import method_name


def accuracies(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row for each optimizer and bit width of a run's results, in that order."""
    rows = []
    for name, value in results.items():
        kind, _, rest = name.partition("/")
        if kind == "accuracy":
            rows.append({**value, "method": rest.partition("/")[0]})
    return sorted(rows, key=lambda row: (place(row["method"]), row["bits"]))


def diversities(results: Mapping[str, Any]) -> dict[str, Any]:
    """MethodImages -> diversity of a run's results."""
    known = {name.partition("/")[2]: value for name, value in results.items() if name.startswith("diversity/")}
    return dict(sorted(known.items(), key=lambda item: place(item[0])))


def references(results: Mapping[str, Any]) -> dict[str, Any]:
    """noise and real -> diversity of those, as far as the run measured them."""
    known = {name: results.get(f"reference/{name}", {}) for name in ("noise", "real")}
    # images that were given may bear any name, also these
    return {name: value for name, value in known.items() if "mean_similarity" in value and f"diversity/{name}" not in results}


# column of `diversity_table` -> what it says, and which direction is better
DIVERSITY_COLUMNS: Mapping[str, str] = {
    "all pairs": "Mean cosine similarity over all pairs of images. Lower is more diverse.",
    "within a class": "The same over pairs of one class. Lower is more diverse; far above all pairs, classes are easy to tell apart.",
    "snapshots": "The same over snapshots of one noise image. Lower: saving an image several times gives more than copies.",
    "nearest": "Mean cosine similarity to the most alike image, snapshots of the same noise image left out. Lower is more diverse. "
    "It rises with the number of images.",
    "nearly the same %": "Images whose nearest has a cosine above 0.95. Lower is more diverse. It rises with the number of images.",
}


def diversity_table(measured: Mapping[str, Mapping[str, Any]], references: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows for a person: each optimizer, then the references. Runs of earlier versions lack some figures."""
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


def place(method: str) -> int:
    """The paper's optimizer first, then the other, then anything else."""
    return method_order(method)


def paper_table(model: str) -> list[dict[str, Any]]:
    """The paper's rows for this network, for a person to read; empty where the paper does not have it."""
    return [{"bits": row.bits, **_paper_columns(row)} for row in paper_rows(model)]


def paper_methods(model: str) -> list[str]:
    """Names in the paper's table of the methods that it has figures of for this network, the paper's own first."""
    found = [column for column in METHODS if any(row.methods[column] is not None for row in paper_rows(model))]
    return sorted(found, key=lambda column: column != "dffg")


def paper_accuracies(model: str, methods: Sequence[str] = ("dffg",)) -> tuple[dict[str, dict[int, float]], float | None]:
    """What a method is called -> bits -> top-1 in the paper, and the full precision that all started from."""
    rows = paper_rows(model)
    figures = {
        METHODS[column]: {row.bits: top1 for row in rows if (top1 := row.methods[column]) is not None}
        for column in methods
        if column in METHODS
    }
    return {name: by_bits for name, by_bits in figures.items() if by_bits}, rows[0].full_precision if rows else None


def _paper_columns(row: PaperRow) -> dict[str, float | None]:
    return {"full precision": row.full_precision, **{title: row.methods[column] for column, title in METHODS.items()}}


def whole_table(table: Sequence[tuple[PaperRow, Sequence[Measurement]]]) -> list[dict[str, Any]]:
    """A line for each row of the paper, with the newest measurement beside it, for a person to read."""
    lines = []
    for row, measured in table:
        newest = measured[0] if measured else None
        lines.append(
            {
                "row": row.name,
                "measured here": newest.when if newest else NOT_MEASURED,
                **{f"drop {method}": newest.drop.get(method) if newest else None for method in DEFAULT_METHODS},
                "drop DFFG": row.drop,
                "DFFG": row.methods["dffg"],  # before the others, as one scrolls to those
                **_paper_columns(row),
            }
        )
    return lines


def measured_table(measured: Sequence[Measurement]) -> list[dict[str, Any]]:
    """A line for each measurement, for a person to read."""
    return [
        {
            "row": one.row,
            "when": one.when,
            **{
                f"{what} {method}": figures.get(method)
                for method in DEFAULT_METHODS
                for what, figures in (("top-1", one.top1), ("drop", one.drop), ("±", one.standard_error))
            },
            "full precision": one.full_precision,
            "setting": one.setting,
            "images": one.evaluated_on,
            "started from": f"{one.model}, {checkpoint_of(one.model)}",
            "run": one.run or KEPT,
        }
        for one in measured
    ]


def accuracy_table(rows: Sequence[Mapping[str, Any]], full_precision: float | None) -> list[dict[str, Any]]:
    """Rows of `accuracies` or `accuracy_series` for a person: calibrated, trained, drop, and what is known of their spread."""
    table = []
    for row in rows:
        trained, runs = row.get("quantized"), row.get("runs", 1)
        table.append(
            {
                "images by": row["method"],
                "setting": row.get("label", ""),
                "bits": row["bits"],
                "range": row.get("range"),
                "runs": runs,
                "calibrated %": round(row["calibrated"], 2),
                "trained %": None if trained is None else round(trained, 2),
                "drop": None if trained is None or full_precision is None else round(full_precision - trained, 2),
                "±": None if row.get("standard_error") is None else round(row["standard_error"], 2),
                "± is": "" if trained is None else "standard error" if runs == 1 else f"deviation over {runs} seeds",
                "steps": row.get("steps"),
                "seconds": row.get("seconds"),
            }
        )
    # a column that says nothing is left out
    return [{name: value for name, value in row.items() if name != "setting" or any(r["setting"] for r in table)} for row in table]
