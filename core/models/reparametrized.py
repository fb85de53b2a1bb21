"""Weights that a file has as what they are computed from: weight norm (Salimans and Kingma 2016), spectral norm (Miyato et al. 2018)."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

# the names that torch.nn.utils.parametrizations and the earlier torch.nn.utils give to the parts of NAME: direction and length for
# weight norm; the weight, and its left and right singular vectors, for spectral norm
_WEIGHT_NORM = (("{}.parametrizations.{}.original1", "{}.parametrizations.{}.original0"), ("{}.{}_v", "{}.{}_g"))
_SPECTRAL_NORM = (
    ("{}.parametrizations.{}.original", "{}.parametrizations.{}.0._u", "{}.parametrizations.{}.0._v"),
    ("{}.{}_orig", "{}.{}_u", "{}.{}_v"),
)
_LENGTH = re.compile(r"(.+)\.parametrizations\.(\w+)\.original0|(.+)\.(\w+)_g")
_ORIGINAL = re.compile(r"(.+)\.parametrizations\.(\w+)\.original|(.+)\.(\w+)_orig")


def with_computed_weights(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with each such weight in the place of its first part, under the name that it has without the norm.

    Parts whose shapes do not fit stay as they are.
    """
    computed: dict[str, tuple[str, Tensor]] = {}  # name of the first part -> name and value of the weight
    parts: set[str] = set()
    for pattern, kinds, compute in ((_LENGTH, _WEIGHT_NORM, _weight_norm), (_ORIGINAL, _SPECTRAL_NORM, _spectral_norm)):
        for key in values:
            found = pattern.fullmatch(key)
            if found is None:
                continue
            kind, (owner, name) = (0, found.groups()[:2]) if found[1] else (1, found.groups()[2:])
            names = [form.format(owner, name) for form in kinds[kind]]
            tensors = [one for one in map(values.get, names) if isinstance(one, Tensor) and _is_plain(one)]
            weight = compute(*tensors) if len(tensors) == len(names) else None  # type: ignore[operator]
            if weight is not None:
                computed[names[0]] = (f"{owner}.{name}", weight)
                parts |= {*names}
    if not computed:
        return dict(values)
    return dict(computed.get(key, (key, value)) for key, value in values.items() if key in computed or key not in parts)


def _is_plain(value: Tensor) -> bool:
    """Whether these are floating-point numbers, all of which are in memory: an untrusted file may repeat one endlessly."""
    plain = value.layout is torch.strided and value.is_floating_point()
    return plain and value.untyped_storage().nbytes() >= value.numel() * value.element_size()


def _weight_norm(direction: Tensor, length: Tensor) -> Tensor | None:
    """w = g v / ||v||, with a norm for each entry of g `(C, 1, ...)`, or of all of v where g has one number."""
    if length.ndim not in (0, direction.ndim) or any(one not in (1, size) for one, size in zip(length.shape, direction.shape)):
        return None
    over = [d for d in range(direction.ndim) if length.ndim == 0 or length.shape[d] == 1]
    norm = torch.linalg.vector_norm(direction.float(), dim=over, keepdim=True)
    return (direction.float() * (length.float() / norm)).to(direction.dtype)


def _spectral_norm(weight: Tensor, left: Tensor, right: Tensor) -> Tensor | None:
    """w / sigma with sigma = u^T W v, where W `(C, ...)` is a matrix with a row for each output."""
    if not weight.ndim or left.shape != weight.shape[:1] or right.numel() * left.numel() != weight.numel() or right.ndim != 1:
        return None
    sigma = left.float() @ weight.float().flatten(1) @ right.float()
    return (weight.float() / sigma).to(weight.dtype)
