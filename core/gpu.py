"""What a GPU needs to give the same numbers again, and not to wait for the processor."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from core.errors import first_line
from core.memory import is_out_of_memory

Work = Callable[..., Sequence[Any]]  # of tensors on one device to such tensors, or None

_WARM_UPS = 3  # calls before a recording: libraries choose their algorithms and take their memory at the first ones


def repeat_to_the_bit() -> None:
    """Has the GPU give the same bits for the same work, until this process ends.

    torch takes the fastest algorithm otherwise, and some add up in whatever order their threads come. An operation that has no other is
    done nevertheless, with a warning of torch that names it.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the library is first used
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nothing is read before it is written


def is_capturing(tensor: Tensor) -> bool:
    """Whether what is done with it now goes into a recording, and no value can be read."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


class CudaGraph:
    """Work that a GPU does again from a recording of its operations (a CUDA graph), the same to the bit.

    The layers of small networks are done sooner than the processor has asked for them: an iteration of ResNet-20 is thousands of
    operations, and a recording is asked for once. It is made for each shape of inputs after a few calls without. On a processor the work
    is done as it is.

    It is called with the work, the same each time, and its inputs. The work reads values of tensors nowhere, as it is not called again;
    what it writes into must stay where it is. What is returned holds until the next call.
    """

    # the work is not kept: it is mostly a method of the recording's owner, and both would stay in memory until the garbage collector comes
    def __init__(self, device: torch.device) -> None:
        self.possible = _can_record(device)
        self._calls: dict[Any, int] = {}
        self._made: dict[Any, tuple[Callable[[], None], Sequence[Tensor], Sequence[Any]]] = {}
        self.failure = ""  # why nothing is recorded

    def __call__(self, work: Work, *inputs: Tensor) -> Sequence[Any]:
        if not self.possible:
            return work(*inputs)
        shapes = tuple(own.shape for own in inputs)
        if shapes not in self._made and not self.failure:
            self._calls[shapes] = self._calls.get(shapes, 0) + 1
            if self._calls[shapes] <= _WARM_UPS:
                return _aside(work, inputs)
            self._record(shapes, work, inputs)
        if shapes not in self._made:
            return work(*inputs)
        replay, places, outputs = self._made[shapes]
        for place, own in zip(places, inputs):
            place.copy_(own)
        replay()
        return outputs

    def _record(self, shapes: Any, work: Work, inputs: Sequence[Tensor]) -> None:
        places = [own.detach().clone(memory_format=torch.preserve_format) for own in inputs]
        try:
            replay, outputs = _captured(work, places)
        except RuntimeError as error:  # of an operation that cannot be recorded; or there is no memory for what a recording keeps
            self.failure = "not enough memory for a recording" if is_out_of_memory(error) else first_line(error)
        else:
            self._made[shapes] = replay, places, outputs


def _can_record(device: torch.device) -> bool:
    return device.type == "cuda"


def _aside(work: Work, inputs: Sequence[Tensor]) -> Sequence[Any]:
    """The work on a stream of its own, as torch wants it before a recording."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        outputs = work(*inputs)
    torch.cuda.current_stream().wait_stream(stream)
    return outputs


def _captured(work: Work, places: Sequence[Tensor]) -> tuple[Callable[[], None], Sequence[Any]]:
    """What does the recorded work again, and the tensors where it leaves its results."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = work(*places)
    return graph.replay, outputs
