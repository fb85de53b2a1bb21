"""Imports a `torch.export` program: checks it and stores it together with its spec."""

from pathlib import Path

import torch

from core.channels import one_or_two
from core.errors import ConfigError, ModelError, one_line, quoted
from core.files import not_stored
from core.models.checks import check_network
from core.models.full_precision import IMAGE_SIZES, check_spec, is_image_size, spec_values
from core.models.importing import LABEL_LENGTH, check_normalization, label, one_for_each, store
from core.models.programs.export import save_program
from core.models.programs.translation import Program, read_program
from core.models.registry import GivenSpec, ModelSpec, check_size

ARCHITECTURE = "program"  # `ModelSpec.architecture` of a network that can only be built from its file


def import_program(file: Path, *, out_folder: Path, given: GivenSpec, name: str = "") -> Path:
    """Reads and checks a .pt2 program, and writes it with its spec below `out_folder`, named by its hash; returns the new path.

    given: mean and std are required, because a program does not contain its normalization; image_size only if the program accepts
    several sizes. classes and class_names default to as many as the program has logits, named "class 0" and so on. name: used instead of
    the path in error messages. The stored program is written from the translated layers, so nothing else of the given file gets into it.
    Raises ConfigError for a missing value, ModelError if the program cannot be read or used or contradicts a given value, DataError
    if it cannot be stored.
    """
    source = name or str(file)
    check_size(file, source)
    try:
        program = read_program(file)
    except ModelError as error:
        raise ModelError(str(error).replace(str(file), source)) from error
    size = _image_size(program, given, source)
    for key, value in (("mean", given.mean), ("std", given.std)):
        if value is None:
            raise ConfigError(f"{key} must be given for {source}: {one_for_each(program.channels)}, as used in training")
    check_normalization(given, program.channels, source)
    assert given.mean is not None
    assert given.std is not None
    with torch.no_grad():
        width = program.network(torch.zeros(2, program.channels, *size)).shape[1]
    names = given.class_names or [f"class {index}" for index in range(given.classes or width)]
    title = one_line(Path(source).stem)[:LABEL_LENGTH] or "program"
    trained_on = f"unknown: imported from {one_line(Path(source).name)[:200]}"
    spec = ModelSpec(title, ARCHITECTURE, tuple(names), size, tuple(given.mean), tuple(given.std), trained_on)  # type: ignore[arg-type]
    check_spec(spec_values(spec), source)
    notes = (*program.notes, *check_network(program.network, spec, source))
    try:
        return store(lambda path: save_program(program.network, spec, path), ".pt2", out_folder, label(spec, source), notes)
    except OSError as error:
        raise not_stored(source, out_folder, error) from error


def _image_size(program: Program, given: GivenSpec, source: str) -> tuple[int, int]:
    """Height and width of the images: the given ones, otherwise those of the program; a side that is missing is as long as the other."""
    wanted = one_or_two(given.image_size)
    if wanted is not None and not is_image_size(wanted):
        raise ModelError(f"image_size of {source} must be {IMAGE_SIZES}, got {quoted(wanted)}")
    height, width = wanted if isinstance(wanted, tuple) else (wanted, wanted)
    known = height or program.image_size[0], width or program.image_size[1]
    size = known[0] or known[1], known[1] or known[0]
    if size[0] is None or size[1] is None:
        raise ConfigError(f"image_size must be given for {source}, whose program accepts several ({quoted(program.image_size)})")
    if any(side not in (None, own) for side, own in zip(program.image_size, size)):
        accepted = " x ".join("any" if side is None else str(side) for side in program.image_size)
        raise ModelError(f"image size of {source} must be {accepted} pixels, got {' x '.join(map(str, size))}")
    return size[0], size[1]
