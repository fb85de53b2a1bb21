"""The terms of the generation's loss, as a run recorded them: what its records hold and what each is called. No streamlit in here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from core.runs.records import Record

RESULT = "terms"  # the result of a run that lists its loss terms
_LONGEST_TITLE = 30  # characters beside the symbol: panels are about 300 pixels wide


@dataclass(frozen=True)
class Term:
    """A number in every record of a generation.

    name: its key in the record. symbol: as in the paper, such as L_BNS; empty if it has none. title: in words. log: whether its axis is
    logarithmic.
    """

    name: str
    title: str
    symbol: str = ""
    log: bool = True

    @property
    def short(self) -> str:
        return self.symbol or self.title

    @property
    def heading(self) -> str:
        if self.symbol and 0 < len(self.title) <= _LONGEST_TITLE and self.title != self.symbol:
            return f"{self.symbol} ({self.title})"
        return self.short


# of runs of earlier versions, which did not record their terms
DEFAULT_TERMS = (
    Term("bns", "batch-norm statistics", "L_BNS"),
    Term("ce", "cross entropy", "L_CE"),
    Term("tv", "total variation", "R_TV"),
    Term("l2", "l2 norm", "R_l2"),
)
TOTAL = Term("total", "total loss")
AGREEMENT = Term("agreement", "teacher agreement (%)", log=False)


def loss_terms(results: Mapping[str, Any]) -> tuple[Term, ...]:
    """The loss terms in the results of a run, by their recorded names; DEFAULT_TERMS if it recorded none."""
    recorded = results.get(RESULT)
    if not recorded:
        return DEFAULT_TERMS
    return tuple(Term(one["name"], one.get("title") or one["name"], one.get("symbol") or "", one.get("log", True)) for one in recorded)


def recorded_parts(records: Iterable[Record], terms: Iterable[Term] = DEFAULT_TERMS) -> list[Term]:
    """Total loss, the terms and the teacher agreement: those of them that at least one of the records has."""
    known = {name for record in records for name in record.data}
    return [part for part in (TOTAL, *terms, AGREEMENT) if part.name in known]
