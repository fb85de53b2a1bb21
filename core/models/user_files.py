"""Networks of the user: checked in a process of its own (core.untrusted) before anything else reads the file. Imports no torch."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from core.errors import CoreError, ModelError
from core.files import not_stored, parents_of, sync, temporary_folder
from core.layout import NETWORKS, UPLOADS
from core.models.apart import called_apart, is_program
from core.models.registry import GivenSpec, check_size

FIND_OUT = ""  # instead of the name of an architecture


def import_network(file: Path, architecture: str, *, out_folder: Path, given: GivenSpec, name: str = "") -> Path:
    """Imports a weights file or an index of several (`core.models.importing`) or, by the ending of its name, a program
    (`core.models.programs.importing`).

    architecture: FIND_OUT for the one that the file is of. Other parameters, result and exceptions are those of `import_checkpoint` and
    `import_program`.
    """
    name = name or str(file)
    check_size(file, name)
    try:
        # what a killed process leaves must not stay in the folder
        with parents_of(out_folder / "network"), temporary_folder(out_folder, ".importing-") as temporary:
            values = {"architecture": architecture, "out_folder": str(temporary), "given": asdict(given)}
            made = Path(called_apart(f"{__name__}:import_here", file, name, architecture.partition(":")[0] or None, **values))
            target = out_folder / made.name
            # the label first, so that no network is ever without one; its notes are those of this import
            made.with_suffix(".json").replace(target.with_suffix(".json"))
            if not target.exists():
                made.replace(target)
            sync(out_folder)
    except OSError as error:
        raise not_stored(name, out_folder, error) from error
    return target


def check_checkpoint(file: Path, name: str = "") -> tuple[str, int]:
    """Name and number of classes of the network in a .safetensors file written by `pretrain`, or in a stored program.

    Raises ModelError if it cannot be read, or images cannot be generated from it.
    """
    title, classes = called_apart(f"{__name__}:check_here", file, name or str(file), "")
    return title, classes


def check_program(model: str) -> None:
    """Does `check_checkpoint` for a model name that is the path of a program, unless `import_network` stored it; nothing for other names.

    A .safetensors file needs no such check: it has no graph, and what is allocated for it has its size.
    """
    path = Path(model)
    # for a path without a file, `load_model` says what is allowed
    if is_program(model) and path.parent.parts[-2:] != (UPLOADS, NETWORKS) and os.path.isfile(path):
        check_checkpoint(path)


def import_here(file: Path, *, name: str, architecture: str, out_folder: str, given: dict[str, Any]) -> str:
    """`import_network` in the process of the file."""
    from core.models.importing import import_checkpoint
    from core.models.programs.importing import import_program

    if is_program(name):
        return str(import_program(file, out_folder=Path(out_folder), given=GivenSpec(**given), name=name))
    return str(import_checkpoint(file, architecture, out_folder=Path(out_folder), given=GivenSpec(**given), name=name))


def check_here(file: Path, *, name: str) -> tuple[str, int]:
    """`check_checkpoint` in the process of the file."""
    from core.models.checks import check_network
    from core.models.full_precision import load_model

    try:
        model = load_model(str(file), "cpu")
        check_network(model.network, model.spec, str(file))
    except CoreError as error:
        # the user knows the name of the file, not the temporary path of its copy
        raise ModelError(str(error).replace(str(file), repr(name))) from error
    return model.spec.name, len(model.spec.classes)
