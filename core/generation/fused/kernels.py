"""Forward and backward of everything between two convolutions of the generation: statistics, residual, activation.

Compiled by the machine's C compiler (kernels.c) at the first use, within a second; it reads memory once. Without a compiler, and for
anything but float32 on a CPU, torch computes the same, which makes the whole step a sixth slower.
"""

import ctypes
import functools
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.errors import first_line
from core.files import temporary_folder
from core.generation.bn_statistics import channel_rows, image_statistics, images_of, mean_and_variance, statistics_slope

Activation = tuple[float, float] | None  # clamps to this interval; None: no activation

CHUNK = 262_144  # numbers per thread: one megabyte, about what a core's cache holds
_SOURCE = Path(__file__).with_name("kernels.c")
# without the last, the compiler does not vectorize, because it preserves floating-point exceptions
_FLAGS = ("-O3", "-fopenmp", "-shared", "-fPIC", "-ffp-contract=fast", "-fno-trapping-math")
_SECONDS = 60.0  # timeout of the compiler, which takes less than one
_EVERYTHING = (-float("inf"), float("inf"))
C = "C"
AS_BEFORE = "as before the run was interrupted"  # a reason for by_torch
_thread = threading.local()  # `reason`: why this thread computes with torch although it has the choice; "" or missing: it does not


@dataclass(frozen=True)
class BatchNormAffine:
    """A BatchNorm layer in evaluation mode, y = scale x + shift; both `(C,)`."""

    scale: Tensor
    shift: Tensor


def forward(
    y: Tensor, residual: Tensor | None, layer: BatchNormAffine, activation: Activation, per_image: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """z = clamp(y + residual, *activation), and mean and unbiased variance `(C,)` of x, the input of the layer whose output is y.

    y: `(N, C, H, W)`, channels-last. z is y itself without a residual and an activation. per_image: mean and variance over the positions
    of each image, `(N, C)`.
    """
    library = _library_for(y, residual)
    if library is not None:
        return _forward_by_c(library, y, residual, layer, activation, per_image)
    if per_image:
        mean, variance = image_statistics(y)
        z = y if residual is None else y + residual
        z = z if activation is None else torch.clamp(z, *clamp_ends(activation))
        return z, (mean - layer.shift) / layer.scale, variance / layer.scale.square()
    z, totals, squares = _forward_by_torch(y, residual, activation)
    mean, variance = mean_and_variance(totals, squares, y.shape[1], y.numel() // y.shape[1])
    return z, (mean - layer.shift) / layer.scale, variance / layer.scale.square()


def backward(
    y: Tensor, grads: Sequence[Tensor], output: Tensor | None, layer: BatchNormAffine, statistics: Sequence[Tensor], activation: Activation
) -> tuple[Tensor, Tensor | None]:
    """The gradient for y, and that for the residual if there was one.

    Overwrites y, unless y itself was returned as z. grads: one or two gradients for z, which are summed. output: z if there was a
    residual; otherwise None, and y shows what was clamped. statistics: the mean of x, and the gradients for its mean and variance, all
    `(C,)` or, of each image, `(N, C)`.
    """
    grads = [grad.contiguous(memory_format=torch.channels_last) for grad in grads]
    library = _library_for(y, *grads)
    if library is not None:
        return _backward_by_c(library, y, grads, output, layer, statistics, activation)
    mean, grad_mean, grad_variance = statistics
    of_y = grad_mean / layer.scale, grad_variance / layer.scale.square(), mean * layer.scale + layer.shift
    grad = grads[0] if len(grads) == 1 else grads[0] + grads[1]
    if mean.ndim == 2:
        slope, offset = (own[:, :, None, None] for own in statistics_slope(*of_y, y.shape[2] * y.shape[3]))
        seen = y if output is None else output
        passed = grad if activation is None else _activation_backward(grad, seen, activation, torch.empty_like(grad))
        return passed + slope * y + offset, None if output is None else passed
    slope, offset = statistics_slope(*of_y, y.numel() // y.shape[1])
    return _backward_by_torch(y, grad, output, slope, offset, activation)


def description() -> str:
    """ "C", or "torch" and the reason."""
    library = _reason() or _library()
    return C if isinstance(library, ctypes.CDLL) else f"torch: {library}"


def _reason() -> str:
    return getattr(_thread, "reason", "")


@contextmanager
def by_torch(reason: str = "chosen") -> Iterator[None]:
    """This thread computes with torch while the block runs, as on a machine without a C compiler."""
    before, _thread.reason = _reason(), reason
    try:
        yield
    finally:
        _thread.reason = before


@contextmanager
def resumed(before: str, method_names: str, warn: Callable[[str], None]) -> Iterator[str]:
    """During the block, a resumed run computes with the kernels that it began with, if they are available here.

    before: what an earlier block yielded; empty if there was none. Yields "C" or "torch", for the next block. warn: called with a sentence
    if the images of `method_names` will differ from those of an uninterrupted run.
    """
    now = description()
    if before == C and now != C:
        warn(
            f"the images by {method_names} will differ slightly from those of an uninterrupted run, because the run began with kernels "
            f"compiled by a C compiler and is resumed without ({now.removeprefix('torch: ')})"
        )
    with by_torch(AS_BEFORE) if before and before != C and now == C else nullcontext():
        yield C if description() == C else "torch"


def _library_for(*tensors: Tensor | None) -> ctypes.CDLL | None:
    if _reason() or any(t is not None and (t.device.type != "cpu" or t.dtype != torch.float32) for t in tensors):
        return None
    library = _library()
    return library if isinstance(library, ctypes.CDLL) else None


@functools.cache
def _library() -> ctypes.CDLL | str:
    """kernels.c, compiled and loaded; or the reason why that failed."""
    named = os.environ.get("CC", "").split()
    compiler = next((found for name in (*named[:1], "cc", "gcc", "clang") if (found := shutil.which(name))), None)
    if compiler is None:
        return "no C compiler (cc, gcc, clang or the environment variable CC)"
    failure = ""
    # a temporary folder, because the result is for this processor and another machine may share a permanent one
    with temporary_folder() as folder:
        for own in (("-march=native",), ()):  # some compilers do not accept it
            target = folder / f"kernels{len(own)}.so"
            command = [compiler, *_FLAGS, *own, str(_SOURCE), "-o", str(target)]
            try:
                subprocess.run(command, check=True, capture_output=True, timeout=_SECONDS, encoding="utf-8", errors="replace")
                return _declared(ctypes.CDLL(str(target)))
            except subprocess.CalledProcessError as error:
                failure = f"{compiler} failed: {error.stderr.strip().splitlines()[0] if error.stderr.strip() else error.returncode}"
            except (OSError, subprocess.TimeoutExpired) as error:
                failure = first_line(error)
    return failure


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    pointer, integer, number, small = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int
    library.forward.argtypes = [*[pointer] * 3, *[integer] * 3, number, number, *[pointer] * 4, small]
    library.backward.argtypes = [*[pointer] * 6, *[integer] * 3, small, number, number, *[pointer] * 5, small]
    return library


def _at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _check(status: int) -> None:
    if status:  # the same words as torch's message
        raise MemoryError("the generation's kernels: not enough memory")


def _forward_by_c(
    library: Any, y: Tensor, residual: Tensor | None, layer: BatchNormAffine, activation: Activation, per_image: bool
) -> tuple[Tensor, Tensor, Tensor]:
    if residual is not None:
        residual = residual.contiguous(memory_format=torch.channels_last)
    channels = y.shape[1]
    z = y if activation is None and residual is None else torch.empty_like(y)
    groups = len(y) if per_image else 1
    mean, variance = y.new_empty((2, groups, channels) if per_image else (2, channels))
    tensors = _at(y), _at(residual), _at(None if z is y else z)
    how = groups, y.numel() // (groups * channels), channels, *(activation or _EVERYTHING)
    of_channels = _at(layer.scale), _at(layer.shift), _at(mean), _at(variance)
    _check(library.forward(*tensors, *how, *of_channels, torch.get_num_threads()))
    return z, mean, variance


def _backward_by_c(
    library: Any,
    y: Tensor,
    grads: Sequence[Tensor],
    output: Tensor | None,
    layer: BatchNormAffine,
    statistics: Sequence[Tensor],
    activation: Activation,
) -> tuple[Tensor, Tensor | None]:
    channels = y.shape[1]
    passed = None if output is None else torch.empty_like(y)
    out = torch.empty_like(y) if output is None and activation is None else y
    # named, so that they live until the call has returned
    mean, grad_mean, grad_variance = (t.contiguous() for t in statistics)
    tensors = _at(y), _at(grads[0]), _at(grads[1] if len(grads) > 1 else None), _at(output), _at(passed), _at(out)
    groups = len(y) if mean.ndim == 2 else 1
    how = groups, y.numel() // (groups * channels), channels, activation is not None, *(activation or _EVERYTHING)
    of_channels = _at(layer.scale), _at(layer.shift), _at(mean), _at(grad_mean), _at(grad_variance)
    _check(library.backward(*tensors, *how, *of_channels, torch.get_num_threads()))
    return out, passed


def _forward_by_torch(y: Tensor, residual: Tensor | None, activation: Activation) -> tuple[Tensor, Tensor, Tensor]:
    """In chunks that fit into the processor's cache."""
    rows, _ = channel_rows(y)
    length = _chunk_length(rows)
    parts = rows.split(length)
    sums = rows.new_empty(2, len(parts), rows.shape[1])
    z = rows if activation is None and residual is None else torch.empty_like(rows)
    others = channel_rows(residual)[0].split(length) if residual is not None else [None] * len(parts)
    scratch = rows.new_empty(min(length, len(rows)), rows.shape[1]) if z is rows else None
    for part, out, other, total, square in zip(parts, z.split(length), others, sums[0], sums[1]):
        torch.sum(part, 0, out=total)
        torch.sum(torch.mul(part, part, out=out if scratch is None else scratch[: len(part)]), 0, out=square)
        if other is not None:
            torch.add(part, other, out=out)
        if activation is not None:
            torch.clamp(part if other is None else out, *clamp_ends(activation), out=out)
    totals, squares = sums.sum(dim=1)
    return images_of(z, y.shape), totals, squares


def _backward_by_torch(
    y: Tensor, grad: Tensor, output: Tensor | None, slope: Tensor, offset: Tensor, activation: Activation
) -> tuple[Tensor, Tensor | None]:
    rows, repeat = channel_rows(y)
    length = _chunk_length(rows)
    slope, offset = slope.repeat(repeat), offset.repeat(repeat)
    incoming, _ = channel_rows(grad)
    passed = incoming
    if output is not None and activation is not None:
        passed = torch.empty_like(rows)
    grad_y = torch.empty_like(rows) if output is None and activation is None else rows
    scratch = rows.new_empty(min(length, len(rows)), rows.shape[1])
    chunks = (t.split(length) for t in (rows, incoming, passed, grad_y, rows if output is None else channel_rows(output)[0]))
    for part, arriving, through, out, seen in zip(*chunks):
        if activation is None:
            torch.addcmul(arriving, part, slope, out=out).add_(offset)
        elif output is None:
            affine = torch.addcmul(offset, part, slope, out=scratch[: len(part)])
            _activation_backward(arriving, seen, activation, out).add_(affine)
        else:
            _activation_backward(arriving, seen, activation, through)
            torch.addcmul(through, part, slope, out=out).add_(offset)
    return images_of(grad_y, y.shape), None if output is None else images_of(passed, y.shape)


def _chunk_length(rows: Tensor) -> int:
    """Rows processed together: what fits into the caches of all cores; all rows on other devices."""
    return max(1, CHUNK * torch.get_num_threads() // rows.shape[1]) if rows.device.type == "cpu" else len(rows)


def clamp_ends(activation: tuple[float, float]) -> tuple[float, float | None]:
    """The interval for torch.clamp, which is slower with an infinite end than with none."""
    low, high = activation
    return low, None if high == float("inf") else high


def _activation_backward(grad: Tensor, seen: Tensor, activation: tuple[float, float], out: Tensor) -> Tensor:
    """The gradient where the activation did not clamp, zero elsewhere; `seen` is its input or its output."""
    low, high = activation
    if high == float("inf"):
        return torch.ops.aten.threshold_backward.grad_input(grad, seen, low, grad_input=out)
    return torch.ops.aten.hardtanh_backward.grad_input(grad, seen, low, high, grad_input=out)
