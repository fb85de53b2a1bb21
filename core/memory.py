"""How a process takes memory, and what to do when it runs out, in words."""

import ctypes
import errno
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from core.errors import CoreError

# torch raises a RuntimeError of these words on a CPU, and a subclass of it on a GPU
_SIGNS = ("can't allocate memory", "cannot allocate memory", "out of memory", "not enough memory", "bad_alloc")

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # of malloc.h
_ALL = 2**30  # bytes, more than a tensor has


def keep_memory() -> None:
    """Has this process keep what it frees for what it allocates next, until it ends; its largest size stays the same.

    The C library of Linux gives large blocks back at once, and each gets its pages anew, zeroed by the kernel, when it is needed again:
    a tenth of the time of a generation step. For processes that compute and then end.
    """
    _set_allocator({_M_TRIM_THRESHOLD: _ALL, _M_MMAP_THRESHOLD: _ALL})


def share_memory(places: int) -> None:
    """Has all threads of this process take memory from so many places; without, the C library of Linux gives them up to eight a core.

    To be called before there are threads, as places that exist go on being used.
    """
    _set_allocator({_M_ARENA_MAX: places})


def _set_allocator(options: Mapping[int, int]) -> None:
    if sys.platform == "linux":
        # other C libraries than glibc have no such function
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            for option, value in options.items():
                mallopt(option, value)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a CPU or a GPU."""
    if isinstance(error, OSError):  # of a file mapped into memory
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _SIGNS))


@contextmanager
def memory_advice(stage: str, knob: str, value: int, least: int = 1) -> Iterator[None]:
    """Turns an error of memory inside the block into a CoreError that says what value of the knob, not below `least`, to try."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        advice = f"try {max(least, value // 2)}" if value > least else "which a smaller network or a larger machine may"
        raise CoreError(f"memory ran out during {stage} with {knob} {value}: allowed is what fits, {advice}") from error
