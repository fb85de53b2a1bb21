"""Error messages when memory runs out."""

import ctypes
import errno
import subprocess
import sys

import pytest
import torch

from core.errors import CoreError
from core.memory import is_out_of_memory, memory_advice


def raised(error, knob="batch_size", value=64, **options) -> BaseException:
    with pytest.raises(BaseException) as caught, memory_advice("the training of mi-fgsm W4A4", knob, value, **options):
        raise error
    return caught.value


OURS = [
    MemoryError(),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
    ),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] data. DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
    RuntimeError("std::bad_alloc"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
]
OTHERS = [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    OSError(errno.ENOSPC, "full"),
    ValueError("out of memory"),
    KeyError("a"),
]


@pytest.mark.parametrize("error", OURS, ids=lambda error: str(error)[:20])
def test_out_of_memory_becomes_advice(error):
    assert is_out_of_memory(error)
    found = raised(error)
    assert isinstance(found, CoreError)
    assert str(found) == "the training of mi-fgsm W4A4 ran out of memory with batch_size 64; try 32"
    assert found.__cause__ is error


@pytest.mark.parametrize("error", OTHERS, ids=lambda error: str(error)[:20])
def test_other_errors_are_unchanged(error):
    assert not is_out_of_memory(error)
    assert raised(error) is error


@pytest.mark.parametrize(
    ("value", "least", "advice"),
    [(65, 1, "try 32"), (3, 2, "try 2"), (2, 1, "try 1"), (2, 2, "smaller network"), (1, 1, "smaller network")],
)
def test_advised_value_is_smaller_and_allowed(value, least, advice):
    assert advice in str(raised(MemoryError(), value=value, least=least))


def test_block_without_an_error():
    with memory_advice("a stage", "batch_size", 8):
        pass


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="a property of glibc")
def test_kept_memory_causes_no_page_faults():
    code = """if True:
        import resource, sys, torch
        from core.memory import keep_memory
        if sys.argv[1:]:
            keep_memory()
        for turn in range(20):
            if turn == 15:
                before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            held = [torch.ones(10_000_000) for _ in range(4)]  # above 32 MB, where glibc always gives back what it is not told to keep
            del held
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    """
    without, kept = (int(subprocess.check_output([sys.executable, "-c", code, *word])) for word in ((), ("keep",)))
    assert kept < without / 10
