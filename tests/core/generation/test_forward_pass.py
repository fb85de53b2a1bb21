import pytest
import torch
from torch import nn

from core.generation.bn_statistics import collect_statistics
from core.generation.forward_pass import ForwardPass
from core.generation.fused import kernels
from core.generation.losses import ForwardOutputs, total_loss

WEIGHTS = {"alpha_tv": 0.3, "alpha_l2": 0.02, "beta": 2.0}
LABELS = torch.arange(6) % 4


@pytest.fixture
def no_kernels():
    """Without the C kernels, which make torch.compile unnecessary."""
    with kernels.by_torch():
        yield


def images(count=6, seed=0):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed)).requires_grad_(True)


def plain(small, images, labels, weights):
    with collect_statistics(small.network) as statistics:
        logits = small.network(images)
        layers = statistics.layer_losses()
        both = torch.stack([torch.cat([passes[0][kind] for passes in statistics.batch]) for kind in (0, 1)])
    return *total_loss(ForwardOutputs(images, labels, logits, layers), weights), layers, logits, both


def check_equal(outcome, expected, gradient, expected_gradient):
    (total, parts, layers, logits, both), (total2, parts2, layers2, logits2, both2) = outcome, expected
    assert total.item() == pytest.approx(total2.item(), rel=1e-5)
    assert {k: v.item() for k, v in parts.items()} == pytest.approx({k: v.item() for k, v in parts2.items()}, rel=1e-5)
    assert torch.allclose(layers, layers2, rtol=1e-4)
    assert torch.allclose(logits, logits2, atol=1e-5)
    assert torch.allclose(both, both2, rtol=1e-4, atol=1e-5)
    assert not both.requires_grad
    assert torch.allclose(gradient, expected_gradient, atol=1e-5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_pass_equals_the_network_with_hooks_and_the_losses(small, layout):
    outcomes, gradients = [], []
    for function in (ForwardPass(small.network), lambda *a: plain(small, *a)):
        own = images()
        outcome = function(own.contiguous(memory_format=layout), LABELS, WEIGHTS)
        outcome[0].backward()
        outcomes.append(outcome)
        gradients.append(own.grad)
    check_equal(*outcomes, *gradients)


@pytest.mark.slow
def test_compiled_pass_equals_eager_within_rounding_for_any_weights(small, no_kernels):
    compiled = ForwardPass(small.network)
    compiled.compile(images(seed=1), LABELS, {"alpha_tv": 1.0, "alpha_l2": 1.0, "beta": 1.0})
    if compiled.compile_failure:
        pytest.skip(compiled.compile_failure)
    assert compiled.compile_seconds > 0
    for weights in (WEIGHTS, {"alpha_tv": 0.0, "alpha_l2": 0.0, "beta": 0.0}):
        own, other = images(), images()
        outcome, expected = compiled(own, LABELS, weights), plain(small, other, LABELS, weights)
        outcome[0].backward()
        expected[0].backward()
        check_equal(outcome, expected, own.grad, other.grad)
    # compiled once, whatever the weights
    torch._dynamo.config.error_on_recompile = True
    try:
        compiled(images(), LABELS, {"alpha_tv": 0.5, "alpha_l2": 0.1, "beta": 0.7})
        compiled(images(4), LABELS[:4], WEIGHTS)  # another size runs eagerly
    finally:
        torch._dynamo.config.error_on_recompile = False


def test_without_a_compiler_the_pass_stays_eager(small, monkeypatch, no_kernels):
    def no_compiler(function, **_options):
        def fail(*_arguments):
            raise RuntimeError("no C++ compiler was found\nand more")

        return fail

    monkeypatch.setattr(torch, "compile", no_compiler)
    forward_pass = ForwardPass(small.network)
    forward_pass.compile(images(), LABELS, WEIGHTS)
    assert forward_pass.compile_failure == "no C++ compiler was found"
    assert forward_pass.compile_seconds is None
    own, other = images(), images()
    outcome, expected = forward_pass(own, LABELS, WEIGHTS), plain(small, other, LABELS, WEIGHTS)
    outcome[0].backward()
    expected[0].backward()
    check_equal(outcome, expected, own.grad, other.grad)


def test_out_of_memory_is_raised(small, monkeypatch, no_kernels):
    def too_large(*_arguments):
        raise RuntimeError("can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(torch, "compile", lambda function, **_options: too_large)
    with pytest.raises(RuntimeError, match="allocate"):
        ForwardPass(small.network).compile(images(), LABELS, WEIGHTS)


class Untraceable(nn.Sequential):
    def forward(self, x):
        return super().forward(x if x.sum() > 1e9 else x + 0)


def test_untraceable_network_is_not_compiled():
    forward_pass = ForwardPass(Untraceable(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval())
    forward_pass.compile(images(), LABELS, WEIGHTS)
    assert forward_pass.compile_failure == "the network cannot be traced"
    assert forward_pass.kernels == "torch: the network cannot be traced"


def test_nothing_is_compiled_if_the_c_kernels_are_used(small, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda *_, **__: pytest.fail("compiled"))
    monkeypatch.setattr(kernels, "description", lambda: "C")
    forward_pass = ForwardPass(small.network)
    forward_pass.compile(images(), LABELS, WEIGHTS)
    assert forward_pass.compile_failure == "on a CPU the C compiler has done it already"


@pytest.mark.parametrize("shape", [(1, 8, 12), (2, 12, 8), (4, 9, 5), (1, 1, 40), (1, 40, 1)])
def test_images_of_any_channels_and_proportions(shape):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.BatchNorm2d(shape[0]), nn.Conv2d(shape[0], 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 1, 1)
        network = nn.Sequential(*layers, nn.BatchNorm2d(1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 4)).eval()
        given = torch.randn(6, *shape)
    network.requires_grad_(False)
    mine, other = (given.clone().requires_grad_(True) for _ in range(2))
    outcome = ForwardPass(network)(mine, LABELS, WEIGHTS)
    values, found = other, []
    for module in network:
        if isinstance(module, nn.BatchNorm2d):
            found.append(torch.stack([values.mean(dim=(0, 2, 3)), values.var(dim=(0, 2, 3))]))
        values = module(values)
    assert torch.allclose(outcome[-1], torch.cat(found, dim=1), rtol=1e-4, atol=1e-5)
    assert torch.allclose(outcome[3], values, atol=1e-5)
    _, terms = total_loss(ForwardOutputs(other, LABELS, values, outcome[2].detach()), WEIGHTS)
    for name, term in terms.items():
        assert term.item() == pytest.approx(outcome[1][name].item(), rel=1e-4)
    outcome[0].backward()
    assert mine.grad.shape == (6, *shape)
    assert mine.grad.isfinite().all()
