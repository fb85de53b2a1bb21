"""Files that go to a node through Ray's object store, and files of a run that come back in pieces."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from core import layout
from core.checkpoints import DONE, STATE
from core.config import RunConfig
from core.errors import RunError
from core.files import PARTIAL, remove, sync

PIECE = 4 << 20  # bytes that travel at once
MOST = 2 << 30  # bytes of one network or set of images that is sent; what is larger must be on the nodes
_NOT_SENT = (layout.FRAMES, layout.EXPORTS)  # of a run's folder
_ARRIVING = f".arriving{PARTIAL}"  # in a run's folder; `remove_partials` removes what a killed process left of it
# what a run reads: option -> words
_READ = {
    "model": "network", "data": "evaluation images", "encoder": "CLIP encoder", "images": "images", "real_images": "real images",
}  # fmt: skip


# to a node


@dataclass(frozen=True)
class Sent:
    """Files in the object store: path relative to `base` -> references to the pieces of its content. base: their folder here."""

    base: str
    files: Mapping[str, Sequence[Any]]

    def unpack(self, folder: Path, get: Callable[[Any], bytes]) -> None:
        """Writes the files below `folder`. get: the piece of a reference."""
        for name, pieces in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                for piece in pieces:
                    file.write(get(piece))


def send(paths: Sequence[Path], base: Path, put: Callable[[bytes], Any]) -> Sent:
    """Puts files below `base` into the object store. put: stores a piece and returns the reference to it."""
    return Sent(str(base), {path.relative_to(base).as_posix(): [put(piece) for piece in _pieces(path)] for path in paths})


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            yield piece


def inputs(config: RunConfig) -> dict[str, Path]:
    """What the run reads that is a file or folder of the user here: option -> its path."""
    evaluation, generation = config.evaluation, config.generation
    named = {
        "model": config.model,
        "data": evaluation.data if config.bits else "",
        "encoder": evaluation.encoder.partition(":")[2],
        "images": config.images_from,
        "real_images": generation.real_images if "real" in config.methods and not config.images_from else "",
    }
    return {option: Path(path) for option, path in named.items() if os.path.isabs(path)}


def moved(config: RunConfig, places: Mapping[str, str]) -> RunConfig:
    """The config with other paths of what it reads. places: option, as in `inputs` -> path."""
    values = {option: place for option, place in places.items() if option not in ("images", "encoder")}
    if "encoder" in places:
        values["encoder"] = f"{config.evaluation.encoder.partition(':')[0]}:{places['encoder']}"
    return replace(config, images_from=places.get("images", config.images_from)).with_knobs(values)


def files_of(path: Path) -> list[Path]:
    """The file with those that belong to it, such as the label of an uploaded network; or all files of a folder. Sorted."""
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    companions = [path.with_suffix(".json")] if path.suffix in (".safetensors", ".pt2") else []
    return [file for file in (path, *companions) if file.is_file()]


def files_of_run(folder: Path) -> list[Path]:
    """What a node needs of the folder of a run that is resumed."""
    return [
        path
        for path in files_of(folder)
        if path.relative_to(folder).parts[0] not in _NOT_SENT and PARTIAL not in path.name and _ARRIVING not in path.parts
    ]


def must_be_on_the_node(option: str, path: str, node: str) -> RunError:
    """The error for something that is not sent and not there."""
    what = _READ[option]
    return RunError(
        f"the {what} must be at {path!r} on node {node} or, with at most {MOST >> 30} GB, on the machine that started the run, and is at "
        "neither place"
    )


# from a node


class Changes:
    """The files below a run's folder that were written since the last look, in the order in which they were written.

    Files of a run are written under another name and renamed (core/files.py), so a link to one keeps its content.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known = self._now()

    def _now(self) -> dict[str, tuple[int, int, int]]:
        found = {}
        for path in self._folder.rglob("*"):
            if path.is_file() and not any(part.endswith(PARTIAL) for part in path.relative_to(self._folder).parts):
                status = path.stat()
                found[path.relative_to(self._folder).as_posix()] = (status.st_mtime_ns, status.st_ino, status.st_size)
        return found

    @property
    def has_resume_state(self) -> bool:
        """Whether there is a new resume state."""
        for name in (DONE, STATE):
            relative = f"{layout.CHECKPOINT}/{name}"
            path = self._folder / relative
            known = self._known.get(relative)
            if path.exists():
                status = path.stat()
                if known != (status.st_mtime_ns, status.st_ino, status.st_size):
                    return True
            elif known is not None:
                return True
        return False

    def take(self) -> tuple[list[str], list[str]]:
        """The new files, and all resume files that there are."""
        before, self._known = self._known, self._now()
        new = [name for name, status in self._known.items() if before.get(name) != status]
        last = {f"{layout.CHECKPOINT}/{name}" for name in (DONE, STATE)}  # what they name is written first
        new.sort(key=lambda name: (name in last, self._known[name][0]))
        return new, [name for name in self._known if name.startswith(f"{layout.CHECKPOINT}/")]


class Arrivals:
    """Writes the files of a run that a node sends. They come into their places together, when all of them are here.

    A process that is killed in between leaves a folder from which the run can be resumed, because the files come into their places in the
    order in which the node wrote them.

    texts: text in JSON files -> what replaces it, for the paths of the node.
    """

    def __init__(self, folder: Path, texts: Mapping[str, str]) -> None:
        self._folder = folder
        self._texts = {json.dumps(text)[1:-1].encode(): json.dumps(other)[1:-1].encode() for text, other in texts.items()}
        self._names: list[str] = []
        self._arriving = folder / _ARRIVING
        remove(self._arriving)

    def _path(self, name: str) -> Path:
        path = self._folder / name
        if not path.resolve().is_relative_to(self._folder.resolve()):
            raise RunError(f"a node must send files of the run's folder only, got {name!r}")
        return path

    def piece(self, name: str, content: bytes, is_first: bool) -> None:
        """The next piece of a file."""
        self._path(name)
        if is_first:
            self._arriving.mkdir(parents=True, exist_ok=True)
            self._names.append(name)
        with (self._arriving / str(len(self._names))).open("wb" if is_first else "ab") as file:
            file.write(content)

    def complete(self, resume_files: Sequence[str]) -> None:
        """Puts what has arrived in its places, and removes the other resume files."""
        for number, name in enumerate(self._names, start=1):
            arrived, path = self._arriving / str(number), self._path(name)
            if name.endswith(".json"):
                self._translate(arrived)
            sync(arrived)
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(arrived, path)
            sync(path.parent)
        remove(self._arriving)
        self._names = []
        resume_folder = self._folder / layout.CHECKPOINT
        for path in files_of(resume_folder) if resume_folder.is_dir() else ():
            if path.relative_to(self._folder).as_posix() not in resume_files:
                path.unlink()

    def _translate(self, path: Path) -> None:
        content = path.read_bytes()
        for text, other in self._texts.items():
            content = content.replace(text, other)
        path.write_bytes(content)


def linked(folder: Path, names: Sequence[str], to: Path) -> list[Path]:
    """The content of the files as it is now, under other names."""
    to.mkdir(parents=True, exist_ok=True)
    made = []
    for name in names:
        link = to / uuid.uuid4().hex
        try:
            os.link(folder / name, link)
        except OSError:  # a file system without links
            shutil.copyfile(folder / name, link)
        made.append(link)
    return made
