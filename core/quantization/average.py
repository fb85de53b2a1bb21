"""Exponential moving average (EMA) of parameters."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class ParameterAverage:
    """EMA of the parameters of a network: average <- d average + (1 - d) parameter after each step, starting at the initial values.

    decay: the largest d, reached gradually: after `step` steps d = min(decay, step / (step + 10)), so that a short training does not
    average with its start. 0 turns the average off.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        self.decay = decay
        self._parameters = list(parameters)
        self.values = [parameter.detach().clone() for parameter in self._parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes the parameters after `step` steps (from 1) into the average."""
        if self.decay:
            decay = min(self.decay, step / (step + 10))
            torch._foreach_lerp_(self.values, list[Tensor](self._parameters), 1 - decay)

    @torch.no_grad()
    def write(self) -> None:
        """Sets the parameters to the average."""
        if self.decay:
            torch._foreach_copy_(list[Tensor](self._parameters), self.values)

    def swap(self) -> None:
        """Exchanges the parameters with the average. A second call restores both, bit for bit."""
        if self.decay:
            for index, parameter in enumerate(self._parameters):
                parameter.data, self.values[index] = self.values[index], parameter.data

    def load(self, values: Iterable[Tensor]) -> None:
        """Sets the average. The tensors may be on another device."""
        for average, value in zip(self.values, values):
            average.copy_(value)
