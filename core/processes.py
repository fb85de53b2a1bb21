"""Processes that run modules of this program: `python -m core.NAME` from any working directory."""

import os
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[1]


def module_command(module: str, *arguments: str) -> list[str]:
    """The command that runs a module in a new process. It needs `module_environment`."""
    return [sys.executable, "-m", module, *arguments]


def module_environment() -> dict[str, str]:
    """The environment of this process, in which the modules of this program are found first."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)}
