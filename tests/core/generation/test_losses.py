import pytest
import torch
import torch.nn.functional as F

from core.config.choices import DIVERGENCE
from core.generation.bn_statistics import collect_statistics
from core.generation.losses import TERMS, ForwardOutputs, batch_variation, image_norms, l2_norm, total_loss, total_variation


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_total_variation_by_hand():
    # one channel, 2 x 2; differences: horizontal 1 and 3, vertical 2 and 4, diagonal 5 and 1
    image = torch.tensor([[[[0.0, 1.0], [2.0, 5.0]]]])
    expected = (1 + 9) ** 0.5 + (4 + 16) ** 0.5 + 5.0 + 1.0
    assert total_variation(image).item() == pytest.approx(expected)
    assert total_variation(torch.full((2, 3, 4, 4), 0.7)).item() == 0.0


def test_variation_of_the_batch_by_hand():
    # differences of both images: horizontal 1 and 3, vertical 2 and 4, diagonal 5 and 1
    images = torch.tensor([[[[0.0, 1.0], [2.0, 5.0]]]]).repeat(2, 1, 1, 1)
    assert batch_variation(images).item() == pytest.approx((2 * 10) ** 0.5 + (2 * 20) ** 0.5 + (2 * 25) ** 0.5 + 2**0.5)


def test_l2_norm_by_hand():
    images = torch.tensor([[[[3.0, 4.0]]], [[[0.0, 0.0]]]])
    assert l2_norm(images).item() == pytest.approx(2.5)


def test_terms_do_not_depend_on_the_batch_size():
    images = noise(4, 3, 5, 5)
    for part in (total_variation, l2_norm):
        assert part(images).item() == pytest.approx(part(torch.cat([images, images])).item())


@pytest.mark.parametrize("part", [total_variation, batch_variation, l2_norm])
def test_gradients_match_numeric_ones(part):
    images = noise(2, 2, 3, 3).double().requires_grad_(True)
    assert torch.autograd.gradcheck(part, (images,))


def test_gradient_at_an_image_of_zeros_is_zero():
    images = torch.zeros(1, 3, 4, 4, requires_grad=True)
    image_norms(images).sum().backward()
    assert torch.equal(images.grad, torch.zeros_like(images))


def test_total_is_the_weighted_sum():
    images, logits, labels = noise(3, 3, 4, 4), noise(3, 5, seed=1), torch.tensor([0, 4, 2])
    layer_losses = torch.tensor([2.0, 0.5])
    weights = {"alpha_tv": 0.1, "alpha_l2": 0.01, "beta": 3.0}
    total, parts = total_loss(ForwardOutputs(images, labels, logits, layer_losses), weights)
    expected = 2.5 + 0.1 * total_variation(images) + 0.01 * images.flatten(1).norm(dim=1).mean() + 3.0 * F.cross_entropy(logits, labels)
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)
    assert parts["bns"].item() == 2.5
    assert parts["ce"].item() == pytest.approx(F.cross_entropy(logits, labels).item())


def test_divergence_takes_the_place_of_the_norms():
    images, logits, labels = noise(3, 3, 4, 4), noise(3, 5, seed=1), torch.tensor([0, 4, 2])
    outputs = ForwardOutputs(images, labels, logits, torch.tensor([2.0, 0.5]), torch.tensor([0.25, 0.5]))
    total, parts = total_loss(outputs, {"alpha_tv": 0.0, "alpha_l2": 0.0, "beta": 3.0, DIVERGENCE: 40.0})
    assert total.item() == pytest.approx(40 * 0.75 + 3 * F.cross_entropy(logits, labels).item(), rel=1e-6)
    assert (parts["bns"].item(), parts["divergence"].item()) == (2.5, 0.75)
    assert "divergence" not in total_loss(outputs, {"alpha_tv": 0.0, "alpha_l2": 0.0, "beta": 3.0})[1]


def test_term_of_weight_zero_is_reported_without_a_gradient():
    images = noise(2, 3, 4, 4).requires_grad_(True)
    logits = noise(2, 5, seed=1)
    total, parts = total_loss(
        ForwardOutputs(images, torch.tensor([0, 1]), logits, torch.zeros(1)), {"alpha_tv": 0.0, "alpha_l2": 0.0, "beta": 0.0}
    )
    assert parts["tv"].item() > 0
    assert not total.requires_grad


@pytest.mark.parametrize("term", TERMS.values(), ids=lambda term: term.name)
def test_every_term_falls_within_five_steps(term, embedded):
    images = noise(4, 3, 32, 32).requires_grad_(True)
    labels = torch.arange(4)
    optimizer = torch.optim.Adam([images], lr=0.05)
    values = []
    for _ in range(6):
        with collect_statistics(embedded.network) as statistics:
            logits = embedded.network(images)
            value = term.function(ForwardOutputs(images, labels, logits, statistics.layer_losses(), statistics.divergences()))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < values[0]
    assert term.title
