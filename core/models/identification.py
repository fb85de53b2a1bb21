"""Finds the architecture of a stranger's weights file, in a process of its own. Imports no torch.

Tensors are compared with the index of architectures (core.models.architecture_index), and the best of these are then built without
values and compared name by name (core.models.candidates). A zoo that is installed in another version than the index was made with has
other architectures: those that it lacks are left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.channels import one_or_two
from core.errors import ModelError
from core.models.apart import called_apart
from core.models.other_formats import EXPORT_LINES, WHOLE_LINES
from core.models.registry import check_size

NAME_IT = "name it with --model ZOO:NAME, or as the architecture in the Studio"
NO_ARCHITECTURE = ""  # of a file that contains its network: a program, or a checkpoint written by `pretrain`


@dataclass(frozen=True)
class Candidate:
    """An architecture that a weights file may be of, and what is known about the network then.

    architecture: "ZOO:NAME", to be given to `import_network`; NO_ARCHITECTURE for a file that contains its network. title: for people.
    fit: share of tensors that the file and the network have in common, 0 to 1; `parameters`: the same share of the numbers in them. whole:
    whether the file can be imported as this architecture. classes: number of them, read from the file. image_size: in pixels, one number
    or height and width; None if it cannot be known. mean, std: one number for each channel, of values in [0, 1]; empty if they cannot be
    known. source: where image size, mean and std come from. by_order: whether names differ, and tensors were matched by their order.
    named: whether the class names of the source are those of the file as well, as far as can be told. lacking: of the first candidate, if
    it does not fit wholly: a sentence on a part that the file lacks and every network must have; else empty.
    """

    architecture: str
    title: str
    fit: float
    whole: bool
    classes: int
    image_size: int | tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str
    channels: int = 3
    parameters: float = 1.0
    by_order: bool = False
    named: bool = True
    lacking: str = ""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Candidate":
        """The reverse of `dataclasses.asdict`, after JSON has made lists of tuples."""
        changed = {"image_size": one_or_two(values["image_size"]), "mean": tuple(values["mean"]), "std": tuple(values["std"])}
        return cls(**{**values, **changed})


@dataclass(frozen=True)
class Identified:
    """What a weights file may be, best first; at least one candidate if any tensor fits any architecture."""

    candidates: tuple[Candidate, ...]


def identify(file: Path, name: str = "") -> Identified:
    """What the network in a file may be: weights as `import_network` reads them, or a program by the ending of its name.

    name: used instead of the path in error messages, and as a hint where several architectures fit equally well.
    Raises ModelError for a file that cannot be read.
    """
    name = name or str(file)
    check_size(file, name)
    found = called_apart("core.models.candidates:identify_here", file, name)
    return Identified(tuple(map(Candidate.from_dict, found)))


def choose(candidates: Sequence[Candidate], source: str) -> list[Candidate]:
    """The candidates that fit wholly, of which the first is the one to take.

    source: name of the file. Raises ModelError, with the best ones and what to do, if there are none.
    """
    whole = [candidate for candidate in candidates if candidate.whole]
    if whole:
        return whole
    if candidates and candidates[0].lacking:
        raise ModelError(candidates[0].lacking, WHOLE_LINES)
    best = ", ".join(f"{one.architecture} ({one.fit:.0%} of the tensors)" for one in candidates[:3]) or "nothing alike"
    raise ModelError(
        f"{source} must be the weights of a network of pytorchcv, torchvision or timm, got none that fits wholly, but {best}; "
        f"{NAME_IT}, to see what differs, or export the network, a classifier, as a .pt2 program",
        EXPORT_LINES,
    )
