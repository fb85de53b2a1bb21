"""Which output of a program is the scores."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.errors import quoted
from core.models.programs.archive import refuse

_SCORES = ("logits", "scores", "out", "output", "pred", "preds", "prediction", "predictions")


def scores_of_program(module: Mapping[str, Any], path: Path) -> tuple[str, bool, tuple[str, ...]]:
    """Name of the tensor of scores; whether it has further dimensions of size 1 and has to be flattened; and notes for the user.

    Of several outputs, the first of the shape of scores is taken: others are those of auxiliary classifiers, or features. In a mapping,
    outputs called auxiliary come last, and one called logits or alike first. Raises ModelError if the program changes buffers, as in
    training mode, or its first output is no tensor. module: the `graph_module` of the program.
    """
    graph, signature = module["graph"], module["signature"]
    outputs = graph["outputs"]
    kinds = [next(iter(one)) for one in signature["output_specs"]]
    if set(kinds) != {"user_output"} or len(outputs) != len(kinds) or "as_tensor" not in outputs[0]:
        refuse(
            path,
            "first output must be a tensor of logits from a network in evaluation mode, "
            f"got {len(outputs)} outputs ({quoted(', '.join(kinds[:3]))})",
        )
    shapes = [_shape(graph, one["as_tensor"]["name"]) if "as_tensor" in one else () for one in outputs]
    names = _names(module, len(outputs))
    candidates = [number for number, shape in enumerate(shapes) if _is_scores(shape)]
    place = min(candidates, key=lambda number: _last_resort(names[number].lower()), default=0)
    which = "the first" if place == 0 else f"number {place + 1}"
    notes = (f"took {which} of {len(outputs)} outputs as the scores",) if len(outputs) > 1 else ()
    return outputs[place]["as_tensor"]["name"], len(shapes[place]) > 2 and _is_scores(shapes[place]), notes


def _last_resort(name: str) -> int:
    """The larger, the less an output of this name is likely to be the scores."""
    return 0 if name in _SCORES else 2 if name.startswith("aux") else 1


def _names(module: Mapping[str, Any], count: int) -> Sequence[str]:
    """The names of the outputs, if the network returns a mapping of tensors; else empty ones."""
    first = (module.get("module_call_graph") or [{}])[0].get("signature") or {}
    _, form = json.loads(first.get("out_spec") or "[1, {}]")
    names = json.loads(form["context"]) if form.get("type") == "builtins.dict" else []
    nested = any(child["children_spec"] for child in form.get("children_spec", []))
    return [str(name) for name in names] if len(names) == count and not nested else [""] * count


def _shape(graph: Mapping[str, Any], name: str) -> tuple[Any, ...]:
    """Sizes of a tensor; None for those that depend on the images."""
    return tuple(size.get("as_int") for size in graph["tensor_values"][name]["sizes"])


def _is_scores(shape: tuple[Any, ...]) -> bool:
    """Whether this is `(N, classes)`, or has further dimensions of size 1, such as `(N, classes, 1, 1)`."""
    return len(shape) > 1 and shape[0] is None and sum(size != 1 for size in shape[1:]) <= 1
