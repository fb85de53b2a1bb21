import subprocess
import sys

import pytest
import torch

from core.generation import kernels

RELU, RELU6 = (0.0, float("inf")), (0.0, 6.0)
SHAPES = [(6, 5, 4, 3), (2, 16, 8, 8), (3, 48, 7, 5), (1, 600, 3, 3), (40, 16, 16, 16), (1, 70_000, 1, 2)]


@pytest.fixture(params=["C", "torch"])
def way(request):
    if request.param == "C":
        assert kernels.description() == "C", "the tests need a C compiler"
        yield request.param
    else:
        with kernels.by_torch():
            yield request.param


def random(shape, seed):
    numbers = 4.0 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return numbers.contiguous(memory_format=torch.channels_last)


def formula(y, residual, activation):
    """In double precision: z, sums and sums of squares."""
    y = y.double()
    z = y if residual is None else y + residual.double()
    if activation is not None:
        z = z.clamp(*activation)
    return z, y.sum(dim=(0, 2, 3)), y.square().sum(dim=(0, 2, 3))


CASES = [(None, False), (RELU, False), (RELU6, False), (RELU, True), (RELU6, True)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("activation", "added"), CASES)
def test_forward_is_the_formula(shape, activation, added, way):
    y, residual = random(shape, 0), random(shape, 1) if added else None
    z, sums, squares = kernels.forward(y, residual, activation)
    expected, total, square = formula(y, residual, activation)
    assert torch.allclose(z.double(), expected, rtol=1e-6)
    assert z.is_contiguous(memory_format=torch.channels_last)
    magnitude = y.double().abs().sum(dim=(0, 2, 3)).max()
    assert torch.allclose(sums.double().view(-1, shape[1]).sum(dim=0), total, atol=1e-5 * float(magnitude))
    assert torch.allclose(squares.double().view(-1, shape[1]).sum(dim=0), square, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("activation", "added"), CASES)
def test_backward_is_what_autograd_does_with_the_formula(shape, activation, added, way):
    y, residual, grad = random(shape, 0), random(shape, 1) if added else None, random(shape, 2)
    on_sums, on_squares = torch.randn(2, shape[1], generator=torch.Generator().manual_seed(3))
    own, other = y.double().requires_grad_(True), residual.double().requires_grad_(True) if added else None
    z, sums, squares = formula(own, other, activation)
    ((z * grad.double()).sum() + sums @ on_sums.double() + squares @ on_squares.double()).backward()
    output = kernels.forward(y, residual, activation)[0] if added else None
    before = y.clone()
    out, passed = kernels.backward(y, grad, output, 2 * on_squares, on_sums, activation)
    assert torch.allclose(out.double(), own.grad, rtol=1e-5, atol=1e-4)
    if added:
        assert torch.equal(passed.double(), other.grad)
    else:
        assert passed is None
    if activation is None:  # then y is what went out, and may be needed
        assert torch.equal(y, before)


def test_what_is_no_number_stays_none(way):
    y = random((2, 16, 8, 8), 0)
    y[1, 3, 2, 2] = float("nan")
    z, sums, _ = kernels.forward(y, None, RELU6)
    assert z.isnan().sum() == 1
    assert sums.view(-1, 16).sum(dim=0).isnan().sum() == 1


def test_gradients_in_any_layout(way):
    y, grad = random((2, 16, 8, 8), 0), random((2, 16, 8, 8), 1)
    slope, offset = torch.ones(16), torch.zeros(16)
    expected, _ = kernels.backward(y.clone(memory_format=torch.preserve_format), grad, None, slope, offset, RELU)
    assert torch.equal(kernels.backward(y, grad.contiguous(), None, slope, offset, RELU)[0], expected)
    broadcast = torch.ones(2, 16, 1, 1).expand(2, 16, 8, 8)
    assert torch.equal(kernels.backward(y, broadcast, None, slope, offset, None)[0], y + 1)


def test_the_number_of_threads_changes_no_bit():
    y, residual, grad = (random((40, 16, 32, 32), seed) for seed in range(3))
    slope, offset = torch.randn(2, 16, generator=torch.Generator().manual_seed(3))
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            z, *sums = kernels.forward(y, residual, RELU)
            found.append([z, *sums, *kernels.backward(y.clone(memory_format=torch.preserve_format), grad, z, slope, offset, RELU)])
    finally:
        torch.set_num_threads(before)
    for one, other in zip(found[0] * 2, found[1] + found[2]):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"PATH": ""}, "torch: no C compiler (cc, gcc, clang or the environment variable CC)"),
        ({"CC": "false"}, "false failed: 1"),
    ],
)
def test_a_machine_without_a_compiler_goes_on_by_torch(environment, reason):
    code = (
        "import torch; from core.generation import kernels; print(kernels.description()); "
        "z, *_ = kernels.forward(torch.tensor([-1.0, 2.0]).view(1, 1, 1, 2), None, (0.0, float('inf'))); print(z.flatten().tolist())"
    )
    answer = subprocess.run([sys.executable, "-c", code], env={"PATH": "/usr/bin:/bin", **environment}, capture_output=True, text=True)
    first, second = answer.stdout.splitlines()
    assert reason in first
    assert second == "[0.0, 2.0]"
