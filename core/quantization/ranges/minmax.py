"""Range method minmax: the smallest and largest value, as in the paper."""

from torch import Tensor

from core.quantization.ranges.base import RangeMethod, extremes


class MinMax(RangeMethod):
    """Smallest and largest value of a weight; for an activation their exponential moving average over batches.

    l <- l + momentum (min(x) - l), and u in the same way; the first batch sets both.
    """

    updates_in_training = True
    momentum = 0.1

    def __init__(self, bits: int, channels: int | None) -> None:
        super().__init__(bits, channels)
        self._range: tuple[Tensor, Tensor] | None = None

    def observe(self, values: Tensor) -> None:
        found = extremes(values.detach(), self.channels)
        if self._range is None:
            self._range = (found[0].clone(), found[1].clone())
            return
        for end, new in zip(self._range, found):  # in place, because CUDA graphs read and write these tensors
            if self.channels is None:
                end.lerp_(new, self.momentum)
            else:  # a weight has no batches to average over
                end.copy_(new)

    def range(self) -> tuple[Tensor, Tensor]:
        assert self._range is not None, "observe must be called before range"
        return self._range

    def state(self) -> list[Tensor]:
        return list(self._range or ())

    def load_state(self, state: list[Tensor]) -> None:
        if state:
            device = self._range[0].device if self._range else state[0].device
            self._range = (state[0].to(device, copy=True), state[1].to(device, copy=True))
