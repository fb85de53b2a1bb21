import math

import pytest
import torch

from core.quantization.losses import distillation_loss, feature_loss


def test_distillation_loss_by_hand():
    # teacher (1/2, 1/2), student (1/4, 3/4): KL = 1/2 ln(2) + 1/2 ln(2/3)
    divergence = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    teacher, student = torch.zeros(1, 2), torch.tensor([[0.0, math.log(3)]])
    torch.testing.assert_close(distillation_loss(student, teacher, 1.0), torch.tensor(divergence))
    # doubled logits at T = 2 give the same distributions, times T^2
    torch.testing.assert_close(distillation_loss(2 * student, teacher, 2.0), torch.tensor(4 * divergence))
    # the mean over the batch; a pair that agrees adds nothing
    pairs = torch.cat([student, student]), torch.cat([teacher, student])
    torch.testing.assert_close(distillation_loss(*pairs, 1.0), torch.tensor(divergence / 2))


def test_gradient_of_the_distillation_loss():
    # d/d logits of T^2 KL is T (p_student - p_teacher), divided by the batch size
    student = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    teacher = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    distillation_loss(student, teacher, 4.0).backward()
    expected = 4.0 * ((student / 4).softmax(1) - (teacher / 4).softmax(1)) / 3
    torch.testing.assert_close(student.grad, expected.detach())


def test_feature_loss_by_hand():
    student = [torch.tensor([1.0, 2.0]), torch.tensor([[3.0]])]
    teacher = [torch.tensor([1.0, 1.0]), torch.tensor([[2.0]])]
    # mean of (0 + 1) / (1 + 1) and 1 / 4
    assert feature_loss(student, teacher).item() == pytest.approx(0.375)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_feature_loss_and_its_gradient_against_torch(layout):
    generator = torch.Generator().manual_seed(4)
    shapes = [(3, 4, 5, 6), (3, 8, 2, 2), (2, 1, 1, 1)]
    student, teacher = ([torch.randn(shape, generator=generator).to(memory_format=layout) for shape in shapes] for _ in range(2))
    teacher[2].zero_()  # the denominator is clamped
    results = []
    for dtype, ours in ((torch.float32, True), (torch.float64, False)):
        leaves = [s.detach().clone().to(dtype).requires_grad_() for s in student]
        targets = [t.to(dtype) for t in teacher]
        if ours:
            loss = feature_loss(leaves, targets)
        else:
            loss = sum((s - t).square().mean() / t.square().mean().clamp_min(1e-12) for s, t in zip(leaves, targets)) / len(shapes)
        (3 * loss).backward()
        results.append([loss.detach().float(), *(leaf.grad.float() for leaf in leaves)])
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-7)
    leaf = student[0].requires_grad_()
    (gradient,) = torch.autograd.grad(feature_loss([leaf], [teacher[0]]), leaf)
    assert gradient.stride() == leaf.stride()  # the memory format of the earlier layers
