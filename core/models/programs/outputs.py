"""Which output of a program is the scores."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.errors import quoted
from core.models.programs.archive import refuse


def scores_of_program(graph: Mapping[str, Any], signature: Mapping[str, Any], path: Path) -> tuple[str, bool, tuple[str, ...]]:
    """Name of the tensor of scores; whether it is `(N, classes, 1, 1)` and has to be flattened; and notes for the user.

    Of several outputs, the first is taken: others are those of auxiliary classifiers, or features. Raises ModelError if the program
    changes buffers, as in training mode, or its first output is no tensor.
    """
    outputs = graph["outputs"]
    kinds = [next(iter(one)) for one in signature["output_specs"]]
    if set(kinds) != {"user_output"} or len(outputs) != len(kinds) or "as_tensor" not in outputs[0]:
        refuse(
            path,
            "first output must be a tensor of logits from a network in evaluation mode, "
            f"got {len(outputs)} outputs ({quoted(', '.join(kinds[:3]))})",
        )
    name = outputs[0]["as_tensor"]["name"]
    sizes = [size.get("as_int") for size in graph["tensor_values"][name]["sizes"]]
    is_map = len(sizes) == 4 and sizes[2:] == [1, 1]
    notes = (f"took the first of {len(outputs)} outputs as the scores",) if len(outputs) > 1 else ()
    return name, is_map, notes
