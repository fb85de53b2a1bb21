"""A program by somebody else becomes a network of this project: checked, and written with what has to be known of it."""

from collections.abc import Sequence
from pathlib import Path

from core.errors import ConfigError, ModelError
from core.models.checks import check_network
from core.models.full_precision import check_spec
from core.models.program import ARCHITECTURE, read_program, save_program
from core.models.registry import ModelSpec


def import_program(
    path: Path,
    *,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    class_names: Sequence[str],
    out: Path,
) -> Path:
    """Reads a .pt2 program, checks it and writes it again with its spec, so that `out` is a model's name; returns `out`.

    image_size: pixels, height and width. mean, std: of RGB in [0, 1], as the program's images are normalised. class_names: one for each
    of its logits. out: a new .pt2 file, the whole of it or none. What is written is made from the layers that were read: nothing else of
    the given file gets into it.
    Raises ConfigError when `out` is not such a name, ModelError when the program cannot be read, cannot be used here, or does not fit
    what is said of it.
    """
    if out.suffix != ".pt2" or out.exists():
        raise ConfigError(f"out is {str(out)!r}: allowed is the name of a new .pt2 file")
    program = read_program(path)
    for side in program.image_size:
        if side not in (None, image_size):
            raise ModelError(f"{path} takes images of {' x '.join(map(str, program.image_size))} pixels: allowed is that as image size")
    spec = ModelSpec(path.stem, ARCHITECTURE, tuple(class_names), image_size, tuple(mean), tuple(std), "not said")  # type: ignore[arg-type]
    check_spec(spec)
    check_network(program.network, spec)
    save_program(program.network, spec, out)
    return out
