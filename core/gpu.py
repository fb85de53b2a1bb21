"""Deterministic results and CUDA graphs."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from core.errors import first_line
from core.memory import is_out_of_memory

Function = Callable[..., Sequence[Any]]  # tensors on one device -> tensors on the same device, or None

_WARM_UPS = 3  # calls before the capture, in which libraries choose their algorithms and allocate their memory


def repeat_to_the_bit() -> None:
    """Makes the GPU compute bit-identical results for identical input, until this process ends.

    By default torch uses the fastest algorithms, some of which add up values in an order that depends on the timing of threads. An
    operation without a deterministic algorithm still runs, with a warning by torch that names it.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS on first use
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # no uninitialized memory is ever read


def is_capturing(tensor: Tensor) -> bool:
    """Whether operations on this tensor are being captured in a CUDA graph, so that its values cannot be read."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


class CudaGraph:
    """Replays a function on a GPU as a CUDA graph, with bit-identical results.

    Launching the small kernels of a network from Python takes longer than running them: an iteration of ResNet-20 has thousands of
    operations, whereas a graph is launched once. A graph is captured for each shape of inputs after a few ordinary calls. On a CPU the
    function is simply called.

    Call the object with the function, which must be the same each time, and its inputs. The function must not read tensor values on the
    CPU, and must write to the same tensors each time, because only the captured kernels are replayed. The returned tensors are valid
    until the next call. `failure` is the reason why nothing is captured, or empty.
    """

    # The function is not stored: it is usually a method of the object that owns this one, and such a cycle would stay in memory until
    # the garbage collector runs.
    def __init__(self, device: torch.device) -> None:
        self.possible = _can_capture(device)
        self._calls: dict[Any, int] = {}
        self._graphs: dict[Any, tuple[Callable[[], None], Sequence[Tensor], Sequence[Any]]] = {}
        self.failure = ""

    def __call__(self, function: Function, *inputs: Tensor) -> Sequence[Any]:
        if not self.possible:
            return function(*inputs)
        shapes = tuple(value.shape for value in inputs)
        if shapes not in self._graphs and not self.failure:
            self._calls[shapes] = self._calls.get(shapes, 0) + 1
            if self._calls[shapes] <= _WARM_UPS:
                return _call_on_side_stream(function, inputs)
            self._capture(shapes, function, inputs)
        if shapes not in self._graphs:
            return function(*inputs)
        replay, buffers, outputs = self._graphs[shapes]
        for buffer, value in zip(buffers, inputs):
            buffer.copy_(value)
        replay()
        return outputs

    def _capture(self, shapes: Any, function: Function, inputs: Sequence[Tensor]) -> None:
        buffers = [value.detach().clone(memory_format=torch.preserve_format) for value in inputs]
        try:
            replay, outputs = _captured(function, buffers)
        except RuntimeError as error:  # an operation cannot be captured, or memory ran out
            self.failure = "not enough memory for a CUDA graph" if is_out_of_memory(error) else first_line(error)
        else:
            self._graphs[shapes] = replay, buffers, outputs


def _can_capture(device: torch.device) -> bool:
    return device.type == "cuda"


def _call_on_side_stream(function: Function, inputs: Sequence[Tensor]) -> Sequence[Any]:
    """Calls the function on a separate stream, as torch requires for the warm-up before a capture."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        outputs = function(*inputs)
    torch.cuda.current_stream().wait_stream(stream)
    return outputs


def _captured(function: Function, buffers: Sequence[Tensor]) -> tuple[Callable[[], None], Sequence[Any]]:
    """The replay of the captured function, and the tensors to which it writes its results."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = function(*buffers)
    return graph.replay, outputs
