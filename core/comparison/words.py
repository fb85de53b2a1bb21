"""Findings of `verdict` in sentences. Imports no torch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from core.comparison.verdict import (
    AGREEMENT,
    BNS,
    BOOTSTRAP,
    LOWER_IS_BETTER,
    MCNEMAR,
    RECOGNIZED,
    SEEDS,
    SIMILARITY,
    T_TEST,
    TOP1,
    Against,
    Finding,
    pairs,
)

Title = Callable[[str], str]  # of a method
_TESTS = {BOOTSTRAP: "bootstrap over images", MCNEMAR: "McNemar", SEEDS: "bootstrap over images and seeds", T_TEST: "t test over {count}"}


@dataclass(frozen=True)
class _Quantity:
    """name: before its values. digits, unit: of a value. ahead: what the best is, before "than"; most: among several; points: unit of a
    difference. equal: what those that do not differ measurably are alike in.
    """

    name: str
    digits: int
    unit: str
    ahead: str
    most: str
    equal: str
    points: str = ""
    over: str = "batches"  # which a t test is over


_QUANTITIES = {
    BNS: _Quantity("L_BNS", 1, "", "match the running statistics better", "match the running statistics best", "in L_BNS"),
    RECOGNIZED: _Quantity(
        "recognized by the network", 1, " %", "are recognized by the network more often", "are recognized most often",
        "in how often the network recognizes them", " points",
    ),
    SIMILARITY: _Quantity("CLIP similarity", 3, "", "are more diverse", "are the most diverse", "in diversity", over="seeds"),
    TOP1: _Quantity("top-1", 2, " %", "are better", "are best", "in top-1", " points"),
    AGREEMENT: _Quantity(
        "agreement with full precision", 2, " %", "agree more with full precision", "agree most with full precision",
        "in how often they agree with full precision", " points",
    ),
}  # fmt: skip


def sentences(findings: Sequence[Finding], title: Title) -> list[str]:
    """A sentence for each finding; networks of several widths with the same outcome share one."""
    said = [_of_images(found, title) for found in findings if not found.width]
    groups: dict[tuple, list[Finding]] = {}
    for found in findings:
        if found.width:
            groups.setdefault(_outcome(found), []).append(found)
    for group in groups.values():
        # top-1 is on the evaluation images; agreement may be on held-out ones
        where = f", on {group[0].images}" if group[0].quantity == AGREEMENT else ""
        said.append(_of_networks(group, title) + where)
    return said


def training_lowered(width: str, method: str, before: Against, title: Title) -> str:
    """A sentence for `verdict.of_training` where the calibrated network is ahead."""
    return (
        f"{_bits(width)[0].upper()}{_bits(width)[1:]}, training on images of {title(method)} lowered top-1 by {before.value:.2f} points "
        f"({_p(before)}): try a smaller training_lr or more images"
    )


def _of_images(found: Finding, title: Title) -> str:
    kind, names = _QUANTITIES[found.quantity], [title(name) for name in found.values]
    images = _joined([*names[:-1], f"{names[-1]} images"] if len(names) > 1 else [f"{names[0]} images"])
    if len(names) == 1:
        error = (found.errors or {}).get(found.best)
        count = f"{found.count:,} {kind.over if found.quantity != SIMILARITY else 'images'}" if found.count > 1 else "one batch"
        return f"{images}: {kind.name} {_value(found, found.best)}" + (f" ± {error:.{kind.digits}f}" if error else "") + f" ({count})"
    values = " against ".join(_value(found, name) for name in found.values)
    if not found.against:
        needs = "a test needs two batches" if found.count == 1 else "the run did not store what a test needs"
        return f"{kind.name[0].upper()}{kind.name[1:]} of {images}: {values} (not tested: {needs})"
    if len(names) == 2:
        (other,) = found.against
        evidence = f"{kind.name} {values}; {_evidence(found, other)}"
        if other.is_ahead:
            return f"{names[0]} images {kind.ahead} than {names[1]}'s ({evidence})"
        return f"{images} do not differ measurably {kind.equal} ({evidence})"
    return _of_several(found, title, f"{names[0]} images {kind.most}", f"{images} do not differ measurably {kind.equal}")


def _of_several(found: Finding, title: Title, leads: str, equal: str) -> str:
    """More than two methods. leads: the clause of the best one; equal: if no method is measurably behind it."""
    kind = _QUANTITIES[found.quantity]
    listed = lambda names: _joined([f"{title(name)} {_value(found, name)}" for name in names])  # noqa: E731
    behind, alike = ([other.method for other in found.against if other.is_ahead is ahead] for ahead in (True, False))
    untested = [name for name in found.values if name != found.best and name not in (*behind, *alike)]
    count = pairs(found.values)
    if not behind and not untested:
        least = min(other.p for other in found.against)
        return f"{equal} ({kind.name} {listed(found.values)}; {_test(found)}, smallest p = {least:.2g} after correction for {count} pairs)"
    clauses = [f"{leads if behind and not alike else _value_first(found, title)} ({kind.name} {_value(found, found.best)})"]
    if alike:
        clauses.append(f"{listed(alike)} {'does' if len(alike) == 1 else 'do'} not differ measurably from it")
    if behind:
        largest = max(other.p for other in found.against if other.is_ahead)
        clauses.append(
            f"{listed(behind)} {'is' if len(behind) == 1 else 'are'} measurably behind ({_test(found)}, {_p_of(largest, 'p')} after "
            f"correction for {count} pairs)"
        )
    if untested:
        clauses.append(f"not tested: {listed(untested)}")
    return "; ".join(clauses)


def _value_first(found: Finding, title: Title) -> str:
    return f"{title(found.best)} has the {'lowest' if found.quantity in LOWER_IS_BETTER else 'highest'} value"


def _outcome(found: Finding) -> tuple:
    """Findings of the same outcome share a sentence: two networks that do not differ, or one without a comparison."""
    if len(found.values) == 1:
        return found.quantity, found.below is not None, "one"
    if len(found.values) == 2 and found.against:
        return (found.quantity, found.best, "ahead") if found.against[0].is_ahead else (found.quantity, "alike")
    return found.quantity, found.width


def _of_networks(group: Sequence[Finding], title: Title) -> str:
    first, kind = group[0], _QUANTITIES[group[0].quantity]
    if len(first.values) == 1:
        return "; ".join(_alone(found, title, position == 0) for position, found in enumerate(group))
    if len(first.values) == 2 and first.against:
        widths = _joined([f"{_bits(found.width, 'at ' if found is first else '')} ({_pair(found, title)})" for found in group])
        outcome = f"networks trained on {title(first.best)} images {kind.ahead} than {title(first.against[0].method)}'s"
        if not first.against[0].is_ahead:
            names = _joined([title(name) for name in sorted(first.values, key=list(first.values).index)])
            outcome = f"the networks trained on images of {names} do not differ measurably {kind.equal}"
        return f"{widths[0].upper()}{widths[1:]}, {outcome}"
    start = _bits(first.width, "At ")
    if not first.against:
        return f"{start}: {kind.name} {_joined([f'{title(name)} {_value(first, name)}' for name in first.values])} (not tested: {_WHY})"
    equal = "the networks do not differ measurably " + kind.equal
    return f"{start}, {_of_several(first, title, f'networks trained on {title(first.best)} images {kind.most}', equal)}"


_WHY = "the run did not store which images each network gets right"


def _alone(found: Finding, title: Title, is_first: bool) -> str:
    """One network; with its distance to full precision, if known."""
    value = _value(found, found.best)
    start = _bits(found.width, "At " if is_first else "at ")
    if found.quantity == AGREEMENT or found.below is None:
        return f"{start}, {_QUANTITIES[found.quantity].name} {value}"
    below = found.below
    if not below.is_ahead:
        return f"{start}, the network does not differ measurably from full precision (top-1 {value}, {_points(below)}, {_p(below)})"
    evidence = f"top-1 {value}, difference {abs(below.value):.2f} points, {_interval(found, below)}, {_p(below)}"
    return f"{start}, the network is measurably {'worse' if below.value > 0 else 'better'} than full precision ({evidence})"


def _pair(found: Finding, title: Title) -> str:
    (other,) = found.against
    values = f"{title(found.best)} {_value(found, found.best)}, {title(other.method)} {_value(found, other.method)}"
    return f"{values}; {_evidence(found, other)}" if other.is_ahead or other.test != MCNEMAR else f"{values}; {_p(other)}"


def _evidence(found: Finding, other: Against) -> str:
    """The test, the difference with its interval, and p where the interval is of another method."""
    kind = _QUANTITIES[found.quantity]
    test = _p(other) if other.test == MCNEMAR else _test(found)
    return f"{test}: difference {other.value:.{kind.digits}f}{kind.points}, {_interval(found, other)}"


def _test(found: Finding) -> str:
    count = f"{found.count} {_QUANTITIES[found.quantity].over}"
    return _TESTS[found.against[0].test].format(count=count)


def _interval(found: Finding, other: Against) -> str:
    digits = _QUANTITIES[found.quantity].digits
    return f"95 % {other.low + 0.0:.{digits}f} to {other.high + 0.0:.{digits}f}"


def _points(below: Against) -> str:
    return f"{abs(below.value):.2f} points {'below' if below.value >= 0 else 'above'}"


def _p(other: Against) -> str:
    return _p_of(other.p, f"{_TESTS[other.test]} p")


def _p_of(p: float, name: str) -> str:
    return f"{name} < 0.001" if p < 0.001 else f"{name} = {p:.{2 if p >= 0.1 else 3}g}"


def _value(found: Finding, method: str) -> str:
    kind = _QUANTITIES[found.quantity]
    return f"{found.values[method]:.{kind.digits}f}{kind.unit}"


def _bits(width: str, before: str = "at ") -> str:
    """W4A4 as "at 4 bits"; other widths by their name."""
    weights, _, activations = width.removeprefix("W").partition("A")
    return f"{before}{weights} bits" if weights == activations else f"{before}{width}"


def _joined(parts: Sequence[str] | Mapping[str, float]) -> str:
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else str(last)
