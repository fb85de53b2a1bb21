"""A program by somebody else becomes a network of this project: checked, and kept with what has to be known of it."""

from collections.abc import Sequence
from pathlib import Path

import torch

from core.errors import ConfigError, ModelError, one_line, quoted
from core.models.checks import check_network
from core.models.full_precision import check_spec, spec_values
from core.models.importing import check_size, keep, label, not_kept
from core.models.programs.translation import ARCHITECTURE, Program, read_program, save_program
from core.models.registry import ModelSpec

_LABEL = 60  # characters of a network's name


def import_program(
    file: Path,
    *,
    out_folder: Path,
    classes: int | None = None,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    class_names: Sequence[str] | None = None,
    name: str = "",
) -> Path:
    """Reads a .pt2 program, checks it and writes it again with its spec below `out_folder`, named by its hash; returns its path.

    mean, std: of RGB in [0, 1], as the program's images are normalised, which it does not say; they have to be given. image_size: in
    pixels; None: the program's own. classes, class_names: None: as many as it has logits, called "class 0" and so on. name: what the
    file is called in messages; its path, where it is empty. What is written is made from the layers that were read: nothing else of the
    given file gets into it.
    Raises ConfigError for what has to be given and is not, ModelError when the program cannot be read, cannot be used here, or does not
    fit what is said of it; DataError when it cannot be kept.
    """
    called = name or str(file)
    check_size(file, called)
    try:
        program = read_program(file)
    except ModelError as error:
        raise ModelError(str(error).replace(str(file), called)) from error
    size = _image_size(program, image_size, called)
    for what, value in (("mean", mean), ("std", std)):
        if value is None:
            raise ConfigError(f"{called} does not say the {what} of its images: allowed is {what}, three numbers, as in training")
    assert mean is not None
    assert std is not None
    with torch.no_grad():
        width = program.network(torch.zeros(2, 3, size, size)).shape[1]
    names = class_names or [f"class {index}" for index in range(classes or width)]
    title = one_line(Path(called).stem)[:_LABEL] or "program"
    trained_on = f"not known: imported from {one_line(Path(called).name)[:200]}"
    spec = ModelSpec(title, ARCHITECTURE, tuple(names), size, tuple(mean), tuple(std), trained_on)  # type: ignore[arg-type]
    check_spec(spec_values(spec), called)
    check_network(program.network, spec, called)
    try:
        return keep(lambda path: save_program(program.network, spec, path), ".pt2", out_folder, label(spec, called))
    except OSError as error:
        raise not_kept(called, out_folder, error) from error


def _image_size(program: Program, given: int | None, called: str) -> int:
    sides = {side for side in program.image_size if side is not None}
    if given is None and len(sides) != 1:
        raise ConfigError(f"{called} does not say the size of its images ({quoted(program.image_size)}): allowed is image_size in pixels")
    size = given or sides.pop()
    if sides - {size}:
        raise ModelError(f"{called} takes images of {' x '.join(map(str, program.image_size))} pixels: allowed is that as image size")
    return size
