"""Weights in several files (shards) beside an index that says which tensor is in which, as the Hugging Face Hub has them. Imports no torch.

Index and shards may come from anybody, so an index must not be able to name any other file of this machine.
"""

import os
from pathlib import Path

from core.errors import ModelError, first_line, quoted
from core.files import check_regular, read_json

INDEX_SUFFIX = ".index.json"
ABOUT_INDEX = (
    "JSON, which has no weights: the index of weights in several files is read with them by --weights of the command line, if its name "
    f"ends in {INDEX_SUFFIX}; elsewhere, merge them into one .safetensors file"
)
_ALLOWED = 'JSON with "weight_map": names of tensors and the file of each, beside the index'


def is_index(file: Path) -> bool:
    """Whether a file is an index of shards, by its name."""
    return file.name.endswith(INDEX_SUFFIX)


def shards_of(index: Path, source: str) -> dict[Path, list[str]]:
    """The shards that an index names, each with the names of its tensors.

    source: name of the index in error messages. Raises ModelError if it cannot be read, and unless each shard is a file in its folder.
    """
    try:
        value = read_json(index)
        files: dict[str, list[str]] = {}
        for tensor, file in value["weight_map"].items():
            files.setdefault(file, []).append(tensor)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise ModelError(f"{source} cannot be read as an index of shards ({reason}); it must be {_ALLOWED}") from error
    if not files:
        raise ModelError(f"{source} must name at least one shard, got none")
    return {_shard(index, file, source): tensors for file, tensors in files.items()}


def total_size(file: Path, source: str) -> int:
    """Size in bytes of a file, or if it is an index, of its shards together. Raises OSError, and ModelError as `shards_of` does."""
    check_regular(file)
    return sum(path.stat().st_size for path in (shards_of(file, source) if is_index(file) else [file]))


def _shard(index: Path, name: object, source: str) -> Path:
    # both separators and drives, also where they would be characters of a name
    if not isinstance(name, str) or not name.isprintable() or name[:1] in ("", ".") or any(one in name for one in "/\\:"):
        raise ModelError(f"shards of {source} must be plain names of files in its folder, got {quoted(name)}")
    path = index.with_name(name)
    try:
        check_regular(path)
    except OSError as error:
        raise ModelError(f"shards of {source} must be files in its folder, but {quoted(name)} cannot be read: {error.strerror}") from error
    # not the folder of the path, because the cache of the Hub has links to index and shards, all in one other folder
    if os.path.dirname(os.path.realpath(path)) != os.path.dirname(os.path.realpath(index)):
        raise ModelError(f"shards of {source} must be files in its folder, but {quoted(name)} is a link to another folder")
    return path
