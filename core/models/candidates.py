"""The architectures that a file may be of, best first; called by core.models.identification in the process of the file.

The order of candidates that fit equally well: names that fit before an order that fits; an architecture that the name of the file or
the training program names (`arch` in it); one whose own weights have as many classes; torchvision before timm before pytorchcv, as most
files come from there; the shorter name; the alphabet. What tensors do not tell, such as the place of a stride, is decided by this order.
"""

from __future__ import annotations

import math
import re
from argparse import Namespace
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from core.errors import CoreError, ModelError, first_line
from core.models.apart import is_program
from core.models.architecture_index import load_index
from core.models.full_precision import layout_of, program_spec, spec_in
from core.models.identification import NO_ARCHITECTURE, Candidate
from core.models.matching import Matched, complete, match, without_counters
from core.models.ordering import STATISTICS
from core.models.other_formats import PARAMETERS_ALONE
from core.models.programs.translation import Program, read_program
from core.models.registry import ModelSpec
from core.models.shards import is_index
from core.models.state_dicts import check_complete, find_state_dict, is_beside, parts_of
from core.models.weights import read_content, read_shards
from core.models.zoos.lookup import known_spec
from core.models.zoos.zoo import numbered_classes

LISTED = 5  # architectures that are built to compare names
BUILT = 16  # so many if their shapes are all those of the file
ZOOS = ("torchvision", "timm", "pytorchcv")  # in the order of preference
IMAGENET_CLASSES = 1000  # a network with so many classes knows those of ImageNet-1k
_NAMING = ("arch", "architecture", "model", "model_name", "backbone")  # where training programs keep the name of the architecture
_SETTINGS = ("args", "hyper_parameters", "hparams", "config", "opt")
_DATA_SET = re.compile(r"_(cifar100?|svhn|cub)$")  # at the end of pytorchcv's names
_SIZES = (224, 64, 32)  # pixels, tried with a program that accepts several sizes


@dataclass(frozen=True)
class Possible:
    """A candidate, and the weights of the file under its names."""

    candidate: Candidate
    matched: Matched


def identify_here(file: Path, *, name: str) -> list[dict[str, Any]]:
    """What a file may be, best first: candidates as dictionaries. Raises ModelError if it cannot be read."""
    if is_program(name):
        return [asdict(_of_program(file, name))]
    spec = spec_in(file)
    if spec is not None:
        return [asdict(contained(spec))]
    return [asdict(one.candidate) for one in of_content(read_weights_file(file, name), name)]


def read_weights_file(file: Path, name: str) -> Any:
    """The content of a weights file, or of all files that an index names. Raises ModelError."""
    return (read_shards if is_index(file) else read_content)(file, name)


def of_content(content: Any, source: str) -> list[Possible]:
    """The architectures of the installed zoos that the content of a weights file may be of, best first; empty if no tensor fits any.

    source: name of the file. Raises ModelError if there are no tensors under names.
    """
    find_state_dict(content, {}, source)  # refuses what is no network to start from
    groups = [Counter(tuple(value.shape) for value in tensors.values()) for _, tensors in parts_of(content)]
    if not groups:
        return []
    hints = _hints(content, source)
    likely = sorted(load_index().likely(groups, LISTED), key=lambda one: (-one[1], *_preference(one[0], hints)))
    found: list[Possible] = []
    for architecture, share in likely:
        if len(found) >= BUILT or (share < 1 and (len(found) >= LISTED or any(one.candidate.whole for one in found))):
            break
        try:
            found.append(_compared(content, known_spec(architecture), share, hints, source))
        except CoreError:  # another version of the zoo, which lacks it or cannot build it
            continue
    found.sort(key=lambda one: _rank(one, hints))
    if found and not found[0].candidate.whole:
        found[0] = replace(found[0], candidate=replace(found[0].candidate, lacking=_lacking(content, found[0].matched, source)))
    return found


def _lacking(content: Any, best: Matched, source: str) -> str:
    """A sentence if no architecture fits because the file lacks a part that every network must have; else empty."""
    if not any(name.rpartition(".")[2] in STATISTICS for _, tensors in parts_of(content) for name in tensors):
        return f"{source} {PARAMETERS_ALONE}"
    try:
        check_complete(best.weights, layout_of(spec_of(best)), source)
    except ModelError as error:
        return str(error)
    return ""


def _compared(content: Any, known: ModelSpec, share: float, hints: str, source: str) -> Possible:
    """The content as one architecture. share: of the tensors, by their shapes alone."""
    matched = match(content, known, source)
    spec = spec_of(matched)
    expected = without_counters(layout_of(spec))
    weights = {key: value for key, value in matched.weights.items() if not is_beside(key, value)}
    fits = [key for key, shape in expected.items() if key in weights and tuple(weights[key].shape) == shape]
    numbers = max(sum(map(math.prod, expected.values())), sum(value.numel() for value in weights.values()))
    tensors = len(fits) / max(len(expected), len(weights))
    by_names = tensors >= share
    whole = is_complete(matched, spec, source)
    candidate = Candidate(
        architecture=known.architecture,
        title=_title(known),
        fit=1.0 if whole else max(tensors, share),
        whole=whole,
        classes=matched.classes,
        image_size=spec.image_size,
        mean=spec.mean,
        std=spec.std,
        source=f"weights of {known.architecture.partition(':')[0]}",
        channels=spec.channels,
        parameters=1.0 if whole else sum(math.prod(expected[key]) for key in fits) / numbers if by_names else share,
        by_order=matched.by_order,
        named=len(known.classes) == matched.classes and (matched.classes == IMAGENET_CLASSES or _hinted(known.architecture, hints) > 0),
    )
    return Possible(candidate, matched)


def is_complete(matched: Matched, spec: ModelSpec, source: str) -> bool:
    """Whether the weights are those of the network, all of them and no others."""
    try:
        complete(matched.weights, spec, source)
    except ModelError:
        return False
    return True


def spec_of(matched: Matched) -> ModelSpec:
    """The spec of the zoo with the number of classes of the file, and names for them if it is the zoo's."""
    known, count = matched.known, matched.classes
    return known if len(known.classes) == count else replace(known, classes=numbered_classes(count))


def contained(spec: ModelSpec) -> Candidate:
    """The candidate for a file that contains the spec of its network."""
    return Candidate(
        architecture=NO_ARCHITECTURE,
        title=spec.name,
        fit=1.0,
        whole=True,
        classes=len(spec.classes),
        image_size=spec.image_size,
        mean=spec.mean,
        std=spec.std,
        source="the file",
        channels=spec.channels,
    )


def _of_program(file: Path, source: str) -> Candidate:
    try:
        spec = program_spec(file)
        if spec is not None:
            return contained(spec)
        program = read_program(file)
        classes = _classes_of(program, source)
    except ModelError as error:
        raise ModelError(str(error).replace(str(file), source)) from error
    height, width = program.image_size
    sides = (height or width, width or height)
    size = None if None in sides else sides[0] if sides[0] == sides[1] else sides
    return Candidate(
        architecture=NO_ARCHITECTURE,
        title="a program of torch.export",
        fit=1.0,
        whole=True,
        classes=classes,
        image_size=size,  # type: ignore[arg-type]
        mean=(),
        std=(),
        source="the file, which has no mean and std",
        channels=program.channels,
        named=False,
    )


@torch.no_grad()
def _classes_of(program: Program, source: str) -> int:
    """Width of the output of a program."""
    height, width = program.image_size
    reason = ""
    for side in _SIZES:
        try:
            return program.network(torch.zeros(2, program.channels, height or width or side, width or height or side)).shape[1]
        except (RuntimeError, ValueError, IndexError) as error:
            reason = first_line(error)
    raise ModelError(f"{source} must be a program for square images of {' or '.join(map(str, _SIZES))} pixels, got {reason}")


def _rank(one: Possible, hints: str) -> tuple[Any, ...]:
    candidate, known = one.candidate, one.matched.known
    ordered, others = candidate.by_order, candidate.classes != len(known.classes)
    hinted, *rest = _preference(candidate.architecture, hints)
    return (not candidate.whole, -round(candidate.fit, 6), -round(candidate.parameters, 6), ordered, hinted, others, *rest)


def _preference(architecture: str, hints: str) -> tuple[int, int, int, str]:
    """Sorts architectures of the same shapes, as the top of this file says."""
    zoo, _, name = architecture.partition(":")
    return (-_hinted(architecture, hints), ZOOS.index(zoo), len(_DATA_SET.sub("", name)), name)


def _hinted(architecture: str, hints: str) -> int:
    """Length of the name of an architecture that is among the hints; 0 if it is not."""
    name = architecture.partition(":")[2].lower()
    return len(name) if re.search(rf"(?<![a-z0-9]){re.escape(name)}(?![a-z0-9])", hints) else 0


def _hints(content: Any, source: str) -> str:
    """Name of the file, and what the training program wrote of the architecture's name."""
    values = [Path(source).name]
    places = [content, *(content.get(name) for name in _SETTINGS)] if isinstance(content, Mapping) else []
    for place in places:
        settings = vars(place) if isinstance(place, Namespace) else place if isinstance(place, Mapping) else {}
        values += [value[:200] for name in _NAMING if isinstance(value := settings.get(name), str)]
    return " ".join(values).lower()


def _title(known: ModelSpec) -> str:
    zoo, _, name = known.architecture.partition(":")
    return f"{name} of {zoo}"
