"""Processes that run modules of this program: `python -m core.NAME` from any working directory."""

import os
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[1]
# Value of GOMP_SPINCOUNT: how often an OpenMP thread checks for the others before it sleeps. The default spins for some milliseconds;
# with this, a thread whose core is taken by another program can continue on the core of a sleeping one (benchmarks/busy.py).
SPIN_COUNT = "20000"


def share_cores() -> None:
    """Makes the threads of this process wait without taking a core for long. Takes effect only before torch is imported."""
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)


def module_command(module: str, *arguments: str) -> list[str]:
    """The command that runs a module in a new process. It needs `module_environment`."""
    return [sys.executable, "-m", module, *arguments]


def module_environment() -> dict[str, str]:
    """The environment of this process, in which the modules of this program are found first."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)}
