"""The entropy of the gap between two networks, against values by hand and numeric gradients."""

import math

import pytest
import torch

from core.generation.disagreement import balance_loss, gap_entropy, relative_entropy

# softmax: (1/2, 1/2), (1/4, 3/4), (1/10, 9/10)
GAP = torch.tensor([[1.0, 1.0], [0.0, math.log(3)], [-1.0, math.log(9) - 1.0]], dtype=torch.float64)
ENTROPIES = [math.log(2), 0.25 * math.log(4) + 0.75 * math.log(4 / 3), 0.1 * math.log(10) + 0.9 * math.log(10 / 9)]


def test_entropy_by_hand():
    assert gap_entropy(GAP).tolist() == pytest.approx(ENTROPIES)


def test_relative_entropy_and_its_bounds_by_hand():
    middle = (ENTROPIES[1] - ENTROPIES[2]) / (ENTROPIES[0] - ENTROPIES[2])
    assert relative_entropy(GAP).tolist() == pytest.approx([1.0, middle, 0.0])
    # the first is 0.2 above the upper bound, the last 0.1 below the lower one
    assert float(balance_loss(GAP, 0.1, 0.8)) == pytest.approx((0.2 + 0.1) / 3)
    assert float(balance_loss(GAP, middle + 0.05, 1.0)) == pytest.approx((0.05 + middle + 0.05) / 3)


def test_gradient_is_the_numeric_one_also_through_the_smallest_entropy():
    gap = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: balance_loss(x, 0.3, 0.6), gap)
    (gradient,) = torch.autograd.grad(relative_entropy(gap)[1], gap)
    assert gradient[gap_entropy(gap).argmin()].abs().max() > 0


def test_networks_that_agree_have_a_finite_gradient():
    gap = torch.zeros(3, 4, requires_grad=True)
    balance_loss(gap, 0.1, 0.8).backward()
    assert bool(torch.isfinite(gap.grad).all())
