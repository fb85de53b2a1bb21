"""What to do when memory runs out, in words."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from core.errors import CoreError

# torch raises a RuntimeError of these words on a CPU, and a subclass of it on a GPU
_SIGNS = ("can't allocate memory", "cannot allocate memory", "out of memory", "not enough memory", "bad_alloc")


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
