"""Finds the weights of a network in what a training program saved.

Training programs save more than a state dict, under names of their own: several copies of the network (student and teacher, an
exponential moving average), wrappers that add a prefix, losses, optimizers, counters. The names that the network expects tell what
is what.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.errors import ModelError, quoted
from core.models.other_formats import ALLOWED, PARAMETERS_ALONE, WHOLE_LINES
from core.models.reparametrized import with_computed_weights
from core.models.weights import check_not_quantized, first_names, notes_of_conversion, read_content

COUNTER = "num_batches_tracked"  # BatchNorm layers have it since torch 0.4.1, and do not use it in evaluation mode
_STATISTICS = ("running_mean", "running_var")
_DEPTH = 4  # mappings inside each other
_MAPPINGS = 10_000  # looked at
_PREFIXES = 100  # looked at in each mapping
_SMALL = 10  # a part with so many times fewer tensors than the largest is no network
_SAMPLE = 8  # names that prefixes are found with
_LEFTOVERS = ("total_ops", "total_params")  # of profilers
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")  # parts of names, added by torch.compile and others
_AVERAGED = re.compile(r"ema|average|avg|swa|teacher|shadow", re.IGNORECASE)


@dataclass(frozen=True)
class Found:
    """Name -> tensor, the names being those of the network as far as possible; and sentences about what was chosen, left out or changed."""

    weights: dict[str, Tensor]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Candidate:
    """The tensors of one mapping whose names begin with a prefix. label: how the user knows them. covered: expected names among them."""

    values: Mapping[str, Any]
    prefix: str
    label: str
    covered: int

    @property
    def is_averaged(self) -> bool:
        return bool(_AVERAGED.search(self.label))


def find_state_dict(content: Any, expected: Mapping[str, Any], source: str) -> Found:
    """The weights of a network with the tensors `expected` (name -> anything) in the content of a file.

    Of several copies that fit equally well, the averaged one is taken, else the first. Leaves out what lies beside the network (losses,
    counters, other copies), and renames a classifier that was put in place of the original one. What is inside the network and not
    expected stays, so that the caller can refuse it. source: name of the file, for errors.
    Raises ModelError if there are no tensors under names.
    """
    candidates = [candidate for label, values in _mappings(content) for candidate in _candidates(label, values, expected)]
    if not candidates:
        found = quoted(content) if isinstance(content, Mapping) else type(content).__name__
        raise ModelError(f"{source} must be {ALLOWED}, got {found}")
    # the first of several that are alike; if none fits, the largest, whose names say most about what it is
    best = max(candidates, key=lambda one: (one.covered, one.is_averaged) if one.covered else (0, len(one.values)))
    notes = []
    equal = [one.label for one in candidates if one.covered == best.covered and one.label != best.label]
    if equal and best.covered:
        notes.append(f"took {best.label or 'the file itself'}; {first_names(equal)} would fit as well")
    inside = {key[len(best.prefix) :]: value for key, value in best.values.items() if key.startswith(best.prefix)}
    _check_tensors(inside, source)
    weights, renamed = _with_original_head(inside, expected)
    if renamed:
        notes.append(renamed)
    tops = {key.partition(".")[0] for key in expected}
    beside = [key for key in weights if key not in expected and (key.partition(".")[0] not in tops or _last(key) in _LEFTOVERS)]
    if best.covered:
        weights = {key: value for key, value in weights.items() if key not in beside}
        left_out = [*(best.prefix + key for key in beside), *_outside(best, candidates)]
        if left_out:
            notes.append(f"left out {first_names(left_out)}")
    tensors = {key: value for key, value in weights.items() if isinstance(value, Tensor)}
    return Found(tensors, (*notes, *notes_of_conversion(value.dtype for value in tensors.values())))


def count_tensors(path: Path, *, name: str) -> int:
    """The number of tensors in a file of weights, whatever their names; for `core.untrusted.check_apart`. Raises ModelError."""
    return len(find_state_dict(read_content(path, name), {}, name).weights)


def _mappings(content: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Label and content of each mapping that has tensors under names, outermost first."""
    waiting = [("", content, 0)]
    for _ in range(_MAPPINGS):
        if not waiting:
            return
        label, value, depth = waiting.pop(0)
        if isinstance(value, (list, tuple)):  # such as (state dict, epoch)
            value = {str(place): inner for place, inner in enumerate(value[:_MAPPINGS]) if isinstance(inner, Mapping)}
        if not isinstance(value, Mapping):
            continue
        named = with_computed_weights({_unwrapped(key): inner for key, inner in value.items() if isinstance(key, str)})
        if any(isinstance(inner, Tensor) for inner in named.values()):
            yield label, named
        if depth < _DEPTH:
            inside = [(key, inner) for key, inner in named.items() if isinstance(inner, (Mapping, list, tuple))]
            waiting += [(f"{label}.{key}".lstrip("."), inner, depth + 1) for key, inner in inside]


def parts_of(content: Any) -> list[tuple[str, dict[str, Tensor]]]:
    """Label and tensors of each part of a file that may be a network: each mapping, and the tensors of it whose names begin alike.

    Without counters and profilers' leftovers, in the order of the file; averaged copies come first, small parts are left out.
    """
    found = []
    for label, values in _mappings(content):
        tensors = {key: value for key, value in values.items() if isinstance(value, Tensor) and not is_beside(key, value)}
        sizes: Counter[str] = Counter({"": len(tensors)})
        for key in tensors:
            parts = key.split(".")[:-1][:_DEPTH]
            sizes.update(".".join(parts[: end + 1]) + "." for end in range(len(parts)))
        for prefix, _ in sizes.most_common(_PREFIXES):
            inside = {key: value for key, value in tensors.items() if key.startswith(prefix)}
            found.append((f"{label}.{prefix}".strip("."), inside))
    most = max((len(tensors) for _, tensors in found), default=0)
    large = [(label, tensors) for label, tensors in found if len(tensors) > most // _SMALL]
    return sorted(large, key=lambda part: not _AVERAGED.search(part[0]))


def is_beside(key: str, value: Tensor) -> bool:
    """Whether a tensor is a counter, under whatever name, or what a profiler left."""
    return _last(key) in (*_LEFTOVERS, COUNTER) or (value.ndim == 0 and not value.is_floating_point())


def _unwrapped(key: str) -> str:
    """Without the parts that torch.compile, FSDP and checkpointing of activations add to names."""
    return ".".join(part for part in key.split(".") if part not in _WRAPPERS) if any(part in key for part in _WRAPPERS) else key


def _candidates(label: str, values: Mapping[str, Any], expected: Mapping[str, Any]) -> list[_Candidate]:
    names = [name for name in expected if _last(name) != COUNTER]
    sample = names[:: max(1, len(names) // _SAMPLE)]
    prefixes = Counter(
        key[: -len(name)]
        for name in sample
        for key in values
        if key.endswith(name) and (len(key) == len(name) or key[-len(name) - 1] == ".")
    )
    found = dict.fromkeys(["", *(prefix for prefix, _ in prefixes.most_common(_PREFIXES))])
    return [
        _Candidate(values, prefix, f"{label}.{prefix}".strip("."), sum(isinstance(values.get(prefix + name), Tensor) for name in names))
        for prefix in found
    ]


def _outside(best: _Candidate, candidates: Iterable[_Candidate]) -> list[str]:
    """Names of tensors beside those with the prefix, such as weights of a loss; counters and other copies of the network excepted."""
    copies = tuple(one.prefix for one in candidates if one.values is best.values and one.covered == best.covered)
    return [
        key
        for key, value in best.values.items()
        if isinstance(value, Tensor) and not key.startswith(copies) and (value.ndim or value.is_floating_point())
    ]


def _check_tensors(values: Mapping[str, Any], source: str) -> None:
    """Raises ModelError for tensors that are not plain ones, and if this is a network that is quantized already."""
    check_not_quantized(values, source)
    for key, value in values.items():
        if isinstance(value, Tensor) and (value.layout is not torch.strided or value.is_quantized):
            raise ModelError(f"{source} must contain only plain tensors under names, got {quoted(value)} under {quoted(key)}")


def _with_original_head(weights: Mapping[str, Any], expected: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Renames the only linear layer that is not expected to the only one that is missing: a classifier that was replaced, for example by
    Sequential(Dropout, Linear). The second value says so; empty if nothing was renamed.
    """
    missing = {key for key in expected if key not in weights and _last(key) != COUNTER}
    heads = {key.removesuffix(".weight") for key in missing if key.endswith(".weight")}
    linear = [key.removesuffix(".weight") for key, value in weights.items() if key not in expected and _is_matrix(key, value)]
    head = next(iter(heads), "")
    if len(heads) != 1 or len(linear) != 1 or not missing <= {f"{head}.weight", f"{head}.bias"}:
        return dict(weights), ""
    new = {f"{linear[0]}.{part}": f"{head}.{part}" for part in ("weight", "bias")}
    return {new.get(key, key): value for key, value in weights.items()}, f"took the layer {linear[0]} for {head}"


def _is_matrix(key: str, value: Any) -> bool:
    return key.endswith(".weight") and isinstance(value, Tensor) and value.ndim == 2


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def check_complete(weights: Mapping[str, Tensor], expected: Mapping[str, Any], source: str) -> None:
    """Raises ModelError, with lines to paste, for weights that lack the running statistics or the classifier and nothing else."""
    missing = sorted(key for key in expected if key not in weights and _last(key) != COUNTER)
    if missing and all(_last(key) in _STATISTICS for key in missing):
        raise ModelError(f"{source} {PARAMETERS_ALONE}: missing {first_names(missing)}", WHOLE_LINES)
    head = list(expected)[-1].rpartition(".")[0] + "."
    if missing and weights and all(key.startswith(head) for key in missing) and not any(key.startswith(head) for key in weights):
        raise ModelError(
            f"{source} must have a classifier, got a network without its last layer: missing {first_names(missing)}", WHOLE_LINES
        )
