"""The interface of range methods, which find the range [l, u] of a quantizer, and `range_method`, which looks one up."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from core.config import RANGE_METHODS, TrainingConfig
from core.errors import UnknownNameError
from core.quantization.quantizer import LOWEST_SYMMETRIC, integer_range

# bits, channels (as in Quantizer) -> the range method of one quantizer
RangeFactory = Callable[[int, int | None], "RangeMethod"]


class RangeMethod(ABC):
    """Finds the range of one tensor: the weight of a layer, or an activation. Every quantizer has its own object.

    During calibration `observe` is called with float values; then `range` returns the result, which the quantizer turns into its scale
    and zero point.

    Adding a range method
        1. A subclass in a file of this folder.
        2. Its choice in RANGE_METHODS (core/config/choices.py): its name, its class, and one line of help.
        3. If it has knobs of its own: the knobs in core/config/training.py, and a `factory` that reads them.

    Class attributes
        updates_in_training: the range is found again in every training step. A quantizer of an activation then observes each batch; a
        layer observes its weight each time it is used.
        learned: the scale is a parameter of the training (LSQ), and starts at the range that the calibration found.

    Rules
        Same values, same bits: anything random needs a generator of its own, seeded, and in `state`.
        CUDA graphs: with `updates_in_training`, `observe` and `range` are captured once and then replayed. From the second call on they
        must write their results in place, into the tensors of the first call, and must not read tensor values on the CPU.
        State: what later steps need of earlier ones is in `state`. A training that resumes calls `load_state` instead of observing again.

    bits: 2 to 8. channels: number of output channels of a weight; None for an activation. symmetric: quantizers take a range whose zero
    point is 0, see `allowed`.
    """

    updates_in_training = False
    learned = False
    symmetric = False

    def __init__(self, bits: int, channels: int | None) -> None:
        self.bits, self.channels = bits, channels

    @classmethod
    def factory(cls, config: TrainingConfig) -> RangeFactory:
        """Makes the objects of this method. Override it to pass knobs: `return partial(cls, percentile=config.percentile)`."""
        return cls

    @abstractmethod
    def observe(self, values: Tensor) -> None:
        """Takes one batch of float values of an activation, any shape, or a weight `(channels, ...)`."""

    @abstractmethod
    def range(self) -> tuple[Tensor, Tensor]:
        """Lower and upper end, `(channels,)` for a weight and `()` for an activation; called after `observe`."""

    def allowed(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """[lower, upper]; if `symmetric`, the smallest range around it whose zero point is 0: -2^(n-1) to 2^(n-1) - 1 steps.

        Neither end needs the level -128.
        """
        if not self.symmetric:
            return lower, upper
        lowest, highest = integer_range(self.bits)
        step = torch.maximum(lower / max(lowest, LOWEST_SYMMETRIC), upper / highest)
        step = torch.where(step > 2 * torch.finfo(step.dtype).tiny, step, 1.0)  # 1 for a range of zeros alone
        return lowest * step, highest * step

    def allowed_range(self) -> tuple[Tensor, Tensor]:
        """What `range` finds, as it is allowed: the range of the quantizer."""
        return self.allowed(*self.range())

    def state(self) -> list[Tensor]:
        """The tensors that `load_state` needs. Empty if training does not depend on what was observed."""
        return []

    def load_state(self, state: list[Tensor]) -> None:  # noqa: B027, because most methods have no state
        """Continues where `state` was taken, to the same bits. The tensors may be on another device."""


def extremes(values: Tensor, channels: int | None) -> tuple[Tensor, Tensor]:
    """Minimum and maximum: of all values, `()`, or of each row of a weight `(channels, ...)`, `(channels,)`."""
    if channels is None:
        if values.ndim == 4 and values.is_contiguous(memory_format=torch.channels_last):
            values = values.permute(0, 2, 3, 1)  # the order in memory; otherwise torch copies the tensor first
        return torch.aminmax(values)
    return torch.aminmax(values.flatten(1), dim=1)


def range_method(config: TrainingConfig) -> RangeFactory:
    """The factory of the range method that `config.range` names; with `symmetric_weights`, those of weights are symmetric.

    Raises UnknownNameError.
    """
    if config.range not in RANGE_METHODS:
        raise UnknownNameError("range method", config.range, RANGE_METHODS)
    source = RANGE_METHODS[config.range].source
    if isinstance(source, str):
        module, _, name = source.partition(":")
        source = getattr(importlib.import_module(module), name)
    factory = source.factory(config)
    if not config.symmetric_weights:
        return factory

    def symmetric(bits: int, channels: int | None) -> RangeMethod:
        method = factory(bits, channels)
        method.symmetric = channels is not None
        return method

    return symmetric
