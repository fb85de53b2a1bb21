"""Matches tensors by their order, where a network has the shapes of an architecture and names of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from core.models.state_dicts import parts_of

# a layer's own names for what torch calls weight, bias, running_mean and running_var, in torch's order
_LAST_NAMES = (
    ("weight", "gamma", "kernel", "scale"),
    ("bias", "beta", "offset"),
    ("running_mean", "moving_mean", "mean"),
    ("running_var", "moving_variance", "moving_var", "var", "variance"),
)
STATISTICS = frozenset(name for names in _LAST_NAMES[2:] for name in names)
_PLACE = {name: place for place, names in enumerate(_LAST_NAMES) for name in names}
_DIGITS = re.compile(r"(\d+)")


def by_order(
    content: Any, expected: Mapping[str, Sequence[int]], free: Mapping[str, frozenset[int]]
) -> tuple[dict[str, Tensor], str] | None:
    """The tensors of the first part of a file that has as many as are expected, of the expected shapes in the expected order, under the
    expected names; and the label of that part. None if no part has.

    expected: name -> shape, without counters. free: dimensions of a tensor that may have any size. Within a layer, the order is torch's:
    safetensors files have it in alphabetical order, and their layers in the order of the numbers in their names.
    """
    wanted = _in_torch_order([(name, tuple(shape)) for name, shape in expected.items()])
    for label, tensors in parts_of(content):
        if len(tensors) != len(wanted):
            continue
        for names in (list(tensors), sorted(tensors, key=_with_numbers)):
            given = _in_torch_order([(name, tuple(tensors[name].shape)) for name in names])
            if all(_alike(one, other, free) for one, other in zip(wanted, given)):
                return {name: tensors[own] for (name, _), (own, _) in zip(wanted, given)}, label
    return None


def _alike(wanted: tuple[str, tuple[int, ...]], given: tuple[str, tuple[int, ...]], free: Mapping[str, frozenset[int]]) -> bool:
    name, shape = wanted
    own, own_shape = given
    places = [_PLACE.get(one.rpartition(".")[2]) for one in (name, own)]
    if len(shape) != len(own_shape) or (None not in places and places[0] != places[1]):
        return False
    return all(size == own_size or index in free.get(name, ()) for index, (size, own_size) in enumerate(zip(shape, own_shape)))


def _in_torch_order(tensors: Sequence[tuple[str, tuple[int, ...]]]) -> list[tuple[str, tuple[int, ...]]]:
    """Tensors in their order, those of one layer in the order of _LAST_NAMES."""
    ordered: list[tuple[str, tuple[int, ...]]] = []
    for layer in _layers(tensors):
        known = all(name.rpartition(".")[2] in _PLACE for name, _ in layer)
        ordered += sorted(layer, key=lambda one: _PLACE[one[0].rpartition(".")[2]]) if known else layer
    return ordered


def _layers(tensors: Sequence[tuple[str, tuple[int, ...]]]) -> Iterator[list[tuple[str, tuple[int, ...]]]]:
    """Runs of tensors whose names differ in the last part alone."""
    run: list[tuple[str, tuple[int, ...]]] = []
    for name, shape in tensors:
        layer, dot, _ = name.rpartition(".")
        if run and not (dot and run[-1][0].rpartition(".")[0] == layer):
            yield run
            run = []
        run.append((name, shape))
    yield run


def _with_numbers(name: str) -> list[Any]:
    """Key of an order in which "layer10" comes after "layer9"."""
    return [int(part) if part.isdecimal() else part for part in _DIGITS.split(name)]
