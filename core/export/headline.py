"""What a run achieved in a sentence, and which of its networks to take: for pages, report, card and command line. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.generation.methods import method_order
from core.models.registry import NETWORK_SUFFIXES, own_name

LIMIT = 1.0  # points that the accuracy of the recommended network may drop
MEASURED, PREDICTED, AT_MOST = "measured", "predicted", "at most"


@dataclass(frozen=True)
class MadeNetwork:
    """A quantized network of a run. outcome: the figures that the run reported for it (core/stages/quantization.py)."""

    method: str
    bits: int  # of the weights
    width: str  # such as W4A4
    outcome: Mapping[str, Any]

    @property
    def size(self) -> float | None:
        """Bytes of the packed tensors; of a run of an earlier version those of the weights alone; None if it stored neither."""
        known, weights = self.outcome.get("bytes"), self.outcome.get("weight_size")
        return known if known is not None or weights is None else weights / 8

    @property
    def drop(self) -> tuple[str, float] | None:
        """Points of top-1 that it loses, and how they are known: MEASURED; PREDICTED; or AT_MOST, because top-1 on the held-out images
        cannot fall by more than the share of images whose class changed. None if nothing is known.
        """
        before, after = self.outcome.get("full_precision"), self.outcome.get("quantized")
        if before is not None and after is not None:
            return MEASURED, before - after
        predicted = self.outcome.get("predicted") or {}
        if "drop" in predicted:
            return PREDICTED, predicted["drop"]
        return None if self.agreement is None else (AT_MOST, 100 - self.agreement)

    @property
    def agreement(self) -> float | None:
        """Percentage of held-out images to which it gives the same class as the full-precision network; None if not measured."""
        kept = (self.outcome.get("held_out") or {}).get(self.outcome.get("kept") or "trained") or {}
        return kept.get("agreement")


def made_networks(results: Mapping[str, Any]) -> list[MadeNetwork]:
    """The finished networks in the results of a run, name -> value as in RunStore.results, by method and bit width."""
    found = []
    for name, outcome in results.items():
        kind, _, rest = name.partition("/")
        method, _, width = rest.partition("/")
        if kind == "accuracy" and "quantized" in outcome:  # which is absent while it is trained
            found.append(MadeNetwork(method, outcome["bits"], width, outcome))
    return sorted(found, key=lambda made: (method_order(made.method), made.method, made.bits))


def summary(networks: Sequence[MadeNetwork], name: str) -> str:
    """The headline of the recommended network, what is to be said against it, and why it is recommended; "" without a network."""
    if not networks:
        return ""
    made = recommended(networks)
    return " ".join(sentence for sentence in (f"{headline(made, name)}.", reservation(made), choice(networks)) if sentence)


def recommended(networks: Sequence[MadeNetwork], limit: float = LIMIT) -> MadeNetwork:
    """The smallest of the networks, at least one, whose drop is at most `limit` points; if none is, the one with the smallest drop.

    Of equally small networks, the one with the smaller drop.
    """
    return min(networks, key=lambda made: (0, made.size or made.bits, _drop(made)) if is_within(made, limit) else (1, _drop(made), 0))


def is_within(made: MadeNetwork, limit: float) -> bool:
    """Whether the drop of a network is known and at most `limit` points."""
    return _drop(made) <= limit


def _drop(made: MadeNetwork) -> float:
    return float("inf") if made.drop is None else made.drop[1]


def subject(model: str) -> str:
    """How a page calls the network of a run: "Your network" for a file, the name of any other. model: as in RunConfig."""
    return "Your network" if model.endswith(NETWORK_SUFFIXES) else own_name(model)


def headline(made: MadeNetwork, name: str) -> str:
    """The network in a sentence without a period: size, drop and agreement, as far as they are known. name: of the network."""
    outcome = made.outcome
    parts = [f"{name} in {_bits(made)} bits"]
    before, after = outcome.get("float32_bytes"), outcome.get("bytes")
    if before and after:
        times = f" ({before / after:.1f} times smaller)" if before > after else ""
        parts[0] += f": {size_in_words(after)} instead of {size_in_words(before)}{times}"
    drop, predicted = made.drop, outcome.get("predicted") or {}
    if drop is not None and drop[0] == MEASURED:
        error = outcome.get("drop_error")
        parts.append(f"measured top-1 drop {_points(drop[1])}" + ("" if error is None else f" ± {_points(error)}"))
    elif drop is not None and drop[0] == PREDICTED:
        parts.append(f"predicted top-1 drop {_points(drop[1])} ({_points(predicted['low'])} to {_points(predicted['high'])})")
    if made.agreement is not None:
        parts.append(f"gives the same answer as the original on {made.agreement:.1f} % of unseen images")
    return ", ".join(parts)


def _bits(made: MadeNetwork) -> str:
    """The bit widths of the weights, of which `size` chooses one for each layer."""
    widths = set(made.outcome.get("layer_weight_bits", {}).values()) or {made.bits}
    return str(*widths) if len(widths) == 1 else f"{min(widths)} to {max(widths)}"


def reservation(made: MadeNetwork) -> str:
    """Why the drop of the network is neither measured nor predicted, as a sentence; "" if it is, or nothing says why."""
    if made.drop is not None and made.drop[0] != AT_MOST:
        return ""
    why = (made.outcome.get("predicted") or {}).get("why_not", "")
    return f"No prediction of its accuracy: {why.rstrip('.')}." if why else ""


def choice(networks: Sequence[MadeNetwork], limit: float = LIMIT) -> str:
    """Why this of several networks is recommended, in a sentence; "" for a single one."""
    if len(networks) < 2:
        return ""
    made = recommended(networks, limit)
    if made.drop is None:
        return "The drop of none of the networks is known."
    how, drop = made.drop
    if not is_within(made, limit):
        return f"No network stays within {_limit(limit)}: this one has the smallest {_named(how)}, {_points(drop)}."
    return f"The smallest of {len(networks)} networks whose {_named(how)} is at most {_limit(limit)}."


def _named(how: str) -> str:
    return "share of changed answers" if how == AT_MOST else f"{how} drop"


def size_in_words(size: float) -> str:
    """Bytes as kB or MB, both decimal: 178 kB, 1.1 MB."""
    if size < 999_500:
        return f"{size / 1e3:.0f} kB"
    return f"{size / 1e6:.1f} MB" if size < 99.95e6 else f"{size / 1e6:,.0f} MB"


def _limit(value: float) -> str:
    return f"{value:g} point{'' if value == 1 else 's'}"


def _points(value: float) -> str:
    return f"{round(value, 1) + 0.0:.1f}"  # no negative zero
