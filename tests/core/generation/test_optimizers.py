import pytest
import torch

from core.errors import ConfigError
from core.generation.optimizers import MIFGSM, Plateau, step_size_factor


def run_steps(images, gradients, **knobs):
    images = images.clone().requires_grad_(True)
    optimizer = MIFGSM([images], **knobs)
    for gradient in gradients:
        images.grad = gradient.clone()
        optimizer.step()
    return images.detach(), optimizer.state[images]["momentum"]


def test_one_step_by_hand():
    images = torch.tensor([[[[1.0, 2.0]]], [[[3.0, 4.0]]]])
    gradient = torch.tensor([[[[3.0, -1.0]]], [[[0.0, 0.5]]]])
    moved, momentum = run_steps(images, [gradient], epsilon=0.1, mu=0.9)
    assert torch.equal(momentum, torch.tensor([[[[0.75, -0.25]]], [[[0.0, 1.0]]]]))
    # against the sign of the gradient; a pixel whose gradient is zero stays
    assert torch.allclose(moved, torch.tensor([[[[0.9, 2.1]]], [[[3.0, 3.9]]]]))


def test_momentum_over_two_steps_by_hand():
    first, second = torch.tensor([[[[1.0, 1.0]]]]), torch.tensor([[[[-3.0, 1.0]]]])
    moved, momentum = run_steps(torch.zeros(1, 1, 1, 2), [first, second], epsilon=0.5, mu=0.9)
    # g1 = (0.5, 0.5); g2 = 0.9 g1 + (-0.75, 0.25) = (-0.3, 0.7)
    assert torch.allclose(momentum, torch.tensor([[[[-0.3, 0.7]]]]))
    assert torch.allclose(moved, torch.tensor([[[[0.0, -1.0]]]]))


def test_step_does_not_depend_on_the_scale_of_the_gradient():
    gradient = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    later = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    both = [torch.cat([gradient, 1000 * gradient]), torch.cat([later, 0.001 * later])]
    moved, _ = run_steps(torch.zeros(2, 3, 4, 4), both, epsilon=0.1, mu=0.9)
    assert torch.equal(moved[0], moved[1])


def test_image_with_zero_gradient_moves_by_its_momentum():
    ones, nothing = torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
    moved, momentum = run_steps(torch.zeros(1, 1, 2, 2), [ones, nothing], epsilon=0.1, mu=0.5)
    assert torch.allclose(momentum, torch.full((1, 1, 2, 2), 0.125))
    assert torch.allclose(moved, torch.full((1, 1, 2, 2), -0.2))


def test_torch_scheduler_changes_epsilon():
    images = torch.zeros(1, 1, 1, 1, requires_grad=True)
    optimizer = MIFGSM([images], epsilon=0.4, mu=0.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    for _ in range(3):
        images.grad = torch.ones_like(images)
        optimizer.step()
        scheduler.step()
    assert images.item() == pytest.approx(-(0.4 + 0.2 + 0.1))


def test_closure_is_evaluated_with_gradients():
    images = torch.ones(1, 1, 1, 1, requires_grad=True)
    optimizer = MIFGSM([images], epsilon=0.25, mu=0.0)

    def closure():
        optimizer.zero_grad()
        loss = images.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 1.0
    assert images.item() == 0.75


@pytest.mark.parametrize(("knob", "value"), [("epsilon", -0.1), ("mu", -1.0), ("epsilon", float("nan"))])
def test_negative_or_nan_knob_is_refused(knob, value):
    with pytest.raises(ConfigError, match=f"{knob} must be 0 or more, got {value}"):
        MIFGSM([torch.zeros(1, 1, requires_grad=True)], **{knob: value})


def test_step_size_falls_linearly_to_two_percent():
    factors = [step_size_factor("linear", t, 50) for t in range(50)]
    assert factors[0] == 1.0
    assert factors[-1] == pytest.approx(0.02)
    assert all(a - b == pytest.approx(0.98 / 49) for a, b in zip(factors, factors[1:]))
    assert {step_size_factor("constant", t, 50) for t in range(50)} == {1.0}
    assert step_size_factor("linear", 0, 1) == 1.0


@pytest.mark.parametrize("patience", [0, 2, 5])
def test_plateau_is_that_of_torch(patience):
    losses = (5 * torch.rand(60, generator=torch.Generator().manual_seed(patience)) + torch.linspace(8, 0, 60)).tolist()
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=patience)
    plateau, expected, factors = Plateau(patience), [], []
    for number, loss in enumerate(losses):
        if number == 30:  # resumed here
            state, plateau = plateau.state(), Plateau(patience)
            plateau.load_state(state)
        scheduler.step(loss)
        plateau.observe(loss)
        expected.append(optimizer.param_groups[0]["lr"])
        factors.append(plateau.factor)
    assert factors[-1] < 1
    # torch stops lowering where a step would change less than 1e-8
    assert [max(factor, 1e-8) for factor in factors] == pytest.approx([max(factor, 1e-8) for factor in expected])
