"""Names of the classes and BatchNorm layers of a network, found in another process: it imports torch, which the server must not.

New runs store these names. This is for runs of earlier versions.
"""

import json
import subprocess
import sys
import time
from typing import NamedTuple

from core.processes import module_command, module_environment

_SECONDS = 300  # importing torch and a zoo takes up to ten; the server's low priority makes it longer beside jobs
SECONDS_BETWEEN_TRIES = 600.0
_KEPT = 100


class NetworkNames(NamedTuple):
    """Class names by label, and BatchNorm layers in the order of the modules; empty for a network that cannot be found."""

    classes: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()


# of every network that was asked for, and when the names of some could not be found
_names: dict[str, NetworkNames] = {}
_failed: dict[str, float] = {}


def names_of(model: str) -> NetworkNames:
    """Names of the network `model`, any name for `load_model`. The first call takes seconds.

    Names that could not be found are looked for again after SECONDS_BETWEEN_TRIES: the machine may have been busy, the file not mounted.
    """
    now = time.monotonic()
    for other in [other for other, failed in list(_failed.items()) if now - failed > SECONDS_BETWEEN_TRIES]:
        _failed.pop(other, None)
        _names.pop(other, None)
    names = _names.get(model)
    if names is None:
        names = _names[model] = _ask(model)
        if not all(names):
            _failed[model] = time.monotonic()
        while len(_names) > _KEPT:
            _names.pop(next(iter(_names)), None)
    return names


def _ask(model: str) -> NetworkNames:
    command = module_command("core.models.network_names", model)
    environment = module_environment()
    try:
        answer = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=_SECONDS, check=True).stdout
    except subprocess.SubprocessError:
        return NetworkNames()
    return NetworkNames(*map(tuple, json.loads(answer.splitlines()[-1])))


def _print_names(model: str) -> None:
    from core.errors import CoreError
    from core.models.full_precision import batch_norm_names_of, find_model

    found: list[list[str]] = []
    for read in (lambda: find_model(model)[1].classes, lambda: batch_norm_names_of(model)):
        try:
            found.append(list(read()))
        except CoreError:
            found.append([])
    print(json.dumps(found))


if __name__ == "__main__":
    _print_names(sys.argv[1])
