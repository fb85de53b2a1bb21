"""What to do when memory runs out, in words."""

from collections.abc import Iterator
from contextlib import contextmanager

from core.errors import CoreError

# torch raises a RuntimeError of these words on a CPU, and a subclass of it on a GPU
_SIGNS = ("can't allocate memory", "cannot allocate memory", "out of memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a CPU or a GPU."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _SIGNS))


@contextmanager
def memory_advice(stage: str, knob: str, value: int) -> Iterator[None]:
    """Turns an error of memory inside the block into a CoreError that says what value of the knob to try."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise CoreError(f"memory ran out during {stage} with {knob} {value}: allowed is what fits, try {max(1, value // 2)}") from error
