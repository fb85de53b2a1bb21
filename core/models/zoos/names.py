"""The names in the model libraries that are installed, read from their sources: importing them would import torch, which takes seconds."""

import difflib
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType

from core.errors import UnknownNameError
from core.models.zoos.zoo import package_folder

# a decorated function, possibly with other decorators in between
_REGISTERED = re.compile(r"^@register_model(?:\(\))?\s*\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)
_DEPRECATED = re.compile(r"^register_model_deprecations\(.*?^\}\)", re.MULTILINE | re.DOTALL)
_TABLE = re.compile(r"^_models = \{$.*?^\}$", re.MULTILINE | re.DOTALL)
_KEY = re.compile(r"^ *['\"](\w+)['\"] *:", re.MULTILINE)


def check_zoo_name(model: str) -> None:
    """Raises UnknownNameError for "ZOO:NAME" if the zoo has no network of that name, or timm no such tag in its sources.

    Where the sources of another version of a zoo do not have the expected form, no name is refused. A run looks again.
    """
    zoo, _, name = model.partition(":")
    architecture, dot, tag = name.partition(".")
    names, words = _NAMES[zoo]()
    known = architecture.lower() if zoo == "pytorchcv" else architecture  # its loader ignores case
    if not names or (known in names and (not dot or tag in words)):
        return
    near = difflib.get_close_matches(architecture, names, n=3) if architecture not in names else [architecture]
    raise UnknownNameError("model", model, [f"{zoo}:{other}" for other in near] or [f"a name in {zoo}"])


@cache
def _timm() -> tuple[frozenset[str], frozenset[str]]:
    """Names, and every word of the sources, which have the tags of pretrained weights in several forms."""
    text = _text(package_folder("timm") / "models")
    deprecated = [name for part in _DEPRECATED.findall(text) for name in _KEY.findall(part)]
    return frozenset([*_REGISTERED.findall(text), *deprecated]), frozenset(re.findall(r"\w+", text))


@cache
def _torchvision() -> tuple[frozenset[str], frozenset[str]]:
    return frozenset(_REGISTERED.findall(_text(package_folder("torchvision") / "models"))), frozenset()


@cache
def _pytorchcv() -> tuple[frozenset[str], frozenset[str]]:
    table = _TABLE.search((package_folder("pytorchcv") / "model_provider.py").read_text(encoding="utf-8"))
    return frozenset(_KEY.findall(table[0]) if table else ()), frozenset()


_NAMES: Mapping[str, Callable[[], tuple[frozenset[str], frozenset[str]]]] = MappingProxyType(
    {"timm": _timm, "torchvision": _torchvision, "pytorchcv": _pytorchcv}
)


def _text(folder: Path) -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.py")))
