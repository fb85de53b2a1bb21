"""Learning-rate schedules: factors of the peak learning rate, from 0 to 1, at `step` (from 0) of `steps`."""

import math


def cosine_after_warm_up(step: int, steps: int, warm_up: int) -> float:
    """(step + 1) / warm_up for `warm_up` steps, then half a cosine from 1 towards 0 over the remaining ones."""
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def cosine_below_warm_up(step: int, steps: int, warm_up: float) -> float:
    """The smaller of (step + 1) / warm_up and half a cosine from 1 to 0 over all steps."""
    return min((step + 1) / warm_up, 0.5 * (1 + math.cos(math.pi * step / steps)))
