"""How the columns of a table are shown: units, the same number of digits in a column, long text shortened. No streamlit in here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dashboard.text import shortened

_DIGITS = 4  # after the point, at most, unless a column says otherwise
_CHARACTERS = 48  # of text in a cell


@dataclass(frozen=True)
class Column:
    """How a column is shown.

    label: its title; default: its name. help: shown on hover over the title. kind: "text", "number", "time" (seconds since the epoch),
    "tags" (a list of texts) or "link"; default: "number" with numbers or digits, otherwise "text". digits: after the point; default: as
    many as the values need, at most 4. significant: significant digits instead, for values of different magnitudes. hidden: unless chosen.
    """

    label: str = ""
    help: str = ""
    kind: str = ""
    digits: int | None = None
    significant: int | None = None
    hidden: bool = False

    def kind_of(self, values: Sequence[Any]) -> str:
        """Its kind, given its values."""
        numeric = self.digits is not None or self.significant is not None or any(_is_number(value) for value in values)
        return self.kind or ("number" if numeric else "text")

    def described(self, name: str, values: Sequence[Any]) -> dict[str, Any]:
        """The column as table.js expects it."""
        return {"name": name, "label": self.label or name, "help": self.help, "kind": self.kind_of(values), "hidden": self.hidden}


AUTOMATIC = Column()


def shown(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, Column], best: Sequence[str] = ()) -> list[list[Any]]:
    """The cells of each row as table.js expects them: None, a value, or a value and how it is shown. best: see `tables.table`."""
    digits = {name: _digits(column, [row.get(name) for row in rows]) for name, column in columns.items()}
    lines = []
    for row in rows:
        numbers = [row[name] for name in best if _is_number(row.get(name))]
        highest = max(numbers) if len(numbers) > 1 else None
        lines.append(
            [_cell(row.get(name), column, digits[name], name in best and row.get(name) == highest) for name, column in columns.items()]
        )
    return lines


def _digits(column: Column, values: Sequence[Any]) -> int:
    numbers = [value for value in values if _is_number(value)]
    if column.digits is not None:
        return column.digits
    return next((digits for digits in range(_DIGITS) if all(round(value, digits) == round(value, _DIGITS) for value in numbers)), _DIGITS)


def _cell(value: Any, column: Column, digits: int, best: bool) -> Any:
    if value is None or column.kind in ("time", "tags"):
        return value
    if _is_number(value):
        text = f"{value:#.{column.significant}g}" if column.significant else f"{value:,.{digits}f}"
        return {"value": value, "shown": text, "best": best} if best else {"value": value, "shown": text}
    return {"value": str(value), "shown": short} if (short := shortened(value, _CHARACTERS)) != str(value) else str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
