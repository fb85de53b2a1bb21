"""Which moments of a run can be shown, and what is said of one. Pure: no streamlit in here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from core.reporting import Frame
from core.runs.records import Record
from core.runs.run import Run
from dashboard.names import method_name

STRIP = 12  # moments of one image beside each other


def common(kept: Sequence[Sequence[int]]) -> list[int]:
    """Steps that every method has kept, in order."""
    return sorted(set.intersection(*map(set, kept))) if kept else []


def from_address(text: str | None) -> tuple[int | None, str]:
    """The step in an address, None for the newest, and what is wrong with it, or ""."""
    if text is None:
        return None, ""
    if text.isascii() and text.isdecimal() and int(text[:12]) > 0:
        return int(text[:12]), ""
    return None, f"at is {text!r} in the address: allowed is the number of an iteration, 1 or more; the newest is shown"


def nearest(step: int | None, moments: Sequence[int], latest: int) -> int | None:
    """The last of `moments` that is not after `step`, or the first; None for the newest moment, which is `latest`."""
    if step is None or step >= latest:
        return None
    found = next((moment for moment in reversed(moments) if moment <= step), moments[0] if moments else latest)
    return found if found < latest else None


def place(step: int, run: Run) -> str:
    """Where a step, counted over all batches, lies in its batch."""
    per_batch, batches = run.config.generation.iterations, len(run.config.generation.batches)
    iteration = f"iteration {(step - 1) % per_batch + 1} of {per_batch}"
    return f"{iteration}, batch {(step - 1) // per_batch + 1} of {batches}" if batches > 1 else iteration


def history(step: int, moments: Sequence[int], per_batch: int, most: int = STRIP) -> list[int]:
    """At most so many moments, spread evenly, of the batch that `step` belongs to: others show other images."""
    batch = (step - 1) // per_batch
    own = sorted({step, *(moment for moment in moments if (moment - 1) // per_batch == batch)})
    if len(own) <= most:
        return own
    chosen = {own[round(index * (len(own) - 1) / (most - 1))] for index in range(most)}
    if step not in chosen:  # in the place of its neighbour
        chosen.discard(min(chosen - {own[0], own[-1]}, key=lambda moment: abs(moment - step)))
        chosen.add(step)
    return sorted(chosen)


def record_at(records: Sequence[Record], method: str, step: int) -> Record | None:
    """The record of a method at a step."""
    return next((record for record in reversed(records) if record.series == method and record.step == step), None)


def summary(frame: Frame, record: Record | None) -> str:
    """What a method's picture is captioned with."""
    parts = []
    if record is not None:
        parts += [f"L_BNS {record.data['bns']:.4g}", f"teacher agrees on {record.data['agreement']:.0f} %"]
    if frame.confidence is not None and len(frame.confidence):
        parts.append(f"confidence {100 * float(frame.confidence.mean()):.0f} %")
    return " · ".join(parts)


def values(records: Mapping[str, Record], parts: Mapping[str, str], where: str) -> list[str]:
    """A line for each method with the value of every part of the loss. parts: name in the record -> how it is called, with a remark."""
    return [
        f"{method_name(method)}, {where}: " + ", ".join(f"{title.split(' (')[0]} {record.data[part]:.4g}" for part, title in parts.items())
        for method, record in records.items()
    ]
