"""The paper's uniform affine quantizer, and the module that applies it during training.

For n bits and a range [l, u]:

    S = (2^n - 1) / (u - l)      Z = S l + 2^(n-1)      q = round(theta S - Z)      theta' = (q + Z) / S

with q clamped to the signed integers [-2^(n-1), 2^(n-1) - 1]. The paper leaves two choices open. Here, the range is widened to contain
zero and Z is rounded to an integer, so that zero (padding, and outputs of ReLU) is represented exactly; and values are rounded half to
even. In the terms of torch and ONNX, scale = 1 / S and zero point = -Z.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from core.config import BIT_WIDTHS
from core.errors import ConfigError, CoreError
from core.gpu import is_capturing

LOWEST_SYMMETRIC = -127  # kernels for int8 weights around zero exclude -128, whose products may overflow


def integer_range(bits: int) -> tuple[int, int]:
    """Lowest and highest signed integer of `bits` bits: (-8, 7) for 4. Raises ConfigError outside 2 to 8."""
    if bits not in BIT_WIDTHS:
        raise ConfigError(f"bit width must be {BIT_WIDTHS[0]} to {BIT_WIDTHS[-1]}, got {bits!r}")
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def affine_parameters(lower: Tensor, upper: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """S and Z of the ranges [lower, upper], any shape. Z is an integer. An empty range (all zeros) gets S = 1."""
    lowest, _ = integer_range(bits)
    lower, upper = lower.clamp(max=0.0), upper.clamp(min=0.0)
    width = upper - lower
    usable = width > torch.finfo(width.dtype).tiny * 2**bits
    scaling = torch.where(usable, (2**bits - 1) / torch.where(usable, width, 1.0), 1.0)
    return scaling, torch.round(scaling * lower) - lowest


def quantize(values: Tensor, scaling: Tensor, offset: Tensor, bits: int) -> Tensor:
    """q = round(theta S - Z), clamped: integers in the dtype of `values`. S and Z must broadcast to it."""
    lowest, highest = integer_range(bits)
    return torch.round(values * scaling - offset).clamp(lowest, highest)


def dequantize(integers: Tensor, scaling: Tensor, offset: Tensor) -> Tensor:
    """theta' = (q + Z) / S."""
    return (integers + offset) / scaling


class FakeQuantize(torch.autograd.Function):
    """Quantize-dequantize with a straight-through gradient for the values and, if the scale is learned, LSQ's gradient for the scale.

    With v = x / scale + zero point and q = clamp(round(v)):  y = (q - zero point) scale,  dy/dx = 1 inside the range and 0 outside,
    dy/dscale = round(v) - v inside, q - zero point outside (Esser et al., ICLR 2020, eq. 3), times `gradient_scale`.

    x: any shape; scale, zero_point: broadcastable to it, zero_point integers; not differentiable in zero_point.

    Memory traffic dominates the cost, so forward and backward each allocate one tensor of the size of x and work in place. Only x and y
    are saved, which the neighboring operations save anyway: (q - zero point) = y / scale, v - zero point = x / scale.
    """

    @staticmethod
    def forward(ctx, x, scale, zero_point, lowest, highest, gradient_scale):  # type: ignore[override]
        y = torch.div(x, scale).add_(zero_point).round_().clamp_(lowest, highest).sub_(zero_point).mul_(scale)
        ctx.save_for_backward(x, y if ctx.needs_input_grad[1] else None, scale, zero_point)
        ctx.range, ctx.gradient_scale = (lowest, highest), gradient_scale
        return y

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        x, y, scale, zero_point = ctx.saved_tensors
        lowest, highest = ctx.range
        position = torch.div(x, scale).add_(zero_point)
        # zero where the rounded position is beyond the last level; the gradient of hardtanh computes this mask in one pass
        grad_x = torch.ops.aten.hardtanh_backward.grad_input(grad, position, lowest - 0.5, highest + 0.5, grad_input=position)
        if y is None:
            return grad_x, None, None, None, None, None
        grad_scale = (grad * y).addcmul_(grad_x, x, value=-1).sum_to_size(scale.shape) / scale
        return grad_x, grad_scale * ctx.gradient_scale, None, None, None, None


class Quantizer(nn.Module):
    """Fake quantization of one tensor: weights of a layer (per channel) or an activation (per tensor).

    bits: 2 to 8; other widths raise ConfigError. channels: number of output channels of a weight, each with its own range along dimension
    0; None for an activation. symmetric: of a range method whose ranges have the zero point 0 (ranges/base.py); without the level -128.

    `scale` and `zero_point` are `(channels,)` or `()`. Until a range is set, the module returns its input unchanged.
    With `learned`, the logarithm of the scale is trained (LSQ; the logarithm as in TQT, Jain et al., MLSys 2020): scales are between 1e-4
    and 1, and a step of Adam, which has the same size for all parameters, would push small ones below zero. Otherwise the scale is set
    by `set_range` only (see ranges/base.py).
    """

    log_scale: Tensor  # natural logarithm, if learned
    fixed_scale: Tensor  # if not
    zero_point: Tensor
    ready: Tensor

    def __init__(self, bits: int, channels: int | None = None, learned: bool = False, symmetric: bool = False) -> None:
        super().__init__()
        self.bits, self.channels, self.learned = bits, channels, learned
        self.lowest, self.highest = integer_range(bits)
        if symmetric:
            self.lowest = max(self.lowest, LOWEST_SYMMETRIC)
        shape = () if channels is None else (channels,)
        if learned:
            self.log_scale = nn.Parameter(torch.zeros(shape))
        else:
            self.register_buffer("fixed_scale", torch.ones(shape))
        self.register_buffer("zero_point", torch.zeros(shape))
        self.register_buffer("ready", torch.tensor(False))
        self._ready = False  # a copy of `ready` on the CPU: reading the buffer would synchronize in every forward pass

    @property
    def calibrated(self) -> bool:
        """Whether a range has been set, by `set_range` or by a loaded state."""
        return self._ready

    @property
    def scale(self) -> Tensor:
        """1 / S, `(channels,)` or `()`."""
        return self.log_scale.exp() if self.learned else self.fixed_scale

    def extra_repr(self) -> str:
        return f"bits={self.bits}, {'per tensor' if self.channels is None else f'{self.channels} channels'}, learned={self.learned}"

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._ready = bool(self.ready)

    @torch.no_grad()
    def set_range(self, lower: Tensor, upper: Tensor) -> None:
        """Sets the range to [lower, upper], `(channels,)` or `()`, widened to contain zero. Raises CoreError if an end is not finite."""
        if not is_capturing(lower) and not bool(torch.isfinite(lower).all() & torch.isfinite(upper).all()):
            raise CoreError("quantization ranges must be finite, got infinity or NaN; try a smaller training_lr")
        scaling, offset = affine_parameters(lower, upper, self.bits)
        if self.learned:
            self.log_scale.copy_(-scaling.log())
        else:
            self.fixed_scale.copy_(1 / scaling)
        self.zero_point.copy_(-offset)
        if not self._ready:
            self.ready.fill_(True)
            self._ready = True

    def forward(self, x: Tensor) -> Tensor:
        if not self._ready:
            return x
        scale, zero_point = self.scale, self.zero_point
        count = x.numel() if self.channels is None else x.numel() // self.channels
        if self.channels is not None:
            scale, zero_point = (value.view(-1, *[1] * (x.ndim - 1)) for value in (scale, zero_point))
        gradient_scale = (count * self.highest) ** -0.5  # LSQ, section 2.2
        return FakeQuantize.apply(x, scale, zero_point, self.lowest, self.highest, gradient_scale)
