"""The generator: parameters counted by hand, shapes, and the statistics of its images."""

import pytest
import torch

from core.generation.generators import EPS, ConditionalBatchNorm, EmbeddingGenerator, GeneratorBody


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameters_counted_by_hand():
    # linear 100 -> 128 x 8 x 8; scale and shift; kernels and biases
    body = (100 * 8192 + 8192) + 2 * 128 + (128 * 128 * 9 + 128) + 2 * 128 + (128 * 64 * 9 + 64) + 2 * 64 + (64 * 3 * 9 + 3)
    assert body == 1_051_139
    assert count(GeneratorBody(100, (3, 32, 32))) == body
    assert count(EmbeddingGenerator(100, (3, 32, 32), 10)) == body + 10 * 100
    # of 1,000 classes, each BatchNorm layer but the last has scales and shifts
    assert count(GeneratorBody(100, (3, 32, 32), 1000)) == body + 999 * 2 * (128 + 128 + 64)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (2, 8, 20), (4, 13, 7)])
@pytest.mark.parametrize("classes", [1, 3])
def test_images_have_the_shape_and_zero_mean_and_unit_variance(shape, classes):
    torch.manual_seed(0)
    body = GeneratorBody(6, shape, classes)
    images = body(torch.randn(64, 6), torch.arange(64) % classes)
    assert images.shape == (64, *shape)
    assert torch.allclose(images.mean(dim=(0, 2, 3)), torch.zeros(shape[0]), atol=1e-4)
    assert torch.allclose(images.var(dim=(0, 2, 3), unbiased=False), torch.ones(shape[0]), atol=0.02)


def test_body_is_the_published_one():
    """Layer by layer, in the operations of torch.nn."""
    torch.manual_seed(1)
    body, z, nn = GeneratorBody(5, (3, 8, 8)), torch.randn(7, 5), torch.nn
    first, second = body.convolutions
    x = nn.BatchNorm2d(128, affine=False)(body.linear(z).view(7, 128, 2, 2))
    x = nn.BatchNorm2d(128, affine=False, eps=0.8)(first(nn.Upsample(scale_factor=2)(x)))
    x = nn.LeakyReLU(0.2)(x)
    x = nn.BatchNorm2d(64, affine=False, eps=0.8)(second(nn.Upsample(scale_factor=2)(x)))
    x = nn.LeakyReLU(0.2)(x)
    expected = nn.BatchNorm2d(3, affine=False)(torch.tanh(body.last(x)))
    assert torch.allclose(body(z, torch.zeros(7, dtype=torch.long)), expected, atol=1e-5)


def test_embedding_is_multiplied_by_the_noise():
    torch.manual_seed(2)
    generator, z, labels = EmbeddingGenerator(4, (3, 8, 8), 3), torch.randn(6, 4), torch.arange(6) % 3
    assert torch.equal(generator(z, labels), generator.body(z * generator.embedding.weight[labels], labels))


def test_conditional_batch_norm_begins_as_plain_one_and_is_scaled_by_class():
    torch.manual_seed(3)
    layer, x, labels = ConditionalBatchNorm(2, 3, EPS), torch.randn(6, 2, 4, 4), torch.arange(6) % 3
    plain = (x - x.mean(dim=(0, 2, 3), keepdim=True)) / (x.var(dim=(0, 2, 3), keepdim=True, unbiased=False) + EPS).sqrt()
    assert torch.allclose(layer(x, labels), plain, atol=1e-6)
    with torch.no_grad():
        layer.scale[1], layer.shift[1] = torch.tensor([2.0, 3.0]), torch.tensor([0.5, -1.0])
    result = layer(x, labels)
    assert torch.allclose(result[1], plain[1] * torch.tensor([2.0, 3.0]).view(2, 1, 1) + torch.tensor([0.5, -1.0]).view(2, 1, 1), atol=1e-6)
    assert torch.allclose(result[0], plain[0], atol=1e-6)
