"""Range method lsq: the learned step size of LSQ (Esser et al., ICLR 2020)."""

from core.quantization.ranges.mse import LeastSquares


class LearnedRange(LeastSquares):
    """Starts at the range with the least squared error; from there the scale is trained together with the weights."""

    learned = True
