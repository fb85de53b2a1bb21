"""Checks a file from outside in a process of its own, with limits on memory and time.

A file can make its reader allocate any amount of memory or compute for hours, in ways that no list of checks is sure to name: 32 bytes of
a pickle ask for 12 GB. In a process of its own it takes what a file may take, then ends, and nobody else notices.

**Memory** is private writable memory (VmData in /proc/self/status, limited by RLIMIT_DATA), counted from what the process has when its
imports are done. Only Linux has both; on other systems, only time is limited.

**Time** is processor time, also counted after the imports, so that a busy machine refuses nothing; and as a last resort several times as
many seconds on the clock.

**Protocol.** One JSON object to the standard input of `python -m core.untrusted`, one from its standard output.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from core.errors import ConfigError, CoreError, DataError, ModelError, UnknownNameError, causes
from core.files import check_regular
from core.memory import is_out_of_memory
from core.processes import module_command, module_environment

MEGABYTE = 1 << 20
MEMORY_FACTOR, MEMORY_BYTES = 4, 200 * MEGABYTE  # a file may take so many times its size, and so much in addition
SECONDS, BYTES_PER_SECOND = 60, 5 * MEGABYTE  # of processor time, and how much longer a large file may take
AT_ONCE = 4  # files checked at the same time by this process; more wait
WAIT_SECONDS = 300
_CLOCK = 4  # seconds on the clock for each second of processor time
_IMPORT_SECONDS = 120  # on the clock; torch takes 2 when the machine is idle
_ERRORS = {kind.__name__: kind for kind in (CoreError, ConfigError, DataError, ModelError, UnknownNameError)}
_slots = threading.BoundedSemaphore(AT_ONCE)


# in the process that has the file


def check_apart(
    task: str,
    file: Path,
    name: str,
    *,
    error: type[CoreError] = DataError,
    imports: Sequence[str] = (),
    size: int | None = None,
    **arguments: Any,
) -> Any:
    """Calls a function with a file in a process of its own, and returns its result.

    task: "module:function", called as function(file, name=name, **arguments); arguments and result are JSON values. name: of the file in
    error messages. error: of what is raised when the file exceeds a limit. imports: modules that the function imports only when they are
    needed, whose memory must not count as the file's. size: in bytes, of the file and those that it names; None: that of the file.
    Raises the CoreError or OSError that the function raised.
    """
    check_regular(file)
    size = file.stat().st_size if size is None else size
    memory, seconds = MEMORY_FACTOR * size + MEMORY_BYTES, SECONDS + size // BYTES_PER_SECOND
    request = {
        "task": task, "file": os.path.abspath(file), "imports": list(imports), "memory": memory, "seconds": seconds,
        "arguments": {"name": name, **arguments},
    }  # fmt: skip
    if not _slots.acquire(timeout=WAIT_SECONDS):
        raise error(f"{name!r} could not be checked within {WAIT_SECONDS} seconds, because {AT_ONCE} other files are; try again later")
    try:
        code, answer = _answer(request, _IMPORT_SECONDS + _CLOCK * seconds)
    finally:
        _slots.release()
    if "result" in answer:
        return answer["result"]
    if "error" in answer:
        raise _error(answer)
    if "bug" in answer:
        raise RuntimeError(f"{task} failed for {name!r}:\n{answer['bug']}")
    if code in (None, -getattr(signal, "SIGXCPU", 24)):
        raise error(f"{name!r} took longer than {seconds} seconds to check; files of its size usually take a few")
    # also when it was killed without an answer: libraries abort where they get no memory
    raise error(
        f"{name!r} needs more than {memory // MEGABYTE:,} MB of memory to check; "
        f"a file may need {MEMORY_FACTOR} times its size and {MEMORY_BYTES // MEGABYTE} MB"
    )


def _answer(request: dict[str, Any], timeout: float) -> tuple[int | None, dict[str, Any]]:
    """Exit code (None: killed after `timeout` seconds on the clock) and answer of the process; {} if it gave none."""
    try:
        done = subprocess.run(
            module_command("core.untrusted"),
            input=json.dumps(request),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={
                **module_environment(),
                # more threads take more memory; runs need the other cores and the GPU
                "OMP_NUM_THREADS": "1",
                "CUDA_VISIBLE_DEVICES": "",
            },
            encoding="utf-8",
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None, {}
    return done.returncode, json.loads(done.stdout or "{}")


def _error(answer: dict[str, Any]) -> Exception:
    """The exception that the function raised."""
    if answer["error"] == OSError.__name__:
        return OSError(answer["errno"], answer["message"])
    error = _ERRORS[answer["error"]].__new__(_ERRORS[answer["error"]])
    CoreError.__init__(error, answer["message"], answer["paste"])  # UnknownNameError's own would compose another message
    return error


# in the process of its own


def _perform(request: dict[str, Any]) -> dict[str, Any]:
    module, _, name = request["task"].partition(":")
    for other in request["imports"]:
        import_module(other)
    function = getattr(import_module(module), name)
    _limit(request["memory"], request["seconds"])
    try:
        return {"result": function(Path(request["file"]), **request["arguments"])}
    except Exception as error:
        if any(map(is_out_of_memory, causes(error))):
            return {"memory": True}
        if isinstance(error, CoreError):
            kind = next(kind for kind in type(error).__mro__ if kind.__name__ in _ERRORS)
            return {"error": kind.__name__, "message": str(error), "paste": error.paste}
        if isinstance(error, OSError):
            return {"error": OSError.__name__, "errno": error.errno, "message": error.strerror or str(error)}
        return {"bug": traceback.format_exc()}
    finally:
        _limit(None, None)


def allow_more_memory(count: int) -> None:
    """Raises the memory limit of this process, if it has one, by `count` bytes: for work whose size the user chose, not the file."""
    try:
        import resource
    except ImportError:  # Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if soft != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_DATA, (soft + count if hard == resource.RLIM_INFINITY else min(soft + count, hard), hard))


def _limit(memory: int | None, seconds: int | None) -> None:
    """Sets the limits, in bytes and seconds from now on; None for none."""
    try:
        import resource
    except ImportError:  # Windows
        return
    status = Path("/proc/self/status")
    for limit, used, more in (
        (resource.RLIMIT_CPU, sum(resource.getrusage(resource.RUSAGE_SELF)[:2]), seconds),
        (resource.RLIMIT_DATA, _data_bytes(status) if status.exists() else None, memory),
    ):
        hard = resource.getrlimit(limit)[1]
        soft = hard if used is None or more is None else int(used) + more
        resource.setrlimit(limit, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _data_bytes(status: Path) -> int:
    found = re.search(r"^VmData:\s*(\d+) kB", status.read_text(encoding="ascii", errors="replace"), re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10


def main() -> None:
    """Answers one request."""
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # so that nothing a library prints becomes part of the answer
    json.dump(_perform(json.load(sys.stdin)), output)
    output.flush()
    os._exit(0)  # freeing everything first would take as long as the check of a small file


if __name__ == "__main__":
    main()
