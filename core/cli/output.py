"""The human-readable output of the commands."""

from collections.abc import Mapping, Sequence
from typing import Any


def as_table(runs: Sequence[Mapping[str, Any]]) -> str:
    """One line per run."""
    return "\n".join(
        f"{run['id']}  {run['state']:<11}  {run['name']}" + (f"  ({run['stage']}: {run['step']} of {run['total']})" if run["total"] else "")
        for run in runs
    )


def in_words(result: Mapping[str, Any], indent: str = "") -> str:
    """A result, one figure per line."""
    lines = []
    for key, value in result.items():
        if isinstance(value, Mapping):
            lines.append(f"{indent}{key}\n{in_words(value, indent + '  ')}")
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            lines.append(f"{indent}{key}")
            lines += [in_words(item, indent + "  ") for item in value]
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list) else value
            lines.append(f"{indent}{key:<24} {text}")
    return "\n".join(lines)
