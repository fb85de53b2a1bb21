"""Settings of the memory allocator, and readable errors for out of memory."""

from __future__ import annotations

import ctypes
import errno
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from core.errors import CoreError

if TYPE_CHECKING:
    import torch

# parts of the messages of torch's RuntimeError on a CPU, and of its subclass on a GPU
_SIGNS = ("can't allocate memory", "cannot allocate memory", "out of memory", "not enough memory", "bad_alloc")

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # of malloc.h
_MEMORY, _CONTAINER = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
_ALL = 2**30  # bytes, more than any tensor has


def keep_memory() -> None:
    """Makes this process keep freed memory for its next allocations, until it ends. Its peak size does not change.

    By default, glibc returns large blocks to the kernel at once, which zeroes the pages again for the next allocation: this takes a tenth
    of the time of a generation step. Meant for processes that compute and then end.
    """
    _set_allocator({_M_TRIM_THRESHOLD: _ALL, _M_MMAP_THRESHOLD: _ALL})


def limit_arenas(count: int) -> None:
    """Makes all threads of this process share `count` memory arenas; by default, glibc creates up to eight per core.

    Must be called before threads are started, because existing arenas remain in use.
    """
    _set_allocator({_M_ARENA_MAX: count})


def _set_allocator(options: Mapping[int, int]) -> None:
    if sys.platform == "linux":
        # C libraries other than glibc do not have this function
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            for option, value in options.items():
                mallopt(option, value)


def available_bytes(device: torch.device) -> int | None:
    """Memory that is free on a device now, also for the limits of a container; None if it cannot be known."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu" or not _MEMORY.exists():
        return None
    free = [int(line.split()[1]) * 1024 for line in _MEMORY.read_text(encoding="ascii").splitlines() if line.startswith("MemAvailable:")]
    try:
        limit, used = (int((_CONTAINER / name).read_text(encoding="ascii")) for name in ("memory.max", "memory.current"))
        free.append(limit - used)
    except (OSError, ValueError):
        pass  # no container, or one without a limit: "max"
    return min(free, default=None)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error reports that memory ran out, on a CPU or a GPU."""
    if isinstance(error, OSError):  # from a memory-mapped file
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _SIGNS))


@contextmanager
def memory_advice(stage: str, knob: str, value: int, least: int = 1) -> Iterator[None]:
    """Turns an out-of-memory error in the block into a CoreError that suggests half the value of the knob, but at least `least`."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        advice = f"try {max(least, value // 2)}" if value > least else "use a smaller network or a machine with more memory"
        raise CoreError(f"{stage} ran out of memory with {knob} {value}; {advice}") from error
