"""The human-readable output of the commands."""

from collections.abc import Mapping, Sequence
from typing import Any

from core.export.headline import PREDICTED, MadeNetwork, size_in_words


def as_table(runs: Sequence[Mapping[str, Any]]) -> str:
    """One line per run."""
    return "\n".join(
        f"{run['id']}  {run['state']:<11}  {run['name']}" + (f"  ({run['stage']}: {run['step']} of {run['total']})" if run["total"] else "")
        for run in runs
    )


def in_words(result: Mapping[str, Any], indent: str = "") -> str:
    """A result, one figure per line. What is unknown or empty has no line; of the layers there is only the worst, all are in `--json`."""
    lines = []
    for key, value in result.items():
        if value is None or value in ({}, []):
            continue
        if key == "layers" and isinstance(value, Mapping):
            value = _worst_layer(value)
        if isinstance(value, Mapping):
            lines.append(f"{indent}{key}\n{in_words(value, indent + '  ')}")
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            lines.append(f"{indent}{key}")
            lines += [in_words(item, indent + "  ") for item in value]
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list) else value
            lines.append(f"{indent}{key:<24} {text}")
    return "\n".join(lines)


def shrunk_in_words(networks: Sequence[MadeNetwork], chosen: MadeNetwork, headline: str, out: str, run: str) -> str:
    """What `shrink` made: a line for each network, what is recommended, and the file."""
    rows = [("bits", "size", "top-1 drop", "same answer", "")]
    for made in networks:
        how, drop = made.drop or ("", None)
        interval = (made.outcome.get("predicted") or {}) if how == PREDICTED else {}
        limits = f" ({interval['low']:.1f} to {interval['high']:.1f})" if interval else ""
        rows.append(
            (
                str(made.bits),
                "unknown" if made.size is None else size_in_words(made.size),
                "unknown" if drop is None else f"{how} {drop:.1f}{limits}",
                "unknown" if made.agreement is None else f"{made.agreement:.1f} %",
                "recommended" if made is chosen and len(networks) > 1 else "",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    return "\n".join([*table, "", headline, f"{out} is the network; run {run} has everything else."])


def _worst_layer(layers: Mapping[str, Any]) -> dict[str, Any]:
    """Of "layers" in the figures of a quantized network: the layer with the largest error. Layers without an error have no ratio."""
    known = {name: ratio for name, ratio in layers["sqnr"].items() if ratio is not None}
    worst = min(known, key=lambda name: known[name], default=None)
    return {**layers, "sqnr": None if worst is None else f"{known[worst]:g} dB at least, in {worst}"}
