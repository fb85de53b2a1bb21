"""Loading networks: a valid file gives a frozen network in evaluation mode, any other a one-line error."""

import json
import math
import re
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from core.errors import ConfigError, CoreError, ModelError, UnknownNameError
from core.models import full_precision
from core.models.full_precision import (
    CLASSES,
    HEADER_BYTES,
    batch_norm_layers,
    batch_norm_names,
    build_architecture,
    find_model,
    layout_of,
    load_model,
    resolve_device,
    save_checkpoint,
)
from core.models.registry import MODELS, ModelSpec

EMBEDDED_PATH, EMBEDDED_SPEC = MODELS["resnet20_cifar10"]


@pytest.fixture(scope="module")
def weights():
    return load_file(EMBEDDED_PATH)


def write(path, tensors, spec=EMBEDDED_SPEC, **changes):
    save_file(tensors, path, metadata={"spec": json.dumps({**asdict(spec), **changes})})
    return str(path)


def refused(name, error=ModelError) -> str:
    with pytest.raises(error) as caught:
        load_model(name, "cpu")
    message = str(caught.value)
    assert "\n" not in message
    assert name in message
    assert "must" in message or "missing" in message or "safetensors" in message
    return message


def test_loaded_network_is_in_evaluation_mode_and_frozen(embedded):
    assert all(not module.training for module in embedded.network.modules())
    assert all(not parameter.requires_grad for parameter in embedded.network.parameters())
    assert embedded.device == torch.device("cpu")
    assert embedded.spec.classes[3] == "cat"


def test_loaded_weights_are_those_of_the_file(embedded, weights):
    state = embedded.network.state_dict()
    assert state.keys() == weights.keys()
    assert all(torch.equal(state[key], weights[key]) for key in weights)


def test_loading_does_not_change_the_global_random_state():
    before = torch.get_rng_state()
    load_model("resnet20_cifar10", "cpu")
    assert torch.equal(torch.get_rng_state(), before)


def test_embedded_network_is_that_of_the_paper():
    network = load_model("resnet20_cifar10", "cpu").network
    assert sum(p.numel() for p in network.parameters()) == 272_474  # ResNet-20 of He et al. with 1x1 shortcuts
    assert len(batch_norm_layers(network)) == 21


def test_normalize_by_hand(embedded):
    pixels = torch.tensor([0, 128, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    expected = [(0 - 0.4914) / 0.2470, (128 / 255 - 0.4822) / 0.2435, (1 - 0.4465) / 0.2616]
    assert embedded.normalize(pixels).flatten().tolist() == pytest.approx(expected, abs=1e-6)


def test_denormalize_undoes_normalize_for_every_value(embedded, small):
    every = torch.arange(256, dtype=torch.uint8).view(256, 1, 1, 1).expand(256, 3, 2, 2)
    for model in (embedded, small):
        normalized = model.normalize(every)
        assert normalized.dtype == torch.float32
        assert torch.equal(model.denormalize(normalized), every)


def test_denormalize_rounds_and_clamps(small):
    # mean 0.5, std 0.25; pixel values 100.4 and 100.6, and two far outside
    values = torch.tensor([100.4, 100.6, -50.0, 400.0]) / 255
    normalized = ((values - 0.5) / 0.25).view(4, 1, 1, 1).expand(4, 3, 1, 1)
    assert small.denormalize(normalized)[:, 0, 0, 0].tolist() == [100, 101, 0, 255]


def test_pixel_range_by_hand(embedded, small):
    low, high = embedded.pixel_range()
    assert low.shape == high.shape == (1, 3, 1, 1)
    assert low.flatten().tolist() == pytest.approx([-0.4914 / 0.2470, -0.4822 / 0.2435, -0.4465 / 0.2616], abs=1e-6)
    assert high.flatten().tolist() == pytest.approx([0.5086 / 0.2470, 0.5178 / 0.2435, 0.5535 / 0.2616], abs=1e-6)
    assert [bound.flatten().tolist() for bound in small.pixel_range()] == [[-2.0] * 3, [2.0] * 3]


def test_error_for_an_unknown_model_lists_the_known_ones():
    message = refused("resnet2000", UnknownNameError)
    assert "resnet20_cifar10" in message
    assert ".safetensors" in message
    for name in ("", "weights.pth", "../resnet20_cifar10"):
        with pytest.raises(UnknownNameError):
            find_model(name)


def test_missing_checkpoint_is_refused(tmp_path):
    assert "does not exist" in refused(str(tmp_path / "none.safetensors"))


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff" * 100, b'\x08\x00\x00\x00\x00\x00\x00\x00{"a": 1'])
def test_garbage_file_is_refused(tmp_path, content):
    path = tmp_path / "garbage.safetensors"
    path.write_bytes(content)
    refused(str(path))


def test_pickle_is_never_opened(tmp_path):
    path = tmp_path / "pickled.safetensors"
    torch.save({"a": torch.zeros(1)}, path)
    refused(str(path))


def test_folder_with_the_name_of_a_checkpoint_is_refused(tmp_path):
    (tmp_path / "folder.safetensors").mkdir()
    refused(str(tmp_path / "folder.safetensors"))


def test_file_without_a_spec_is_refused(tmp_path, weights):
    path = tmp_path / "bare.safetensors"
    save_file(weights, path)
    assert "must be a checkpoint written by `pretrain`" in refused(str(path))


@pytest.mark.parametrize("header", ["{", "[]", "{}", '{"name": "x"}', "null"])
def test_invalid_spec_is_refused(tmp_path, weights, header):
    path = tmp_path / "bad.safetensors"
    save_file(weights, path, metadata={"spec": header})
    assert "must be a checkpoint written by `pretrain`" in refused(str(path))


@pytest.mark.parametrize(
    "changes",
    [{"classes": 10}, {"mean": [0.5]}, {"std": [0.2, 0.2, 0.0]}, {"image_size": "32"}, {"image_size": 0}, {"mean": ["a", "b", "c"]}],
)
def test_spec_with_invalid_values_is_refused(tmp_path, weights, changes):
    refused(write(tmp_path / "bad.safetensors", weights, **changes))


def test_checkpoint_of_an_unknown_architecture_is_refused(tmp_path, weights):
    with pytest.raises(UnknownNameError, match="unknown architecture 'resnet2000'"):
        load_model(write(tmp_path / "a.safetensors", weights, architecture="resnet2000"), "cpu")


@pytest.mark.parametrize("count", [0, 2, 11])
def test_number_of_classes_that_does_not_fit_is_refused(tmp_path, weights, count):
    classes = [f"class {i}" for i in range(count)]
    path = write(tmp_path / "a.safetensors", weights, classes=classes)
    with pytest.raises(CoreError) as caught:
        load_model(path, "cpu")
    assert "\n" not in str(caught.value)


def test_wrong_shape_is_named(tmp_path, weights):
    wrong = {**weights, "output.weight": torch.zeros(10, 63)}
    message = refused(write(tmp_path / "a.safetensors", wrong))
    assert "output.weight must be (10, 64), got (10, 63)" in message


@pytest.mark.parametrize("architecture", ["resnet20_cifar10", "program"])  # the latter is that of packed networks that came as .pt2
def test_a_quantized_network_of_this_program_is_called_one(tmp_path, architecture):
    packed = {f"{name}.{part}": torch.zeros(1) for name in ("output", "features") for part in ("integer_weight.integers", "bias")}
    message = refused(write(tmp_path / "a.safetensors", packed, architecture=architecture))
    assert "must be a full-precision network, got a quantized network made by this program" in message


def test_missing_and_unexpected_keys_are_named(tmp_path, weights):
    fewer = {key: value for key, value in weights.items() if key != "output.bias"}
    assert "missing: output.bias" in refused(write(tmp_path / "a.safetensors", fewer))
    assert "unexpected: extra" in refused(write(tmp_path / "b.safetensors", {**weights, "extra": torch.zeros(1)}))
    hostile = refused(write(tmp_path / "c.safetensors", {**weights, "x\n" * 10_000: torch.zeros(1)}))
    assert "\n" not in hostile
    assert len(hostile) < 400 + len(str(tmp_path))


def test_network_without_batch_norm_is_refused(tmp_path):
    network = build_architecture("squeezenet_v1_0", 10)
    spec = replace(EMBEDDED_SPEC, architecture="squeezenet_v1_0")
    path = tmp_path / "squeeze.safetensors"
    save_checkpoint(network, spec, path)
    assert "must have at least one BatchNorm layer" in refused(str(path))


def test_checkpoint_round_trip(tmp_path, embedded):
    path = tmp_path / "copy.safetensors"
    spec = ModelSpec("copy", "resnet20_cifar10", tuple("abcdefghij"), 32, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "ä test")
    save_checkpoint(embedded.network, spec, path)
    back = load_model(str(path), "cpu")
    assert back.spec == spec
    image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(back.network(image), embedded.network(image))
    assert [p.name for p in tmp_path.iterdir()] == ["copy.safetensors"]


def test_resolve_device(monkeypatch):
    present = {"cuda": False, "mps": False}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: present["cuda"])
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: present["mps"])
    asked = []
    monkeypatch.setattr(full_precision, "repeat_to_the_bit", lambda: asked.append(True))
    assert resolve_device("cpu") == resolve_device("auto") == torch.device("cpu")
    for name in ("cuda", "mps"):
        with pytest.raises(ModelError, match=f"device must be one of auto, cpu on this machine, got '{name}'$"):
            resolve_device(name)
    present["mps"] = True
    assert resolve_device("auto") == torch.device("mps")
    assert asked == []
    present["cuda"] = True
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda")
    assert asked == [True, True]


@pytest.mark.parametrize("name", ["tpu", "", "cuda:99"])
def test_unknown_device_is_refused(name):
    with pytest.raises(CoreError, match="must be one of auto"):
        resolve_device(name)


def test_batch_norm_layers_are_those_with_running_statistics():
    network = nn.Sequential(
        nn.BatchNorm2d(3), nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.BatchNorm2d(4)), nn.BatchNorm1d(2)
    )
    assert list(batch_norm_layers(network)) == ["0", "1.1"]


def test_unknown_architecture_is_refused():
    with pytest.raises(ConfigError, match="unknown architecture 'nonsense'"):
        build_architecture("nonsense", 10)


@pytest.mark.parametrize("classes", [1, 2, 37])
def test_architecture_for_another_number_of_classes_works_or_is_refused(classes):
    """Some pytorchcv networks assert 10 or 100 classes."""
    try:
        network = build_architecture("resnet20_cifar10", classes)
    except CoreError as error:
        refusal = str(error)
    else:
        assert network.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, classes)
        return
    assert "resnet20_cifar10" in refusal


@pytest.mark.parametrize("architecture", ["resnet20_cifar10", "resnet20_cifar100", "nin_cifar10"])
def test_last_layer_is_replaced_if_the_architecture_has_a_fixed_number_of_classes(architecture):
    network = build_architecture(architecture, 3).eval()
    with torch.no_grad():
        assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 3)


def test_network_for_three_classes_can_be_saved_and_loaded(tmp_path):
    path = tmp_path / "three.safetensors"
    spec = replace(EMBEDDED_SPEC, name="three", classes=("a", "b", "c"))
    network = build_architecture("resnet20_cifar10", 3).eval()
    save_checkpoint(network, spec, path)
    image = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    # a different memory format changes the order of summation
    torch.testing.assert_close(load_model(str(path), "cpu").network(image), network(image))


def test_checkpoint_has_the_permissions_of_a_plain_file(tmp_path, embedded):
    save_checkpoint(embedded.network, EMBEDDED_SPEC, tmp_path / "a.safetensors")
    (tmp_path / "plain").write_text("1", encoding="utf-8")
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1


def test_failed_write_leaves_no_file(tmp_path, embedded, monkeypatch):
    def fails(_state, path, **_):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("core.models.full_precision.save_file", fails)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(embedded.network, EMBEDDED_SPEC, tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("changes", [{"classes": []}, {"classes": "abc"}, {"classes": [1, 2]}, {"mean": [math.nan] * 3}, {"name": 3}])
def test_error_names_the_header_field_and_its_value(tmp_path, weights, changes):
    message = refused(write(tmp_path / "bad.safetensors", weights, **changes))
    key, value = next(iter(changes.items()))
    assert f"{key} in the header of " in message
    assert message.endswith(f"got {value!r}")


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": ["x"] * (CLASSES + 1)},
        {"classes": ["x" * 201]},
        {"image_size": 10**9},
        {"image_size": 10**400},
        {"image_size": True},
        {"name": "x" * 201},
        {"architecture": "resnet20_cifar10" * 20},
        {"trained_on": "x" * 5001},
        {"mean": {"0": 0, "1": 0, "2": 0}},
        {"std": "abc"},
        {"mean": [9e5, 1, 1]},
    ],
)
def test_huge_header_values_are_refused_without_repeating_them(tmp_path, weights, changes):
    message = refused(write(tmp_path / "bad.safetensors", weights, **changes))
    assert re.search(rf"{next(iter(changes))}( and std)? in the header of ", message)
    assert len(message) < 400 + len(str(tmp_path))


def test_deeply_nested_header_is_refused(tmp_path, weights):
    """Python's JSON parser recurses as deeply as the text nests."""
    path = tmp_path / "deep.safetensors"
    save_file(weights, path, metadata={"spec": "[" * 200_000})
    assert "must be a checkpoint written by `pretrain`" in refused(str(path))


@pytest.mark.parametrize("length", [HEADER_BYTES + 1, 2**63, 2**64 - 1])
def test_huge_header_length_is_refused(tmp_path, length):
    path = tmp_path / "long.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b"{}" + bytes(1000))
    assert f"bytes, got {length:,}" in refused(str(path))


def test_network_larger_than_its_file_is_refused_before_it_is_built(tmp_path, weights, monkeypatch):
    """A 1 MB file names the largest network: only its shapes are computed."""
    built = []
    monkeypatch.setattr(nn.Linear, "reset_parameters", lambda layer: built.append(layer.weight.device.type))
    path = write(tmp_path / "small.safetensors", weights, architecture="bn_vgg19", classes=[str(i) for i in range(CLASSES)])
    assert "must be those of bn_vgg19" in refused(path)
    assert set(built) == {"meta"}


@pytest.mark.parametrize("architecture", ["voca", "visemenet20", "simplepose_resnet18_coco", "raft_things"])
def test_network_that_is_not_a_classifier_is_refused(architecture):
    with pytest.raises(UnknownNameError, match=f"unknown architecture '{architecture}': must be any classifier"):
        build_architecture(architecture, 10)


def test_layout_matches_the_weights(weights):
    assert layout_of(EMBEDDED_SPEC) == {key: tuple(value.shape) for key, value in weights.items()}
    before = torch.get_rng_state()
    assert batch_norm_names(EMBEDDED_SPEC) == list(batch_norm_layers(build_architecture("resnet20_cifar10", 10)))[:21]
    assert len(batch_norm_names(EMBEDDED_SPEC)) == 21
    torch.set_rng_state(before)
