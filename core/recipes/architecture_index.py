"""How the index of architectures was made (core.models.architecture_index): every classifier of the installed zoos, built without values.

`python -m core.recipes.architecture_index` writes the file in assets/ and prints what was left out, with the reason. It takes some minutes.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

from core.errors import CoreError, ModelError
from core.models.architecture_index import FILE, Entry, save_index
from core.models.full_precision import batch_norm_names, layout_of
from core.models.matching import without_counters
from core.models.zoos.lookup import ZOOS, known_spec

_RARE = 1000  # no width of a layer is one of the numbers of classes from here on
_CHUNK = 16  # architectures that a process builds at a time


def entry_of(architecture: str) -> Entry | str:
    """The entry of an architecture, or why it has none."""
    try:
        spec = known_spec(architecture)
        if not batch_norm_names(spec):
            raise ModelError("no BatchNorm layer with running statistics")
        layout = without_counters(layout_of(spec))
        count = len(spec.classes)
        if count >= _RARE:
            fixed = [shape for shape in layout.values() if shape[:1] != (count,)]
        else:
            other = layout_of(replace(spec, classes=("",) * (count + 1)))
            fixed = [shape for name, shape in layout.items() if other.get(name) == shape]
    except CoreError as error:
        return str(error)
    return Entry(architecture, Counter(fixed), len(layout) - len(fixed))


def main() -> None:
    """Builds all architectures in as many processes as there are cores, and writes the index."""
    names = [f"{zoo}:{name}" for zoo, adapter in ZOOS.items() for name in adapter.names()]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        made = dict(zip(names, pool.map(entry_of, names, chunksize=_CHUNK)))
    for name, reason in made.items():
        if isinstance(reason, str):
            print(f"{name} left out: {reason}", file=sys.stderr)
    entries = [entry for entry in made.values() if isinstance(entry, Entry)]
    save_index(entries, FILE)
    print(f"{len(entries):,} of {len(names):,} architectures, {FILE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
