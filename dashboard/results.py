"""From what the store holds to what the pages show: accuracies as rows, the paper's rows for the same network. No streamlit in here."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from typing import Any

from core.config import OPTIMIZERS
from core.models.registry import ASSETS

_PAPER_NETWORKS = {
    "resnet20_cifar10": ("cifar10", "resnet20"),
    # the paper's own checkpoints
    "pytorchcv:resnet20_cifar10": ("cifar10", "resnet20"),
    "pytorchcv:resnet20_cifar100": ("cifar100", "resnet20"),
    "pytorchcv:resnet18": ("imagenet", "resnet18"),
    "pytorchcv:mobilenetv2_w1": ("imagenet", "mobilenetv2"),
    "pytorchcv:resnet50": ("imagenet", "resnet50"),
}
PAPER_METHODS = {
    "real_data": "real data",
    "zeroq": "ZeroQ",
    "dsg": "DSG",
    "zaq": "ZAQ",
    "qimera": "Qimera",
    "gdfq": "GDFQ",
    "intraq": "IntraQ",
    "dffg": "DFFG (the paper)",
}


def accuracies(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row for each optimizer and bit width of a run's results, in that order."""
    rows = []
    for name, value in results.items():
        kind, _, rest = name.partition("/")
        if kind == "accuracy":
            rows.append({**value, "lane": rest.partition("/")[0]})
    return sorted(rows, key=lambda row: (_place(row["lane"]), row["bits"]))


def diversities(results: Mapping[str, Any]) -> dict[str, Any]:
    """Lane -> diversity of a run's results."""
    known = {name.partition("/")[2]: value for name, value in results.items() if name.startswith("diversity/")}
    return dict(sorted(known.items(), key=lambda item: _place(item[0])))


def _place(lane: str) -> int:
    """The paper's optimizer first, then the other, then anything else."""
    return OPTIMIZERS.index(lane) if lane in OPTIMIZERS else len(OPTIMIZERS)


def paper_rows(model: str) -> list[dict[str, str]]:
    """The paper's table for this network, as text; empty where the paper does not have it."""
    wanted = _PAPER_NETWORKS.get(model)
    with (ASSETS / "paper" / "results.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if (row["dataset"], row["model"]) == wanted]


def paper_table(model: str) -> list[dict[str, Any]]:
    """The same with numbers, for a person to read."""
    return [
        {
            "bits": int(row["bits"]),
            "full precision": float(row["full_precision"]),
            **{title: float(row[column]) if row[column] else None for column, title in PAPER_METHODS.items()},
        }
        for row in paper_rows(model)
    ]


def paper_accuracies(model: str) -> tuple[dict[int, float], float | None]:
    """Bits -> top-1 of the paper's method, and the full precision that it started from."""
    rows = paper_rows(model)
    return {int(row["bits"]): float(row["dffg"]) for row in rows}, float(rows[0]["full_precision"]) if rows else None


def accuracy_table(rows: list[dict[str, Any]], full_precision: float | None) -> list[dict[str, Any]]:
    """Rows for a person: calibrated, trained, drop, error."""
    table = []
    for row in rows:
        trained = row.get("quantized")
        table.append(
            {
                "images by": row["lane"],
                "bits": row["bits"],
                "range": row.get("range"),
                "calibrated %": row["calibrated"],
                "trained %": trained,
                "drop": None if trained is None or full_precision is None else round(full_precision - trained, 2),
                "± standard error": row.get("standard_error"),
                "steps": row.get("steps"),
                "seconds": row.get("seconds"),
            }
        )
    return table
