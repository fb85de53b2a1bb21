"""Which iterations of a run can be shown, and the text about one. Pure: no streamlit in here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from core.generation.methods import counts_epochs
from core.reporting import Frame
from core.runs.records import Record
from core.runs.run import Run
from dashboard.names import method_name
from dashboard.tables.terms import AGREEMENT, DEFAULT_TERMS, Term, recorded_parts

STRIP = 12  # iterations of one image beside each other


def common(kept: Sequence[Sequence[int]]) -> list[int]:
    """Steps whose images every method has kept, in order."""
    return sorted(set.intersection(*map(set, kept))) if kept else []


def from_address(text: str | None) -> tuple[int | None, str]:
    """The step in an address, None for the newest, and an error message, or ""."""
    if text is None:
        return None, ""
    if text.isascii() and text.isdecimal() and int(text[:12]) > 0:
        return int(text[:12]), ""
    return None, f"at in the address must be the number of an iteration, 1 or more, got {text!r}; showing the newest iteration"


def nearest(step: int | None, kept: Sequence[int], latest: int) -> int | None:
    """The last step of `kept` that is not after `step`, else the first; None for the newest iteration, which is `latest`."""
    if step is None or step >= latest:
        return None
    found = next((one for one in reversed(kept) if one <= step), kept[0] if kept else latest)
    return found if found < latest else None


def iteration_label(step: int, run: Run) -> str:
    """The iteration within its batch, or its epoch, of a step, which is counted over all of them: "iteration 3 of 50, batch 2 of 4"."""
    per_batch, batches = run.config.generation.iterations, len(run.config.generation.batches)
    iteration = f"iteration {(step - 1) % per_batch + 1} of {per_batch}"
    return f"{iteration}, {group_word(run)} {(step - 1) // per_batch + 1} of {batches}" if batches > 1 else iteration


def group_word(run: Run) -> str:
    """What a group of iterations is: a batch of images, or an epoch of a run whose methods all train generators."""
    return "epoch" if counts_epochs(run.config.methods) else "batch"


def history(step: int, kept: Sequence[int], per_batch: int, most: int = STRIP) -> list[int]:
    """At most `most` steps, evenly spaced, of the batch that `step` belongs to, because other batches have other images."""
    batch = (step - 1) // per_batch
    own = sorted({step, *(one for one in kept if (one - 1) // per_batch == batch)})
    if len(own) <= most:
        return own
    chosen = {own[round(index * (len(own) - 1) / (most - 1))] for index in range(most)}
    if step not in chosen:  # replaces its neighbor
        chosen.discard(min(chosen - {own[0], own[-1]}, key=lambda one: abs(one - step)))
        chosen.add(step)
    return sorted(chosen)


def record_at(records: Sequence[Record], method: str, step: int) -> Record | None:
    """The record of a method at a step."""
    return next((record for record in reversed(records) if record.series == method and record.step == step), None)


def summary(frame: Frame, record: Record | None) -> str:
    """Caption of a method's images at one iteration."""
    parts = []
    if record is not None:
        parts += [f"L_BNS {record.data['bns']:.4g}"] if "bns" in record.data else []
        parts += [f"teacher agrees on {record.data['agreement']:.0f} %"] if "agreement" in record.data else []
    if frame.confidence is not None and len(frame.confidence):
        parts.append(f"confidence {100 * float(frame.confidence.mean()):.0f} %")
    return " · ".join(parts)


def values(records: Mapping[str, Record], where: str, terms: Sequence[Term] = DEFAULT_TERMS) -> list[str]:
    """A line for each method with its loss, each term of it and the agreement. terms: those that the run recorded."""
    return [
        f"{method_name(method)}, {where}: " + ", ".join(_value(part, record.data[part.name]) for part in recorded_parts([record], terms))
        for method, record in records.items()
    ]


def _value(part: Term, value: float) -> str:
    name = part.short.partition(" (")[0]
    return f"{name} {value:.1f} %" if part is AGREEMENT else f"{name} {value:.4g}"
