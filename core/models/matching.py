"""Matches the content of a weights file with an architecture: by names, and where these differ, by order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from core.channels import MODES, for_channels
from core.errors import CoreError
from core.models.full_precision import further_names, layout_of
from core.models.ordering import by_order
from core.models.registry import ModelSpec
from core.models.state_dicts import COUNTER, check_complete, find_state_dict
from core.models.weights import check_layout, notes_of_conversion

BY_ORDER = "matched tensors by order, because their names are not those of {}"
Layout = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Matched:
    """Weights of a file under the names of an architecture.

    known: the spec of the zoo, with the channels of the file. classes: number of them in the file. notes: sentences about what was chosen,
    left out or changed. by_order: whether names differ.
    """

    known: ModelSpec
    classes: int
    weights: dict[str, Tensor]
    notes: tuple[str, ...]
    by_order: bool = False


def match(content: Any, known: ModelSpec, source: str) -> Matched:
    """The weights in the content of a file that belong to an architecture, as far as they do; `complete` says whether all are there.

    known: the spec of the zoo. source: name of the file in error messages. Raises ModelError if there are no tensors under names.
    """
    expected = layout_of(known)
    found = find_state_dict(content, expected, source)
    weights = found.weights
    if not _has_all(weights, expected):
        ordered = by_order(content, without_counters(expected), _free_dimensions(known, expected))
        if ordered is not None:
            weights, _ = ordered
            notes = (BY_ORDER.format(known.architecture), *notes_of_conversion(value.dtype for value in weights.values()))
            return _matched(weights, known, expected, notes, True)
    return _matched(weights, known, expected, found.notes, False)


def _matched(weights: dict[str, Tensor], known: ModelSpec, expected: Layout, notes: tuple[str, ...], ordered: bool) -> Matched:
    known = with_channels(known, _input_channels(weights, known, expected))
    return Matched(known, _classifier_width(weights, known), weights, notes, ordered)


def complete(weights: dict[str, Tensor], spec: ModelSpec, source: str) -> None:
    """Adds counters, and the further names of shared tensors. Raises ModelError unless the weights then are those of the network."""
    expected = layout_of(spec)
    for key in expected:
        if _is_counter(key) and (key not in weights or weights[key].ndim):  # some formats have no tensors without dimensions
            weights[key] = torch.zeros((), dtype=torch.long)
    shared = further_names(spec)  # some programs write a shared tensor once, under any of its names
    weights |= {first: weights[further] for further, first in shared.items() if further in weights and first not in weights}
    weights |= {further: weights[first] for further, first in shared.items() if first in weights and further not in weights}
    check_complete(weights, expected, source)
    check_layout({key: tuple(value.shape) for key, value in weights.items()}, expected, source, spec.architecture)


def with_channels(known: ModelSpec, channels: int) -> ModelSpec:
    """The spec for images of so many channels, normalized alike."""
    return replace(known, mean=for_channels(known.mean, channels), std=for_channels(known.std, channels))


def without_counters(layout: Layout) -> Layout:
    return {key: shape for key, shape in layout.items() if not _is_counter(key)}


def _is_counter(key: str) -> bool:
    return key.rpartition(".")[2] == COUNTER


def _has_all(weights: Mapping[str, Tensor], expected: Layout) -> bool:
    """Whether no name is missing, and every tensor has as many dimensions as expected."""
    return all(key in weights and weights[key].ndim == len(shape) for key, shape in without_counters(expected).items())


def _classifier_width(weights: Mapping[str, Tensor], known: ModelSpec) -> int:
    """Number of classes, read from a tensor whose shape depends on it; the zoo's number if the file has no such tensor."""
    count = len(known.classes)
    other = [(shape, tuple(weights[key].shape)) for key, shape in layout_of(known).items() if key in weights]
    other = [(shape, found) for shape, found in other if shape != found]
    widths = {found[0] if shape[:1] == (count,) and found[1:] == shape[1:] else 0 for shape, found in other}
    if len(widths) < 2 and 0 not in widths:  # nothing else differs, so that no other layout need be built
        return next(iter(widths), count)
    # in the bias and the weights of one or several classifiers
    return _size_that_grows(weights, layout_of(known), layout_of(_with_classes(known, 1))) or count


def _input_channels(weights: Mapping[str, Tensor], known: ModelSpec, expected: Layout) -> int:
    """Number of channels of the images, read from the first convolution; the zoo's number if the file has no such tensor."""
    kernels = {key: shape for key, shape in expected.items() if len(shape) == 4 and key in weights}
    if all(tuple(weights[key].shape) == shape for key, shape in kernels.items()):
        return known.channels
    found = _size_that_grows(weights, expected, _layout_of_other_channels(known, expected))
    return known.channels if found is None or found not in MODES else found


def _layout_of_other_channels(known: ModelSpec, expected: Layout) -> Layout:
    """The layout for another number of channels; `expected` if the architecture can only be built for the zoo's."""
    try:
        return layout_of(with_channels(known, next(channels for channels in MODES if channels != known.channels)))
    except CoreError:
        return expected


def _with_classes(known: ModelSpec, more: int) -> ModelSpec:
    return replace(known, classes=("",) * (len(known.classes) + more))


def _free_dimensions(known: ModelSpec, expected: Layout) -> dict[str, frozenset[int]]:
    """Tensor -> its dimensions whose size depends on the number of classes or channels; those that have none are left out."""
    found: dict[str, set[int]] = {}
    for other in (layout_of(_with_classes(known, 1)), _layout_of_other_channels(known, expected)):
        for key, shape in expected.items():
            changed = {index for index, (size, other_size) in enumerate(zip(shape, other.get(key, shape))) if size != other_size}
            if changed:
                found.setdefault(key, set()).update(changed)
    return {key: frozenset(dimensions) for key, dimensions in found.items()}


def _size_that_grows(weights: Mapping[str, Tensor], shapes: Layout, other_shapes: Layout) -> int | None:
    """The size in the file of the first dimension that differs between two layouts; None if the file has no such tensor."""
    for key, shape in shapes.items():
        sizes = zip(shape, other_shapes.get(key, shape))
        dimension = next((index for index, (size, other_size) in enumerate(sizes) if size != other_size), None)
        if dimension is not None and key in weights and weights[key].ndim == len(shape):
            return weights[key].shape[dimension]
    return None
