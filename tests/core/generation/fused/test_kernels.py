import subprocess
import sys
import threading

import pytest
import torch

from core.generation.fused import kernels

RELU, RELU6 = (0.0, float("inf")), (0.0, 6.0)
SHAPES = [(6, 5, 4, 3), (2, 16, 8, 8), (3, 48, 7, 5), (1, 600, 3, 3), (40, 16, 16, 16), (1, 70_000, 1, 2)]


needs_compiler = pytest.mark.skipif(kernels.description() != "C", reason="needs a C compiler")


@pytest.fixture(params=[pytest.param("C", marks=needs_compiler), "torch"])
def way(request):
    if request.param == "C":
        yield request.param
    else:
        with kernels.by_torch():
            yield request.param


def random(shape, seed):
    numbers = 4.0 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return numbers.contiguous(memory_format=torch.channels_last)


def affine(channels):
    scale, shift = torch.rand(2, channels, generator=torch.Generator().manual_seed(9))
    return kernels.BatchNormAffine(scale + 0.5, shift)


def formula(y, residual, layer, activation):
    """In double precision: z, and mean and variance of the input of the layer whose output is y."""
    y = y.double()
    z = y if residual is None else y + residual.double()
    if activation is not None:
        z = z.clamp(*activation)
    x = (y - layer.shift.double().view(-1, 1, 1)) / layer.scale.double().view(-1, 1, 1)
    return z, x.mean(dim=(0, 2, 3)), x.var(dim=(0, 2, 3))


CASES = [(None, False), (RELU, False), (RELU6, False), (RELU, True), (RELU6, True)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("activation", "added"), CASES)
def test_forward_equals_the_formula(shape, activation, added, way):
    y, residual, layer = random(shape, 0), random(shape, 1) if added else None, affine(shape[1])
    z, mean, variance = kernels.forward(y, residual, layer, activation)
    expected, wanted, spread = formula(y, residual, layer, activation)
    assert torch.allclose(z.double(), expected, rtol=1e-6)
    assert z.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(mean.double(), wanted, rtol=1e-4, atol=1e-4)
    # cancellation: the variance is computed from squares, and two numbers may differ by much less than their mean
    assert torch.allclose(variance.double(), spread, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("users", [1, 2])
@pytest.mark.parametrize(("activation", "added"), CASES)
def test_backward_equals_autograd_of_the_formula(shape, activation, added, users, way):
    y, residual, layer = random(shape, 0), random(shape, 1) if added else None, affine(shape[1])
    grads = [random(shape, 2 + user) for user in range(users)]
    on_mean, on_variance = torch.randn(2, shape[1], generator=torch.Generator().manual_seed(4))
    own, other = y.double().requires_grad_(True), residual.double().requires_grad_(True) if added else None
    z, mean, variance = formula(own, other, layer, activation)
    ((z * sum(grads).double()).sum() + mean @ on_mean.double() + variance @ on_variance.double()).backward()
    output = kernels.forward(y, residual, layer, activation)[0] if added else None
    before = y.clone()
    out, passed = kernels.backward(y, grads, output, layer, (mean.detach().float(), on_mean, on_variance), activation)
    assert torch.allclose(out.double(), own.grad, rtol=1e-4, atol=1e-4)
    if added:
        assert torch.allclose(passed.double(), other.grad, rtol=1e-6)
    else:
        assert passed is None
    if activation is None:  # then y is the output itself, which may still be needed
        assert torch.equal(y, before)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("activation", "added"), CASES)
def test_statistics_of_each_image(shape, activation, added, way):
    """Forward and backward of each image are those of a batch of it alone."""
    y, residual, layer = random(shape, 0), random(shape, 1) if added else None, affine(shape[1])
    grad, (on_mean, on_variance) = random(shape, 2), torch.randn(2, *shape[:2], generator=torch.Generator().manual_seed(4))
    z, mean, variance = kernels.forward(y, residual, layer, activation, per_image=True)
    wanted = []
    for index in range(shape[0]):
        own, other = (None if all is None else all[index : index + 1].double().requires_grad_(True) for all in (y, residual))
        one, own_mean, own_variance = formula(own, other, layer, activation)
        assert torch.allclose(z[index].double(), one[0], rtol=1e-6)
        assert torch.allclose(mean[index].double(), own_mean, rtol=1e-4, atol=1e-4)
        assert torch.allclose(variance[index].double(), own_variance, rtol=1e-4, atol=1e-3)
        ((one * grad[index].double()).sum() + own_mean @ on_mean[index].double() + own_variance @ on_variance[index].double()).backward()
        wanted.append((own.grad, None if other is None else other.grad))
    out, passed = kernels.backward(y, [grad], z if added else None, layer, (mean, on_mean, on_variance), activation)
    assert torch.allclose(out.double(), torch.cat([own for own, _ in wanted]), rtol=1e-4, atol=1e-4)
    if added:
        assert torch.allclose(passed.double(), torch.cat([other for _, other in wanted]), rtol=1e-6)


def test_nan_stays_nan(way):
    y = random((2, 16, 8, 8), 0)
    y[1, 3, 2, 2] = float("nan")
    z, mean, _ = kernels.forward(y, None, affine(16), RELU6)
    assert z.isnan().sum() == 1
    assert mean.isnan().sum() == 1


def test_gradients_in_any_memory_format(way):
    y, grad, layer, statistics = random((2, 16, 8, 8), 0), random((2, 16, 8, 8), 1), affine(16), torch.zeros(3, 16)
    expected, _ = kernels.backward(y.clone(memory_format=torch.preserve_format), [grad], None, layer, statistics, RELU)
    assert torch.equal(kernels.backward(y, [grad.contiguous()], None, layer, statistics, RELU)[0], expected)
    broadcast = torch.ones(2, 16, 1, 1).expand(2, 16, 8, 8)
    assert torch.equal(kernels.backward(y, [broadcast], None, layer, statistics, None)[0], torch.ones_like(y))


@needs_compiler
def test_same_bits_with_any_number_of_threads():
    y, residual, *grads = (random((40, 16, 32, 32), seed) for seed in range(4))
    layer, gradients = affine(16), torch.randn(2, 16, generator=torch.Generator().manual_seed(5))
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            z, mean, variance = kernels.forward(y, residual, layer, RELU)
            own = y.clone(memory_format=torch.preserve_format)
            found.append([z, mean, variance, *kernels.backward(own, grads, z, layer, (mean, *gradients), RELU)])
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
def test_without_a_compiler_torch_is_used(environment, reason):
    code = (
        "import torch; from core.generation.fused import kernels; print(kernels.description()); "
        "layer = kernels.BatchNormAffine(torch.ones(1), torch.ones(1)); y = torch.tensor([-1.0, 2.0]).view(1, 1, 1, 2); "
        "print(kernels.forward(y, None, layer, (0.0, float('inf')))[0].flatten().tolist())"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], env={"PATH": "/usr/bin:/bin", **environment}, capture_output=True, encoding="utf-8"
    )
    first, second = answer.stdout.splitlines()
    assert reason in first
    assert second == "[0.0, 2.0]"


def test_torch_is_chosen_for_one_thread_only():
    """Runs may be computed in several threads of one process."""
    before, others = kernels.description(), []
    with kernels.by_torch():
        thread = threading.Thread(target=lambda: others.append(kernels.description()))
        thread.start()
        thread.join()
        assert kernels.description() == "torch: chosen"
    assert others == [before]
    assert kernels.description() == before


@needs_compiler
@pytest.mark.parametrize(("before", "used"), [("", "C"), ("C", "C"), ("torch", "torch")])
def test_resumed_run_uses_the_kernels_it_began_with(before, used):
    said = []
    with kernels.resumed(before, "Adam", said.append) as now:
        assert now == used
        assert kernels.description().startswith(used)
    assert said == []
    assert kernels.description() == "C"


@pytest.mark.parametrize(("before", "warns"), [("", False), ("torch", False), ("C", True)])
def test_resumed_run_without_a_compiler_warns_if_it_began_with_one(monkeypatch, before, warns):
    monkeypatch.setattr(kernels, "_library", lambda: "no C compiler")
    said = []
    with kernels.resumed(before, "Adam", said.append) as now:
        assert now == "torch"
    assert len(said) == warns
    if warns:
        assert said[0].startswith("the images by Adam will differ slightly from those of an uninterrupted run")
        assert said[0].endswith("resumed without (no C compiler)")
