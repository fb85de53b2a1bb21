import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from core.config import BIT_WIDTHS, RANGE_METHODS, TrainingConfig
from core.data.image_sets import ImageSet
from core.data.labeled import embedded_images
from core.errors import ModelError
from core.models.full_precision import FullPrecisionModel
from core.models.registry import ModelSpec
from core.quantization.integer.inference import ChannelAffine, IntegerMatmul, QuantizeActivation, QuantizeImage, integer_inference_network
from core.quantization.placement import quantize_network
from core.quantization.training import QuantizationTraining
from core.threads import cpu_threads


def outputs(network, images):
    with torch.no_grad():
        return network(images)


def filled(network: nn.Module, images: torch.Tensor, size: int = 8) -> FullPrecisionModel:
    """The network with weights from seed 0 and BatchNorm statistics of noise."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for module in network.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
            if isinstance(module, nn.BatchNorm2d) and module.affine:
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
        network.train()
        for _ in range(10):
            network(images)
    network.eval().requires_grad_(False)
    return FullPrecisionModel(network, ModelSpec("n", "n", tuple("abcd"), size, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "noise"))


def by_hand(quantized, images: torch.Tensor) -> np.ndarray:
    """Scores of the small network: sums in int64, everything else in float64."""

    def levels(x, quantizer):
        zero_point = float(quantizer.zero_point)
        counted = np.round(x / float(quantizer.scale.detach()))
        return np.clip(counted, quantizer.lowest - zero_point, quantizer.highest - zero_point).astype(np.int64)

    def weights(layer):
        quantizer = layer.weight_quantizer
        shape = (-1, *[1] * (layer.weight.ndim - 1))
        scale, zero_point = (value.detach().double().numpy().reshape(shape) for value in (quantizer.scale, quantizer.zero_point))
        position = np.round(layer.weight.detach().double().numpy() / scale + zero_point)
        return (np.clip(position, quantizer.lowest, quantizer.highest) - zero_point).astype(np.int64), scale.reshape(-1)

    def convolved(x, layer, scale):
        whole, own = weights(layer)
        columns = F.unfold(torch.from_numpy(x).double(), 3, padding=1).long().numpy()  # (N, C 9, H W)
        sums = np.einsum("oc,ncp->nop", whole.reshape(len(whole), -1), columns)
        return sums.reshape(len(x), len(whole), *x.shape[2:]) * (own * scale).reshape(1, -1, 1, 1)

    def normalized(x, layer):
        mean, variance, weight, bias = (
            value.detach().double().numpy().reshape(1, -1, 1, 1)
            for value in (layer.running_mean, layer.running_var, layer.weight, layer.bias)
        )
        return (x - mean) / np.sqrt(variance + layer.eps) * weight + bias

    network = quantized.network
    first, last = (own.quantizer for own in quantized.activations)
    heaviest = np.abs(weights(quantized.layers[0])[0]).reshape(8, -1).sum(axis=1).max()
    steps = 2.0 ** min(14, np.floor(np.log2(2**24 / (2 * heaviest))))  # pixels reach from -2 to 2
    x = np.round(images.double().numpy() * steps).astype(np.int64)
    x = np.maximum(normalized(convolved(x, quantized.layers[0], 1 / steps), network.bn1), 0)
    whole = levels(x, first)
    x = normalized(convolved(whole, quantized.layers[1], float(first.scale)), network.bn2) + whole * float(first.scale)
    pooled = np.maximum(x, 0).mean(axis=(2, 3))
    weight, own = weights(quantized.layers[2])
    return levels(pooled, last) @ weight.T * own * float(last.scale) + quantized.layers[2].bias.detach().double().numpy()


@pytest.mark.parametrize("bits", BIT_WIDTHS)
def test_scores_by_hand(small, calibrated, images, bits):
    quantized, _ = calibrated(small, bits)
    expected = by_hand(quantized, images)
    np.testing.assert_allclose(outputs(integer_inference_network(quantized, small.spec), images).numpy(), expected, atol=1e-5)


class Tangled(nn.Module):
    """Layers whose inputs and outputs have several consumers of different kinds, and BatchNorm in every position."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.pool, self.pad = nn.MaxPool2d(2), nn.ZeroPad2d(1)
        self.left, self.right, self.alone = nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.shared, self.late = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(8)
        self.plain = nn.BatchNorm2d(8, affine=False)
        self.output = nn.Linear(8 * 16, 4)

    def forward(self, x):
        x = self.pool(F.relu(self.stem_norm(self.stem(x))))  # read by two layers, an addition and a BatchNorm
        right = self.right(x.mT)  # read by a BatchNorm and an addition
        x = self.left(self.pad(x)) + self.alone(right) + right + x + self.plain(x)
        one, other = torch.chunk(F.relu(self.late(x)), 2, dim=1)
        # one layer after two quantizers
        x = F.relu(torch.cat([self.shared(one), self.shared(F.relu(self.shared(other)) * 3)], dim=1))
        return self.output(x.contiguous().view(x.shape[0], -1)) * (x.size(1) / 8)


@pytest.mark.parametrize("name", ["small", "Mobile", "Untraceable", "Undecided", "Tangled"])
@pytest.mark.parametrize("bits", BIT_WIDTHS)
def test_scores_match_the_trained_network(model, calibrated, images, name, bits):
    """Compares the median difference, because a value may be rounded to another level."""
    made = filled(Tangled(), images) if name == "Tangled" else model(name)
    quantized, _ = calibrated(made, bits)
    assert quantized.traced == (name not in ("Untraceable", "Undecided"))
    before = copy.deepcopy(quantized.network.state_dict())
    network = integer_inference_network(quantized, made.spec)
    # rounding the image changes these scores by less than a thousandth
    difference = (outputs(network, images) - outputs(quantized.network, images)).abs().amax(dim=1)
    assert float(difference.median()) < 2e-3
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(value, before[key]) for key, value in quantized.network.state_dict().items())


def test_every_layer_sums_integers(model, calibrated, images):
    made = filled(Tangled(), images)
    quantized, _ = calibrated(made, 4)
    network = integer_inference_network(quantized, made.spec)
    seen = []
    for module in network.modules():
        if isinstance(module, IntegerMatmul):
            module.register_forward_hook(lambda module, args, output: seen.append((args[0].clone(), output.clone())))
    outputs(network, images)
    assert len(seen) == 7  # one of the six layers is called twice
    for levels, sums in seen:
        for values in (levels, sums):
            assert torch.equal(values, values.round())
            assert float(values.abs().max()) < 1 << 24
    assert not [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    # stem_norm is folded into its layer; the outputs of the other layers have several consumers, or BatchNorm does not follow directly
    assert sum(isinstance(module, ChannelAffine) and not module.overwrite for module in network.modules()) == 3


def test_untraceable_graph_module(model, calibrated, images):
    undecided = model("Undecided")

    class Outer(fx.Tracer):
        def is_leaf_module(self, module, name):
            return module is undecided.network

    outer = nn.Sequential(undecided.network)
    made = FullPrecisionModel(fx.GraphModule(outer, Outer().trace(outer)).eval(), undecided.spec)
    quantized, _ = calibrated(made, 5)
    assert not quantized.traced
    assert isinstance(quantized.network, fx.GraphModule)
    network = integer_inference_network(quantized, made.spec)
    assert torch.equal(outputs(network, images), outputs(integer_inference_network(calibrated(undecided, 5)[0], made.spec), images))


def test_timm_batch_norm_with_a_built_in_activation(calibrated, images):
    from timm.layers import BatchNormAct2d

    class Act(nn.Sequential):
        def __init__(self):
            super().__init__(
                nn.Conv2d(3, 8, 3, padding=1, bias=False), BatchNormAct2d(8, act_layer=nn.ReLU6), nn.MaxPool2d(2),
                BatchNormAct2d(8), nn.Conv2d(8, 8, 3, padding=1), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(8, 4),
            )  # fmt: skip

    made = filled(Act(), images)
    quantized, _ = calibrated(made, 5)
    network = integer_inference_network(quantized, made.spec)
    difference = (outputs(network, images) - outputs(quantized.network, images)).abs().amax(dim=1)
    assert float(difference.median()) < 2e-3
    assert not [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


@pytest.mark.parametrize("method", RANGE_METHODS)
def test_scores_after_a_training(small, small_images, calibrated, method):
    """Ranges that depend on the weights must be those of the final weights."""
    config = TrainingConfig(weight_bits=3, activation_bits=3, steps=4, training_batch_size=16, range=method, training_lr=0.01)
    training = QuantizationTraining(small, small_images, config)
    while not training.finished:
        training.step()
    images = small.normalize(small_images.images)
    network = training.inference_network()
    difference = (outputs(network, images) - outputs(training.student, images)).abs().amax(dim=1)
    assert float(difference.median()) < 2e-3


@pytest.mark.parametrize("bits", [4, 8])
def test_same_bits_in_any_order(embedded, calibrated, bits):
    """For any batch size, number of threads and memory format, which do change the scores of the trained network."""
    quantized, _ = calibrated(embedded, bits)
    network = integer_inference_network(quantized, embedded.spec)
    images = embedded.normalize(embedded_images()[0][:48]).contiguous(memory_format=torch.channels_last)
    with cpu_threads(2):
        scores = outputs(network, images)
    with cpu_threads(1):
        assert torch.equal(torch.cat([outputs(network, part) for part in images.split(7)]), scores)
        assert torch.equal(outputs(network, images.contiguous()), scores)


def test_levels_are_clamped_and_rounded_half_to_even(small, calibrated):
    quantized, _ = calibrated(small, 3)
    fixed = integer_inference_network(quantized, small.spec)
    levels = next(module for module in fixed.modules() if isinstance(module, QuantizeActivation))
    scale = float(levels.scale)
    # after a ReLU, the eight 3-bit levels start at zero
    values = torch.tensor([-5.0, -0.4, 0.4, 0.6, 2.4, 6.6, 7.4, 100.0]) * scale
    assert levels(values).tolist() == [0, 0, 0, 1, 2, 7, 7, 7]
    levels.scale.fill_(1.0)
    assert levels(torch.tensor([0.5, 1.5, 2.5])).tolist() == [0, 2, 2]


@pytest.mark.parametrize(("kernel", "bits"), [(1, 2), (3, 4), (7, 8), (11, 8)])
def test_sums_over_the_image_stay_exact(calibrated, images, kernel, bits):
    """For the worst possible image, in which each pixel is at the end of its range that has the sign of its weight."""
    size = max(kernel, 8)
    made = filled(
        nn.Sequential(nn.Conv2d(3, 8, kernel), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)),
        F.interpolate(images, size=2 * size),
        2 * size,
    )
    quantized, _ = calibrated(made, bits)
    network = integer_inference_network(quantized, made.spec)
    grid = next(module for module in network.modules() if isinstance(module, QuantizeImage))
    sums = next(module for module in network.modules() if isinstance(module, IntegerMatmul))
    weight = sums.layer.integer_weight.levels()
    worst = 2.0 * weight.sign()  # (0.5 - 0) / 0.25
    levels = grid(worst)
    assert torch.equal(levels, levels.round())
    assert float((levels * weight).double().flatten(1).sum(1).max()) <= 1 << 24
    assert 2.0**-14 <= float(grid.scale) <= 2.0**-8
    assert float(np.log2(float(grid.scale))).is_integer()


class NormalizedInside(nn.Module):
    """A network for pixels of `scale` times their value in [0, 1], which it normalizes itself."""

    def __init__(self, model: FullPrecisionModel, scale: float) -> None:
        super().__init__()
        self.network, self.scale = model.network, scale
        self.register_buffer("mean", torch.tensor(model.spec.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(model.spec.std).view(1, 3, 1, 1))

    def forward(self, x):
        return self.network((x / self.scale - self.mean) / self.std)

    def model(self, spec: ModelSpec) -> FullPrecisionModel:
        spec = replace(spec, mean=(0.0,) * 3, std=(1 / self.scale,) * 3)
        return FullPrecisionModel(self.eval().requires_grad_(False), spec)


@pytest.mark.parametrize("scale", [1.0, 256.0, 2.0**-10])
def test_a_network_that_normalizes_its_images_gives_the_bits_of_one_that_does_not(embedded, scale):
    """scale: powers of two, so that the same pixels are read."""
    inside = NormalizedInside(embedded, scale).model(embedded.spec)
    images = ImageSet(embedded_images()[0][:64], torch.arange(64) % 10)
    config = TrainingConfig(weight_bits=2, activation_bits=2, steps=2, calibration_images=64, training_batch_size=32)
    scores = []
    for model in (embedded, inside):
        training = QuantizationTraining(model, images, config)
        training.step()
        training.step()
        scores.append(outputs(training.inference_network(), model.normalize(images.images)))
    assert torch.equal(*scores)


def test_uncalibrated_network_is_refused(small, images):
    quantized = quantize_network(small.network, TrainingConfig(), images[:1])
    with pytest.raises(ModelError, match=r"^network must be calibrated, but quantizer \S+ has no range$"):
        integer_inference_network(quantized, small.spec)
