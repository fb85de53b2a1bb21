import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from core.config import RANGE_METHODS, TrainingConfig
from core.errors import ModelError
from core.layout import NETWORK_FILE
from core.models.full_precision import FullPrecisionModel, load_model
from core.quantization.saved_network import load_quantized, save_quantized
from core.quantization.training import QuantizationTraining


def trained(model, images, **changes) -> QuantizationTraining:
    config = TrainingConfig(**{"weight_bits": 3, "activation_bits": 3, "steps": 3, "crop_padding": 1, **changes})
    training = QuantizationTraining(model, images, config)
    while not training.finished:
        training.step()
    return training


def outputs(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return network(images.contiguous(memory_format=torch.channels_last))


def refusal(path, model) -> str:
    with pytest.raises(ModelError) as caught:
        load_quantized(path, model)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    assert f"{path} must be a quantized {model.spec.name} written by `quantize`" in message
    return message


@pytest.mark.parametrize("first_last", [False, True])
@pytest.mark.parametrize("method", RANGE_METHODS)
def test_round_trip(small, small_images, tmp_path, method, first_last):
    training = trained(small, small_images, range=method, first_last_8bit=first_last)
    path = save_quantized(training.quantized, training.config, tmp_path)
    assert path == tmp_path / NETWORK_FILE
    again = load_quantized(path, small)
    images = small.normalize(small_images.images)
    assert torch.equal(outputs(again.network, images), outputs(training.student, images))
    assert not again.network.training
    assert len(again.layers) == 3
    for old, new in zip(training.quantized.layers, again.layers):
        assert torch.equal(old.quantized_weight().detach(), new.quantized_weight().detach())


def test_round_trip_of_mixed_widths(small, small_images, tmp_path):
    training = trained(small, small_images, layer_bits={"conv2": 6, "output": 8})
    again = load_quantized(save_quantized(training.quantized, training.config, tmp_path), small)
    assert [layer.weight_quantizer.bits for layer in again.layers] == [3, 6, 8]
    images = small.normalize(small_images.images)
    assert torch.equal(outputs(again.network, images), outputs(training.student, images))


def test_unknown_layer_in_layer_bits_is_refused(small, small_images, tmp_path):
    training = trained(small, small_images, steps=0)
    path = tmp_path / "odd.safetensors"
    config = {**training.config.to_dict(), "layer_bits": {"conv9": 8}}
    save_file(load_file(save_quantized(training.quantized, training.config, tmp_path)), path, metadata={"quantization": json.dumps(config)})
    assert "conv9" in refusal(path, small)


def test_round_trip_of_the_embedded_network(embedded, tmp_path):
    from core.data.image_sets import ImageSet
    from core.data.labeled import embedded_images

    images, labels = embedded_images()
    training = trained(embedded, ImageSet(images[:32], torch.tensor(labels[:32])), steps=1, training_batch_size=16)
    path = save_quantized(training.quantized, training.config, tmp_path)
    fresh = load_model("resnet20_cifar10", "cpu")
    batch = fresh.normalize(images[100:116])
    assert torch.equal(outputs(load_quantized(path, fresh).network, batch), outputs(training.student, batch))


class Undecided(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x) if x.mean() < 1e9 else self.network(-x)


def test_round_trip_of_an_untraceable_network(small, small_images, tmp_path):
    model = FullPrecisionModel(Undecided(small.network), small.spec)
    training = trained(model, small_images)
    again = load_quantized(save_quantized(training.quantized, training.config, tmp_path), model)
    assert not again.traced
    images = model.normalize(small_images.images)
    assert torch.equal(outputs(again.network, images), outputs(training.student, images))


def test_round_trip_of_a_layer_with_two_names(small, small_images, tmp_path):
    small.network.alias = small.network.conv2
    model = FullPrecisionModel(Undecided(small.network), small.spec)
    training = trained(model, small_images, steps=0)
    again = load_quantized(save_quantized(training.quantized, training.config, tmp_path), model)
    images = model.normalize(small_images.images)
    assert torch.equal(outputs(again.network, images), outputs(training.student, images))


def test_missing_file_is_refused(small, tmp_path):
    refusal(tmp_path / "absent.safetensors", small)


def test_file_that_is_not_safetensors_is_refused(small, tmp_path):
    path = tmp_path / "notes.safetensors"
    path.write_text("these are\nnot weights\n", encoding="utf-8")
    refusal(path, small)


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {"quantization": "not JSON"},
        {"quantization": "null"},
        {"quantization": "[]"},
        {"quantization": json.dumps({"weight_bits": 17})},
        {"quantization": json.dumps({"bogus": 1})},
        {"quantization": json.dumps(TrainingConfig().to_dict())},
    ],
)
def test_file_without_a_valid_config_or_weights_is_refused(small, tmp_path, metadata):
    path = tmp_path / "odd.safetensors"
    save_file({"weight": torch.zeros(2)}, path, metadata=metadata)
    refusal(path, small)


def test_file_of_another_network_is_refused(small, small_images, embedded, tmp_path):
    training = trained(small, small_images, steps=0)
    path = save_quantized(training.quantized, training.config, tmp_path)
    assert "resnet20_cifar10" in refusal(path, embedded)


def test_error_names_the_tensor_that_does_not_fit(small, small_images, tmp_path):
    training = trained(small, small_images, steps=0)
    state = load_file(save_quantized(training.quantized, training.config, tmp_path))
    state["conv2.weight"] = state["conv2.weight"][:4].contiguous()
    path = tmp_path / "cut.safetensors"
    save_file(state, path, metadata={"quantization": json.dumps(training.config.to_dict())})
    assert "conv2.weight" in refusal(path, small)


def test_network_with_other_quantizers_is_refused(small, small_images, tmp_path):
    """As one of a version that quantized what the network computes from its image."""
    path = save_quantized(trained(small, small_images, steps=0).quantized, TrainingConfig(), tmp_path)
    state = load_file(path)
    state |= {key.replace("_0.", "_2."): value.clone() for key, value in state.items() if key.startswith("activation_quantizer_0.")}
    save_file(state, path, metadata={"quantization": json.dumps(TrainingConfig().to_dict())})
    assert "an earlier version placed other quantizers, quantize the network again" in refusal(path, small)
