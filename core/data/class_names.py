"""Maps folder names to the classes of a network."""

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.config import AUTO_DATA, NO_DATA
from core.errors import DataError, quoted
from core.files import read_json
from core.models.registry import CIFAR10_CLASSES, CIFAR100_CLASSES, ModelSpec

# of the data sets with a name
CLASSES = {"embedded": CIFAR10_CLASSES, "cifar10": CIFAR10_CLASSES, "cifar100": CIFAR100_CLASSES}
MAPPING_FILES = ("classes.json", "class_to_idx.json")
# share of ImageNet's classes that must have their WordNet names: torchvision renamed two of 1,000
SAME_NAMES = 0.9


def class_mapping(
    folders: Sequence[str],
    spec: ModelSpec,
    source: str,
    kind: str = "folders",
    empty: Sequence[str] = (),
    notes: list[str] | None = None,
) -> list[int]:
    """Folder index -> class index of the network, by the first of these rules that applies.

    1. `classes.json` or `class_to_idx.json` in the folder `source`: {folder: class index or class name}.
    2. Every folder has the name of a class. Case is ignored, "_" equals a space, and the part of a class name before its first comma is
       enough.
    3. Every folder is a WordNet id and the network has the classes of ImageNet: class indices are in the order of the ids.
    4. Every folder is a number: the class index, from 0; or from 1, if one of them is the number of classes and none is 0.
    5. No folder has the name of a class, and there are as many folders as classes, those in `empty` included if needed: in order.

    kind: the word for the names in messages. empty: names of folders with nothing in them. notes: gets a sentence where numbers, empty
    folders or the order had to be interpreted. Raises DataError in all other cases, for a name that matches two classes, and for two
    folders of the same class: a guess would train or evaluate with wrong labels.
    """
    notes = [] if notes is None else notes
    indices = _class_mapping(folders, spec, source, kind, empty, notes)
    if not _mapping_files(Path(source)):
        notes += _order_of_unnamed(folders, indices, spec, source, kind)
    return indices


def _class_mapping(folders: Sequence[str], spec: ModelSpec, source: str, kind: str, empty: Sequence[str], notes: list[str]) -> list[int]:
    explicit = _read_mapping(Path(source))
    if explicit is not None:
        first = _first_number([value for value in explicit.values() if type(value) is int], spec, source, kind, notes)
        return [_explicit_class(folder, explicit, spec, source, first) for folder in folders]
    named = _named_classes(folders, spec, source)
    known = [index for index in named if index is not None]
    if len(known) == len(folders):
        return _each_once(folders, known, source)
    count = len(spec.classes)
    if not known or _has_only_numbers(spec):
        if all(map(is_wordnet_id, folders)) and (ids := wordnet_ids(spec)) is not None:
            return [_index_of_id(folder, ids, spec, source) for folder in folders]
        if all(re.fullmatch("[0-9]{1,9}", folder) for folder in folders):
            numbers = [int(folder) for folder in folders]
            first = _first_number([*numbers, *(int(name) for name in empty if name.isdecimal())], spec, source, kind, notes)
            outside = next((number for number in numbers if number - first >= count), None)
            if outside is not None:
                raise DataError(f"numbered {kind} of {source} must be class indices, 0 to {count - 1}, got {outside}")
            return _each_once(folders, [number - first for number in numbers], source)
    if not known:
        if len(folders) == count:
            if not _has_only_numbers(spec):
                pairs = ", ".join(f"{quoted(folder)} is {quoted(name)}" for folder, name in list(zip(folders, spec.classes))[:3])
                notes.append(f"Names of the {kind} of {source} are not those of the classes, so they are matched in order: {pairs} ...")
            return list(range(count))
        if len(folders) + len(empty) == count:
            everything = sorted([*folders, *empty])
            notes.append(
                f"Empty folders of {source} count as classes: {', '.join(map(quoted, empty[:3]))}{' ...' if len(empty) > 3 else ''}."
            )
            return [everything.index(folder) for folder in folders]
    unknown = next(folder for folder, index in zip(folders, named) if index is None)
    raise DataError(
        f"{kind} of {source} must have the names of the classes of {spec.name} ({', '.join(spec.classes[:10])}) or their numbers, "
        f"or be exactly {count} with other names, in order, got {len(folders)} {kind} with {quoted(unknown)}"
    )


def are_classes(folders: Sequence[str], spec: ModelSpec, source: str, kind: str = "folders", empty: Sequence[str] = ()) -> bool:
    """Whether folders are meant as classes of the network, so that `class_mapping` decides; otherwise their images have no labels.

    They are, if there is a list of them; if one of them has the name, the WordNet id or the number of a class, because the others may be
    misspelled; or if there are as many folders as classes. Arguments are those of `class_mapping`. Raises DataError for a name that
    matches two classes.
    """
    count = len(spec.classes)
    if kind != "folders" or _mapping_files(Path(source)) or count in (len(folders), len(folders) + len(empty)):
        return True
    if any(index is not None for index in _named_classes(folders, spec, source)):
        return True
    if any(re.fullmatch("[0-9]{1,9}", folder) and int(folder) <= count for folder in folders):
        return True
    ids = wordnet_ids(spec) if any(map(is_wordnet_id, folders)) else None
    return ids is not None and not ids.keys().isdisjoint(folders)


def is_wordnet_id(folder: str) -> bool:
    return re.fullmatch("n[0-9]{8}", folder) is not None


def _first_number(numbers: Sequence[int], spec: ModelSpec, source: str, kind: str, notes: list[str]) -> int:
    """The number of the first class, 0 or 1, where classes are numbered."""
    if 0 in numbers:
        return 0
    if len(spec.classes) not in numbers:
        notes.append(f"Numbers of the {kind} of {source} are taken to begin with 0, which is {quoted(spec.classes[0])}; none of them is 0.")
        return 0
    if wordnet_ids(spec) is not None:
        return 0  # ImageNet's own numbers begin with 1 but are in another order: no guess
    notes.append(f"Numbers of the {kind} of {source} are taken to begin with 1, which is {quoted(spec.classes[0])}.")
    return 1


def _order_of_unnamed(folders: Sequence[str], indices: Sequence[int], spec: ModelSpec, source: str, kind: str) -> list[str]:
    """A sentence where it is a guess whether "10" is the class after "9" or after "1", as alphabetical order has it: programs that train on
    folders, such as torchvision's ImageFolder, number classes in that order, and no class of this network has a name that would tell.
    """
    alphabetical = sorted(folders)
    first = next((one for one, other in zip(alphabetical, sorted(folders, key=_with_numbers)) if one != other), None)
    if first is None or kind != "folders" or not _has_only_numbers(spec):
        return []
    index = indices[folders.index(first)]
    order = "alphabetical order" if index == alphabetical.index(first) else "the order of their numbers"
    guess = f"Folders of {source} are taken to be classes in {order}: {quoted(first)} is class {index}"
    return [f"{guess}; if the network was trained with another order, write it to {MAPPING_FILES[0]} in that folder."]


def _with_numbers(name: str) -> list[Any]:
    """Key of an order in which "class10" comes after "class9"."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"([0-9]+)", name)]


def dataset_mapping(classes: Sequence[str], spec: ModelSpec) -> list[int] | None:
    """The same for a published data set: by name, or in order if the network's class names are only numbers.

    None if the classes are not those of the network.
    """
    named = [index for index in _named_classes(classes, spec, spec.name) if index is not None]
    if len(named) == len(classes):
        return named
    return list(range(len(classes))) if len(spec.classes) == len(classes) and _has_only_numbers(spec) else None


def evaluation_source(data: str, spec: ModelSpec) -> str | None:
    """What `load_evaluation_set` loads for `evaluation.data` of a run; None where the run has no evaluation images.

    `auto` is `embedded` for a network whose classes have the names of those of the embedded images, in any order.
    """
    if data == NO_DATA:
        return None
    if data == AUTO_DATA:
        return "embedded" if sorted(map(_first_synonym, spec.classes)) == sorted(CLASSES["embedded"]) else None
    return data


def wordnet_ids(spec: ModelSpec) -> dict[str, int] | None:
    """WordNet id -> class index of a network for ImageNet (1,000 classes, or one of the larger sets known to timm), or None."""
    from timm.data import ImageNetInfo, infer_imagenet_subset  # takes a second to import, and is rarely needed

    subset = infer_imagenet_subset({"num_classes": len(spec.classes)})
    if subset is None:
        return None
    info = ImageNetInfo(subset)
    ids = {key: index for index, key in enumerate(info.label_names())}
    if _has_only_numbers(spec):
        return ids
    same = sum(
        _first_synonym(name) in {_plain(synonym) for synonym in info.label_name_to_description(key).split(",")}
        for name, key in zip(spec.classes, ids)
    )
    return ids if same >= SAME_NAMES * len(ids) else None


def _plain(name: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", name).casefold().replace("_", " ").split())


def _first_synonym(name: str) -> str:
    return _plain(name.partition(",")[0])


def _has_only_numbers(spec: ModelSpec) -> bool:
    """Whether class i is named "i" or "class i", as unnamed classes are."""
    return all(re.fullmatch(f"(class )?0*{index}", _plain(name)) for index, name in enumerate(spec.classes))


def _named_classes(names: Sequence[str], spec: ModelSpec, source: str) -> list[int | None]:
    """Index of the class with each name, or None. Raises DataError if two classes match a name."""
    spellings = []
    for spelling in (str, _plain, _first_synonym):
        classes = defaultdict(list)
        for index, name in enumerate(spec.classes):
            classes[spelling(name)].append(index)
        spellings.append((spelling, classes))
    found: list[int | None] = []
    for name in names:
        indices = next((classes[key] for spelling, classes in spellings if (key := spelling(name)) in classes), [])
        if len(indices) > 1:
            both = " and ".join(f"{index} ({spec.classes[index]})" for index in indices[:2])
            raise DataError(f"every name in {source} must match a single class, {quoted(name)} matches {both}")
        found.append(indices[0] if indices else None)
    return found


def _each_once(folders: Sequence[str], indices: list[int], source: str) -> list[int]:
    first: dict[int, str] = {}
    for folder, index in zip(folders, indices):
        if (other := first.setdefault(index, folder)) != folder:
            raise DataError(f"{source} must have one folder per class, got {quoted(other)} and {quoted(folder)} for class {index}")
    return indices


def _index_of_id(folder: str, ids: dict[str, int], spec: ModelSpec, source: str) -> int:
    if folder not in ids:
        raise DataError(f"folders of {source} must be among the {len(ids):,} WordNet ids of the classes of {spec.name}, got {folder}")
    return ids[folder]


# an explicit mapping in a JSON file


def _mapping_files(folder: Path) -> list[Path]:
    # a pipe must be refused, not skipped
    return [folder / name for name in MAPPING_FILES if os.path.lexists(folder / name) and not os.path.isdir(folder / name)]


def _read_mapping(folder: Path) -> dict[str, Any] | None:
    present = _mapping_files(folder)
    if not present:
        return None
    if len(present) > 1:
        raise DataError(f"{folder} must have only one list of classes, got {' and '.join(MAPPING_FILES)}")
    try:
        mapping = read_json(present[0])
        if not isinstance(mapping, dict):
            raise ValueError(f"got {quoted(mapping)}")
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{present[0]} must be a JSON object {{folder: class index or name}}, but cannot be read ({reason})") from error
    return mapping


def _explicit_class(folder: str, mapping: dict[str, Any], spec: ModelSpec, source: str, first: int) -> int:
    """first: the number of the first class."""
    if folder not in mapping:
        raise DataError(f"folders of {source} must be in its list of classes, {quoted(folder)} is missing")
    value = mapping[folder]
    count = len(spec.classes)
    if type(value) is int and 0 <= value - first < count:
        return value - first
    named = _named_classes([value], spec, source)[0] if isinstance(value, str) else None
    if named is None:
        raise DataError(
            f"class of folder {quoted(folder)} in the list of {source} must be 0 to {count - 1} or the name of a class of {spec.name}, "
            f"got {quoted(value)}"
        )
    return named
