"""Which of several methods is better, by what a run has stored, and whether the difference is more than chance. Imports no torch.

A method is never called better without a test. The best of several methods is compared with each other one, and because it was chosen on
the same values, each p is multiplied by the number of all pairs (Bonferroni).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.comparison.differences import difference
from core.comparison.significance import LEVEL, Gap, paired_t, similarity_gap
from core.comparison.table import Row, hits_of, last_step
from core.evaluation.answers import ANSWERS, CALIBRATED, FULL_PRECISION, LABELS, TRAINED, Answers, unpacked_numbers
from core.evaluation.hits import HITS, unpacked
from core.generation.methods import in_order, is_reference
from core.runs.records import Record
from core.runs.store import RunStore

Hits = NDArray[np.bool_]

BNS, RECOGNIZED, SIMILARITY, TOP1, AGREEMENT = "bns", "recognized", "similarity", "top1", "agreement"
LOWER_IS_BETTER = (BNS, SIMILARITY)
_SIMILARITIES = "similarities"  # in a result diversity/METHOD: of each noise image (core/evaluation/diversity.py)
T_TEST, BOOTSTRAP, MCNEMAR, SEEDS = "t", "bootstrap", "mcnemar", "seeds"


@dataclass(frozen=True)
class Against:
    """The best method against another. value, low, high: how far it is ahead, and the ends of the 95 % interval, in the unit of the
    quantity. p: two-sided, corrected for the number of pairs. test: T_TEST over batches or seeds, BOOTSTRAP over images, MCNEMAR, or
    SEEDS, the bootstrap over images and seeds.
    """

    method: str
    value: float
    low: float
    high: float
    p: float
    test: str

    @property
    def is_ahead(self) -> bool:
        """Whether the best method is measurably ahead of this one."""
        return self.p < LEVEL


@dataclass(frozen=True)
class Finding:
    """One quantity of several methods.

    values: method -> its mean, the best first. errors: their standard errors, where known. against: of the best with each other method,
    as far as what a test needs is stored. count: what a mean is over: batches, images, or seeds. width: of the networks, such as W4A4,
    for TOP1 and AGREEMENT. images: which those are measured on. below: of the best network, how far it is below full precision.
    """

    quantity: str
    values: Mapping[str, float]
    against: tuple[Against, ...]
    count: int = 0
    errors: Mapping[str, float] | None = None
    width: str = ""
    images: str = ""
    below: Against | None = None

    @property
    def best(self) -> str:
        """The method with the best value, which need not be measurably ahead."""
        return next(iter(self.values))


def compared(methods: Sequence[str]) -> list[str]:
    """The methods that compete: references only where there are no others."""
    own = [name for name in methods if not is_reference(name)]
    return in_order(own or methods)


def _ranked(quantity: str, values: Mapping[str, float]) -> dict[str, float]:
    sign = 1 if quantity in LOWER_IS_BETTER else -1
    return {name: values[name] for name in sorted(values, key=lambda name: sign * values[name])}


def _against(method: str, quantity: str, gap: Gap | None, pairs: int, test: str) -> tuple[Against, ...]:
    """gap: best minus other."""
    if gap is None:
        return ()
    low, high = (-gap.high, -gap.low) if quantity in LOWER_IS_BETTER else (gap.low, gap.high)
    return (Against(method, abs(gap.value), low, high, min(1.0, pairs * gap.p), test),)


def pairs(values: Mapping[str, Any]) -> int:
    """Number of pairs of methods."""
    return len(values) * (len(values) - 1) // 2


def of_generation(records: Iterable[Record], iterations: int, methods: Sequence[str]) -> list[Finding]:
    """L_BNS, and the percentage of images whose class the network recognizes, at the last iteration of the complete batches so far."""
    last: dict[str, dict[str, list[float]]] = {BNS: {}, RECOGNIZED: {}}
    for record in records:
        if record.step % iterations == 0 and record.series in methods:
            last[BNS].setdefault(record.series, []).append(record.data["bns"])
            last[RECOGNIZED].setdefault(record.series, []).append(record.data["agreement"])
    if len(last[BNS]) < len(methods):
        return []
    return [found for quantity, by_method in last.items() if (found := of_batches(quantity, by_method)) is not None]


def of_batches(quantity: str, by_method: Mapping[str, Sequence[float]]) -> Finding | None:
    """By a paired t test over batches, whose noise is the same for every method. by_method: a value for each complete batch."""
    count = min((len(values) for values in by_method.values()), default=0)
    if not count:
        return None
    own = {name: list(values[:count]) for name, values in by_method.items()}
    values = _ranked(quantity, {name: mean(of_method) for name, of_method in own.items()})
    best, *others = values
    against = [
        _against(other, quantity, paired_t([a - b for a, b in zip(own[best], own[other])]), pairs(values), T_TEST) for other in others
    ]
    errors = {name: stdev(of_method) / count**0.5 for name, of_method in own.items()} if count > 1 else None
    return Finding(quantity, values, sum(against, ()), count, errors)


def of_similarity(diversities: Mapping[str, Mapping[str, Any]]) -> Finding | None:
    """Mean CLIP similarity. diversities: method -> its diversity as stored; one without similarities of noise images has no test."""
    if not diversities:
        return None
    values = _ranked(SIMILARITY, {name: figures["mean_similarity"] for name, figures in diversities.items()})
    own = {name: np.array(figures[_SIMILARITIES]) for name, figures in diversities.items() if figures.get(_SIMILARITIES)}
    best, *others = values
    against = [
        _against(other, SIMILARITY, similarity_gap(own[best], own[other]), pairs(values), BOOTSTRAP)
        for other in others
        if best in own and other in own
    ]
    errors = {name: 2 * float(known.std(ddof=1)) / len(known) ** 0.5 for name, known in own.items() if len(known) > 1}
    return Finding(SIMILARITY, values, sum(against, ()), diversities[best]["images"], errors or None)


def of_networks(
    quantity: str,
    values: Mapping[str, float],
    hits: Mapping[str, Sequence[Hits]],
    width: str,
    images: str,
    full_precision: Hits | None = None,
) -> Finding:
    """TOP1 or AGREEMENT in percent of the networks of one width. hits: method -> for each seed, bool `(N,)`: McNemar's test with one seed,
    else the paired bootstrap. Methods without hits have no test. full_precision: its hits on the same images.
    """
    values = _ranked(quantity, values)
    best, *others = values
    own = {name: of_method for name, of_method in hits.items() if name in values}
    against = [_of_hits(other, own[best], own[other], pairs(values)) for other in others if best in own and other in own]
    below = None
    if best in own and full_precision is not None:
        below = next(iter(_of_hits(best, [full_precision], own[best][:1], 1)), None)
    return Finding(quantity, values, sum(against, ()), len(next(iter(own.values()), [])), None, width, images, below)


def _of_hits(method: str, best: Sequence[Hits], other: Sequence[Hits], pairs: int) -> tuple[Against, ...]:
    if len({len(hits) for hits in (*best, *other)}) != 1:
        return ()
    gap = difference(best, other)
    return (Against(method, gap.points, gap.low, gap.high, min(1.0, pairs * gap.p), SEEDS if len(best) > 1 else MCNEMAR),)


def of_quantization(results: Mapping[str, Any]) -> list[Finding]:
    """Of the networks of a run after their last training step, by width. results: of a run; those of kinds accuracy, hits and answers are
    read. Without labels, the agreement with full precision on the evaluation images, else on the held-out ones.
    """
    by_width: dict[str, dict[str, Mapping[str, Any]]] = {}
    for name, figures in results.items():
        kind, _, rest = name.partition("/")
        method, _, width = rest.partition("/")
        if kind == "accuracy" and "quantized" in figures:  # which is absent while it is trained
            by_width.setdefault(width, {})[method] = figures
    found = []
    for width, figures_of in sorted(by_width.items(), key=lambda item: next(iter(item[1].values()))["bits"]):
        methods = {name: figures_of[name] for name in compared(list(figures_of))}
        found += (
            [_top1(results, width, methods)]
            if all(last_step(one) is not None for one in methods.values())
            else _agreement(results, width, methods)
        )
    return found


def _top1(results: Mapping[str, Any], width: str, methods: Mapping[str, Mapping[str, Any]]) -> Finding:
    hits = {name: [unpacked(known)] for name in methods if (known := results.get(f"{HITS}/{name}/{width}"))}
    values = {name: float(last_step(figures) or 0.0) for name, figures in methods.items()}
    real: Mapping[str, Any] = next((known for name in methods if (known := answers_of(results, name, width).get("real"))), {})
    full_precision = _classes(real, FULL_PRECISION) == unpacked_numbers(real[LABELS]) if LABELS in real else None
    return of_networks(TOP1, values, hits, width, next(iter(methods.values())).get("evaluated_on") or "", full_precision)


def _agreement(results: Mapping[str, Any], width: str, methods: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
    for key in ("real", "held_out"):
        kept = {name: figures[key][last] for name, figures in methods.items() if (last := _name_of_last(figures.get(key) or {}))}
        if len(kept) == len(methods):
            known = {name: answers_of(results, name, width).get(key) for name in methods}
            same = {name: [_classes(one, _name_of_last(one)) == _classes(one, FULL_PRECISION)] for name, one in known.items() if one}
            first = next(iter(kept.values()))
            images = first.get("measured_on", f"{first.get('images', '')} held-out synthetic images".strip())
            return [of_networks(AGREEMENT, {name: one["agreement"] for name, one in kept.items()}, same, width, images)]
    return []


def answers_of(results: Mapping[str, Any], method: str, width: str) -> Mapping[str, Any]:
    """The stored answers of a network (core/evaluation/answers.py); empty in runs of earlier versions."""
    return results.get(f"{ANSWERS}/{method}/{width}") or {}


def _name_of_last(networks: Mapping[str, Any]) -> str:
    return next((name for name in (TRAINED, CALIBRATED) if name in networks), "")


def _classes(answers: Mapping[str, Any], network: str) -> NDArray[np.int32]:
    return Answers.unpacked(answers[network]).classes


def of_training(answers: Mapping[str, Any]) -> Against | None:
    """How far the calibrated network is ahead of the trained one in top-1, for a network with labels and a training."""
    real = answers.get("real") or {}
    if not {LABELS, CALIBRATED, TRAINED} <= real.keys():
        return None
    before, after = (_classes(real, name) == unpacked_numbers(real[LABELS]) for name in (CALIBRATED, TRAINED))
    return next(iter(_of_hits(TRAINED, [before], [after], 1)), None)


def of_table(store: RunStore, table: Sequence[Row]) -> list[Finding]:
    """Of the rows of a comparison of methods: diversity, and top-1 by width on the seeds that all methods have."""
    found = []
    methods = compared(list(dict.fromkeys(row.method for row in table)))
    widths: dict[str, dict[str, Row]] = {}
    for row in table:
        if row.method in methods:
            widths.setdefault(row.width, {})[row.method] = row
    if widths:
        found += _similarity_of_rows(store, next(iter(widths.values())))
    for width, rows in widths.items():
        seeds = [seed for seed in next(iter(rows.values())).seeds if all(seed in row.seeds for row in rows.values())]
        hits = {name: known for name, row in rows.items() if seeds and (known := hits_of(store, row, seeds))}
        values = {name: mean(row.top1[row.seeds.index(seed)] for seed in seeds or row.seeds) for name, row in rows.items()}
        found.append(of_networks(TOP1, values, hits, width, next(iter(rows.values())).evaluated_on))
    return found


def _similarity_of_rows(store: RunStore, rows: Mapping[str, Row]) -> list[Finding]:
    """With one common seed by the bootstrap over images, with several by a paired t test over seeds."""
    seeds = [seed for seed in next(iter(rows.values())).seeds if all(seed in row.seeds for row in rows.values())]
    known: dict[str, list[Mapping[str, Any]]] = {}
    for name, row in rows.items():
        stored = [store.result(row.runs[row.seeds.index(seed)], f"diversity/{name}") for seed in seeds]
        if stored and all(stored):
            known[name] = stored
    if len(known) < len(rows):
        return []
    if len(seeds) == 1:
        finding = of_similarity({name: of_method[0] for name, of_method in known.items()})
    else:
        finding = of_batches(SIMILARITY, {name: [one["mean_similarity"] for one in of_method] for name, of_method in known.items()})
    return [finding] if finding else []
