"""How the range of a quantizer is found: three methods behind one interface.

A method looks at float values while calibration runs (`observe`), says what range follows (`range`), and tells whether it goes on
looking while the network trains (`follows`) or whether the scale is trained instead (`learned`).
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from core.config import RANGE_METHODS
from core.errors import UnknownNameError
from core.quantization.quantizer import affine_parameters, dequantize, quantize

SAMPLES_PER_BATCH = 32_768  # values of an activation that the search for the least squared error keeps of each batch


class RangeMethod(ABC):
    """Finds the range of one tensor. One object a quantizer; `channels` as in Quantizer."""

    follows = False  # goes on observing while the network trains
    learned = False  # the scale is a parameter of the training

    def __init__(self, bits: int, channels: int | None) -> None:
        self.bits, self.channels = bits, channels

    @abstractmethod
    def observe(self, values: Tensor) -> None:
        """Looks at one batch of float values, or at a weight `(channels, ...)`."""

    @abstractmethod
    def range(self) -> tuple[Tensor, Tensor]:
        """Lower and upper end after what was observed, `(channels,)` or `()`."""

    def state(self) -> list[Tensor]:
        """What the training still needs of what was observed, for `load_state`."""
        return []

    def load_state(self, state: list[Tensor]) -> None:  # noqa: B027, as most methods have none
        """Goes on where `state` was taken."""

    def _ends(self, values: Tensor) -> tuple[Tensor, Tensor]:
        if self.channels is None:
            if values.ndim == 4 and values.is_contiguous(memory_format=torch.channels_last):
                values = values.permute(0, 2, 3, 1)  # in the order of memory, or torch would copy it first
            return torch.aminmax(values)
        return torch.aminmax(values.flatten(1), dim=1)


class MinMax(RangeMethod):
    """Smallest and largest value: of the weight itself, and for activations the running average over batches (the paper's)."""

    follows = True
    momentum = 0.1

    def __init__(self, bits: int, channels: int | None) -> None:
        super().__init__(bits, channels)
        self._range: tuple[Tensor, Tensor] | None = None

    def observe(self, values: Tensor) -> None:
        ends = self._ends(values.detach())
        if self._range is None:
            self._range = (ends[0].clone(), ends[1].clone())
            return
        for own, end in zip(self._range, ends):  # in their place, where a GPU's recording finds them
            if self.channels is None:
                own.lerp_(end, self.momentum)
            else:  # a weight has no batches to average over
                own.copy_(end)

    def state(self) -> list[Tensor]:
        return list(self._range or ())

    def load_state(self, state: list[Tensor]) -> None:
        if state:
            device = self._range[0].device if self._range else state[0].device
            self._range = (state[0].to(device, copy=True), state[1].to(device, copy=True))

    def range(self) -> tuple[Tensor, Tensor]:
        assert self._range is not None, "observe comes before range"
        return self._range


class LeastSquares(RangeMethod):
    """The range whose quantization has the least squared error, by search: both ends shrunk together, then each on its own."""

    candidates = 48

    def __init__(self, bits: int, channels: int | None) -> None:
        super().__init__(bits, channels)
        self._seen: list[Tensor] = []

    def observe(self, values: Tensor) -> None:
        values = values.detach()
        if self.channels is not None:
            self._seen = [values]
            return
        flat = values.flatten()
        if len(flat) > SAMPLES_PER_BATCH:
            # a prime stride through the memory order reaches all channels and positions alike
            index = torch.arange(SAMPLES_PER_BATCH, device=flat.device) * 7919 * max(1, len(flat) // (SAMPLES_PER_BATCH * 7919))
            flat = flat[index % len(flat)]
        self._seen.append(flat.clone())

    @torch.no_grad()
    def range(self) -> tuple[Tensor, Tensor]:
        values = self._seen[0].flatten(1) if self.channels is not None else torch.cat(self._seen)[None]
        self._seen = []  # not needed again, and many megabytes
        lower, upper = (end.clamp(max=0.0) if i == 0 else end.clamp(min=0.0) for i, end in enumerate(torch.aminmax(values, dim=1)))
        low_factor = high_factor = torch.ones_like(lower)
        best = self._error(values, lower, upper)
        # each pass scales (lower, upper) by a grid of factors below 1 of one or both ends, and keeps what is better
        for ends in ((1, 1), (1, 0), (0, 1)):
            start = (low_factor, high_factor)
            for i in range(1, self.candidates):
                factor = 1 - i / self.candidates
                low = start[0] * (factor if ends[0] else 1.0)
                high = start[1] * (factor if ends[1] else 1.0)
                error = self._error(values, lower * low, upper * high)
                better = error < best
                best = torch.where(better, error, best)
                low_factor, high_factor = torch.where(better, low, low_factor), torch.where(better, high, high_factor)
        lower, upper = lower * low_factor, upper * high_factor
        return (lower, upper) if self.channels is not None else (lower[0], upper[0])

    def _error(self, values: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        scaling, offset = affine_parameters(lower[:, None], upper[:, None], self.bits)
        restored = dequantize(quantize(values, scaling, offset, self.bits), scaling, offset)
        return (restored - values).square_().sum(dim=1)


class LearnedRange(LeastSquares):
    """Learned step size (LSQ): starts at the least squared error, then the scale is trained with the weights."""

    learned = True


METHODS: dict[str, type[RangeMethod]] = dict(zip(RANGE_METHODS, (MinMax, LeastSquares, LearnedRange)))


def range_method(name: str) -> type[RangeMethod]:
    """The class behind `name`. Raises UnknownNameError."""
    if name not in METHODS:
        raise UnknownNameError("range method", name, METHODS)
    return METHODS[name]
