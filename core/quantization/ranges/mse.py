"""Range method mse: the range with the least squared quantization error."""

import torch
from torch import Tensor

from core.quantization.quantizer import affine_parameters, dequantize, quantize
from core.quantization.ranges.base import RangeMethod

SAMPLES_PER_BATCH = 32_768  # of an activation, kept for the search
# A prime larger than the extents of common activations. A stride that shares a factor with an extent would sample only some of the
# channels or positions; this one, a prime, reaches all of them evenly.
SAMPLING_STRIDE = 7919


class LeastSquares(RangeMethod):
    """The range [l, u] that minimizes sum (theta' - theta)^2, theta' the quantized values.

    A grid search: both ends are shrunk by the same factor, then each end separately.
    """

    candidates = 48  # factors i / candidates in each of the three passes

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
            stride = SAMPLING_STRIDE * max(1, len(flat) // (SAMPLES_PER_BATCH * SAMPLING_STRIDE))
            index = torch.arange(SAMPLES_PER_BATCH, device=flat.device) * stride
            flat = flat[index % len(flat)]
        self._seen.append(flat.clone())

    @torch.no_grad()
    def range(self) -> tuple[Tensor, Tensor]:
        values = self._seen[0].flatten(1) if self.channels is not None else torch.cat(self._seen)[None]
        self._seen = []  # no longer needed, and many megabytes
        lower, upper = torch.aminmax(values, dim=1)
        lower, upper = lower.clamp(max=0.0), upper.clamp(min=0.0)
        low_factor = high_factor = torch.ones_like(lower)
        best = self._error(values, lower, upper)
        # each pass multiplies both ends, the lower end or the upper end by factors below 1, and keeps what reduces the error
        for shrink_lower, shrink_upper in ((True, True), (True, False), (False, True)):
            start = (low_factor, high_factor)
            for i in range(1, self.candidates):
                factor = 1 - i / self.candidates
                low = start[0] * (factor if shrink_lower else 1.0)
                high = start[1] * (factor if shrink_upper else 1.0)
                error = self._error(values, lower * low, upper * high)
                better = error < best
                best = torch.where(better, error, best)
                low_factor, high_factor = torch.where(better, low, low_factor), torch.where(better, high, high_factor)
        lower, upper = lower * low_factor, upper * high_factor
        return (lower, upper) if self.channels is not None else (lower[0], upper[0])

    def _error(self, values: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        """Squared error of each row `(rows,)` for one range a row."""
        scaling, offset = affine_parameters(*self.allowed(lower[:, None], upper[:, None]), self.bits)
        restored = dequantize(quantize(values, scaling, offset, self.bits), scaling, offset)
        return (restored - values).square_().sum(dim=1)
