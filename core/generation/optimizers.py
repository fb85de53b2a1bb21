"""MI-FGSM as a torch optimizer, and the schedules of step sizes."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from core.errors import ConfigError


class MIFGSM(Optimizer):
    """Momentum iterative fast gradient sign method, descending.

        g_{t+1} = mu * g_t + grad_x J / ||grad_x J||_1        x_{t+1} = x_t - epsilon * sign(g_{t+1})

    The L1 norm is taken over each image, that is over all dimensions but the first, so every image of a batch weighs the same
    whatever the scale of its gradient; an image whose gradient is zero continues with its momentum alone. (Dong et al., CVPR 2018,
    ascend; DFFG, BMVC 2023, descends.)

    params: tensors `(N, ...)`, one image along the first dimension.
    epsilon: step size in the units of the images, 0 or more. Kept as `lr`, so that torch's schedulers work on it.
    mu: momentum, 0 or more. Raises ConfigError for values outside.
    """

    def __init__(self, params: Iterable[Tensor], epsilon: float = 0.1, mu: float = 0.9) -> None:
        if not epsilon >= 0:
            raise ConfigError(f"epsilon must be 0 or more, got {epsilon}")
        if not mu >= 0:
            raise ConfigError(f"mu must be 0 or more, got {mu}")
        super().__init__(params, {"lr": epsilon, "mu": mu})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """One step; `closure`, if given, evaluates the loss again, as in torch's own optimizers."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for images in group["params"]:
                if images.grad is None:
                    continue
                gradient = images.grad
                norm = gradient.abs().sum(dim=tuple(range(1, gradient.ndim)), keepdim=True)
                norm = norm.clamp_min(torch.finfo(norm.dtype).tiny)
                state = self.state[images]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(images)
                momentum = state["momentum"].mul_(group["mu"]).addcdiv_(gradient, norm)
                images.add_(momentum.sign(), alpha=-group["lr"])
        return loss


def step_size_factor(schedule: str, iteration: int, iterations: int) -> float:
    """The factor of the step size at `iteration` (from 0): 1 throughout, or decaying linearly from 1 to 0.02 at the last one."""
    if schedule == "constant" or iterations == 1:
        return 1.0
    return 1.0 - 0.98 * iteration / (iterations - 1)


class Plateau:
    """The factor of the step size that falls to a tenth when the loss does not, as by torch's ReduceLROnPlateau with its defaults.

    patience: iterations without a loss more than 0.01 % below the lowest so far; the next such iteration lowers the factor.
    """

    def __init__(self, patience: int) -> None:
        self.factor = 1.0
        self._patience, self._lowest, self._waited = patience, math.inf, 0

    def observe(self, loss: float) -> None:
        """Called with the loss of each iteration, after its step."""
        if loss < self._lowest * (1 - 1e-4):
            self._lowest, self._waited = loss, 0
        else:
            self._waited += 1
        if self._waited > self._patience:
            self.factor, self._waited = 0.1 * self.factor, 0

    def state(self) -> tuple[float, float, int]:
        """For `load_state`."""
        return self.factor, self._lowest, self._waited

    def load_state(self, state: Sequence[Any]) -> None:
        """Continues from `state`."""
        self.factor, self._lowest, self._waited = state
