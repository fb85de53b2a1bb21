"""Names of methods and knobs as the pages show them."""

from __future__ import annotations

from core.config import every_knob, label
from core.generation.methods import METHODS

NAMES = {"given": "given images"}  # of what no row of METHODS made


def method_name(method: str) -> str:
    """Title of a method, or of a series such as "adam W4A4". Not escaped: names of given images come from outside."""
    first, _, rest = method.partition(" ")
    title = METHODS[first].title if first in METHODS else NAMES.get(first, first)
    return f"{title} {rest}".strip()


def knob_symbol(name: str) -> str:
    """The paper's symbol of a knob, such as ε; its name if it has none."""
    known = every_knob()
    return (known[name].metadata["symbol"] if name in known else "") or name


def knob_title(name: str) -> str:
    """Label of a knob; its name if no config has it, as in a run of another version."""
    known = every_knob()
    return label(known[name]) if name in known else name
