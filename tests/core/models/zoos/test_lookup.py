"""Networks by name: their specs match the zoos' own, weights are loaded from the zoos' files, and missing files are named."""

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
import torchvision
from pytorchcv.model_provider import get_model
from pytorchcv.models.common import model_store
from safetensors.torch import save_file
from torchvision import models

from core.errors import ModelError, UnknownNameError
from core.models.full_precision import find_model, layout_of, load_model
from core.models.registry import CIFAR10_CLASSES, CIFAR100_CLASSES
from core.models.zoos.lookup import ZOOS, build_architecture, find_pretrained, known_spec, offline_names
from core.models.zoos.zoo import IMAGENET_MEAN, IMAGENET_STD, shapes_only

ROOT = Path(__file__).parents[4]
SMALL = {"pytorchcv": "resnet20_cifar10", "torchvision": "shufflenet_v2_x0_5", "timm": "test_byobnet"}


@pytest.fixture
def caches(tmp_path, monkeypatch):
    """Empty folders in place of the zoos' caches, and no internet connection."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    def no_network(*_, **__):
        raise OSError("no network in tests")

    monkeypatch.setattr("requests.get", no_network)
    monkeypatch.setattr("torch.hub.urlopen", no_network)
    return tmp_path


def untrained(zoo) -> torch.nn.Module:
    """The network as the zoo itself builds it, with statistics of one pass over noise."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        name = SMALL[zoo]
        build = {"pytorchcv": get_model, "torchvision": models.get_model, "timm": timm.create_model}[zoo]
        network = build(name)
        network(torch.randn(4, 3, 64, 64) if zoo != "pytorchcv" else torch.randn(4, 3, 32, 32))
    return network.eval()


def put(zoo, state, folder):
    """Writes a file where the zoo looks for it, and returns its path."""
    if zoo == "pytorchcv":
        error, checksum, _ = model_store.get_model_name_suffix_data(SMALL[zoo])
        path = folder / ".torch" / "models" / f"{SMALL[zoo]}-{error}-{checksum[:8]}.pth"
    elif zoo == "torchvision":
        path = folder / "torch" / "hub" / "checkpoints" / "shufflenetv2_x0.5-f707e7126e.pth"
    else:
        repository = folder / "hub" / "models--timm--test_byobnet.r160_in1k"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text("0" * 40, encoding="utf-8")
        path = repository / "snapshots" / ("0" * 40) / "model.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path) if zoo == "timm" else torch.save(state, path)
    return path


@pytest.mark.parametrize("zoo", SMALL)
def test_weights_are_loaded_from_the_zoos_file(zoo, caches, monkeypatch):
    network = untrained(zoo)
    path = put(zoo, network.state_dict(), caches)
    # the hash of random weights differs from that of the published file
    monkeypatch.setattr(model_store, "_check_sha1", lambda file, _: file == str(path))
    before = torch.get_rng_state()
    model = load_model(f"{zoo}:{SMALL[zoo]}", "cpu")
    assert torch.equal(torch.get_rng_state(), before)
    assert not model.network.training
    image = torch.randn(1, 3, model.spec.image_size, model.spec.image_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model.network(image), network(image))
    assert len(model.spec.classes) == network.state_dict()[list(network.state_dict())[-1]].shape[0]
    found = Path(find_model(f"{zoo}:{SMALL[zoo]}")[0])
    assert found == path or found == path.parents[1]
    assert offline_names() == ["resnet20_cifar10", f"{zoo}:{SMALL[zoo] if zoo != 'timm' else 'test_byobnet.r160_in1k'}"]


@pytest.mark.parametrize("zoo", SMALL)
def test_offline_error_names_the_missing_file_and_the_available_networks(zoo, caches):
    with pytest.raises(ModelError) as caught:
        load_model(f"{zoo}:{SMALL[zoo]}", "cpu")
    message = str(caught.value)
    assert message.startswith(f"{zoo}:{SMALL[zoo]} could not be loaded (")
    assert f"its file at {caches}{os.sep}" in message
    assert message.endswith("available offline (resnet20_cifar10)")
    assert len(message) < 1500


def test_failed_download_prints_nothing_to_stdout(caches, capfd):
    """The command line prints JSON to stdout."""
    for zoo in SMALL:
        with pytest.raises(ModelError):
            load_model(f"{zoo}:{SMALL[zoo]}", "cpu")
    assert capfd.readouterr().out == ""


class Evil:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (str(self.target), "w")


@pytest.mark.parametrize("zoo", ["pytorchcv", "torchvision"])
def test_malicious_file_of_a_zoo_is_refused_and_not_executed(zoo, caches, monkeypatch):
    put(zoo, {**untrained(zoo).state_dict(), "extra": Evil(caches / "was executed")}, caches)
    monkeypatch.setattr(model_store, "_check_sha1", lambda *_: True)
    with pytest.raises(ModelError, match="open"):
        load_model(f"{zoo}:{SMALL[zoo]}", "cpu")
    assert not (caches / "was executed").exists()


def test_malicious_file_of_timm_is_refused_and_not_executed(caches):
    path = put("timm", untrained("timm").state_dict(), caches)
    path.unlink()
    torch.save({"extra": Evil(caches / "was executed")}, path.with_name("pytorch_model.bin"))
    with pytest.raises(ModelError, match="could not be loaded"):
        load_model("timm:test_byobnet", "cpu")
    assert not (caches / "was executed").exists()


def test_file_that_does_not_fit_is_refused(caches):
    put("torchvision", {"a": torch.zeros(1)}, caches)
    with pytest.raises(ModelError, match="could not be loaded"):
        load_model("torchvision:shufflenet_v2_x0_5", "cpu")


@pytest.mark.parametrize("zoo", SMALL)
@pytest.mark.parametrize("name", ["resnet2000", "", "../resnet18", "resnet18:x", "hf-hub:timm/resnet18", "raft_large", "resnet18.nonsense"])
def test_unknown_name_is_refused(zoo, name, caches):
    for load in (known_spec, lambda name: load_model(name, "cpu"), lambda name: build_architecture(name, 10)):
        with pytest.raises(UnknownNameError, match=f"must be any classifier of {zoo}"):
            load(f"{zoo}:{name}")


def test_network_without_weights_is_refused(caches):
    with pytest.raises(ModelError, match="pytorchcv has no trained weights for pytorchcv:resnet34_cub; use"):
        load_model("pytorchcv:resnet34_cub", "cpu")


def test_network_without_batch_norm_is_refused(caches):
    network = models.squeezenet1_1()
    path = caches / "torch" / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth"
    path.parent.mkdir(parents=True)
    torch.save(network.state_dict(), path)
    with pytest.raises(ModelError, match="'torchvision:squeezenet1_1' must have at least one BatchNorm layer"):
        load_model("torchvision:squeezenet1_1", "cpu")


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_v2_s", "mobilenet_v3_large", "regnet_y_400mf"])
def test_spec_of_torchvision_matches_its_transforms(name):
    spec = known_spec(f"torchvision:{name}")
    weights = models.get_model_weights(name).DEFAULT
    # torchvision's preprocessing, repeated with the values of the spec
    picture = torch.randint(0, 256, (3, 500, 400), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    mode = torchvision.transforms.InterpolationMode(spec.interpolation)
    resized = torchvision.transforms.functional.resize(picture, [spec.resize], mode, antialias=True)
    cut = torchvision.transforms.functional.center_crop(resized, [spec.image_size]).float() / 255
    normalized = (cut - torch.tensor(spec.mean).view(3, 1, 1)) / torch.tensor(spec.std).view(3, 1, 1)
    torch.testing.assert_close(normalized, weights.transforms()(picture))
    assert spec.classes[:2] == ("tench", "goldfish")
    assert len(spec.classes) == 1000


@pytest.mark.parametrize("name", ["resnet18.a1_in1k", "efficientnet_lite0", "test_byobnet", "mobilenetv3_large_100"])
def test_spec_of_timm_matches_its_evaluation_transforms(name):
    spec = known_spec(f"timm:{name}")
    data = timm.data.resolve_data_config(pretrained_cfg=timm.models.get_pretrained_cfg(name).to_dict())
    resize, crop = timm.data.create_transform(**data).transforms[:2]
    assert (spec.mean, spec.std, spec.image_size) == (tuple(data["mean"]), tuple(data["std"]), data["input_size"][1])
    assert spec.resize == resize.size
    assert tuple(crop.size) == (spec.image_size,) * 2
    assert spec.interpolation == resize.interpolation.value
    assert spec.classes[0] == "tench, Tinca tinca"


def test_spec_of_pytorchcv():
    ten, hundred = known_spec("pytorchcv:resnet20_cifar10"), known_spec("pytorchcv:resnet20_cifar100")
    assert (ten.classes, ten.image_size, ten.resize) == (CIFAR10_CLASSES, 32, None)
    assert hundred.classes == CIFAR100_CLASSES == tuple(sorted(CIFAR100_CLASSES))
    assert len(set(CIFAR100_CLASSES)) == 100
    assert ten.mean == hundred.mean == (0.4914, 0.4822, 0.4465)
    large = known_spec("pytorchcv:resnet50")
    assert (large.image_size, large.resize, large.classes[0], len(large.classes)) == (224, math.ceil(224 / 0.875), "tench", 1000)
    birds = known_spec("pytorchcv:resnet18_cub")
    assert (len(birds.classes), birds.classes[0]) == (200, "class 0")


@pytest.mark.parametrize("name", ["pytorchcv:raft_things", "pytorchcv:pspnet_resnetd50b_voc", "timm:vit_base_patch16_224.dino"])
def test_network_that_is_not_a_classifier_is_refused(name):
    with pytest.raises((UnknownNameError, ModelError), match="must be"):
        known_spec(name)


def test_normalization_inside_a_network_is_moved_outside(caches):
    """With its weights, torchvision's GoogLeNet normalizes a second time; it also has heads that only training uses."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        network = models.googlenet(transform_input=True, aux_logits=True, init_weights=False).eval()
    path = caches / "torch" / "hub" / "checkpoints" / "googlenet-1378be20.pth"
    path.parent.mkdir(parents=True)
    torch.save(network.state_dict(), path)
    model = load_model("torchvision:googlenet", "cpu")
    pixels = torch.randint(0, 256, (1, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    imagenet = (pixels.float() / 255 - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(model.network(model.normalize(pixels)), network(imagenet), rtol=1e-3, atol=1e-4)
    assert not any(key.startswith("aux") for key in model.network.state_dict())


def test_old_tensor_names_of_densenet_are_converted(caches):
    state = ZOOS["torchvision"].build("densenet121", None).state_dict()
    old = dict(state)
    for key in state:
        head, layer, tail = key.partition("denselayer")
        number, dot, rest = tail.partition(".")
        if layer and rest[:4] in ("norm", "conv"):
            old[f"{head}{layer}{number}.{rest[:4]}.{rest[4:]}"] = old.pop(key)
    assert old.keys() != state.keys()
    path = caches / "torch" / "hub" / "checkpoints" / "densenet121-a639ec97.pth"
    path.parent.mkdir(parents=True)
    torch.save(old, path)
    loaded = load_model("torchvision:densenet121", "cpu").network.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:efficientnet_lite0", "pytorchcv:mobilenetv2_w1", "timm:resnet18.a1_in1k"])
def test_architecture_for_another_number_of_classes(name):
    with shapes_only():
        network = build_architecture(name, 7)
    assert 7 in [value.shape[0] for value in network.state_dict().values() if value.ndim]
    assert 1000 not in [value.shape[0] for value in network.state_dict().values() if value.ndim]


@pytest.mark.parametrize("name", ["torchvision:regnet_y_128gf", "timm:convnext_xxlarge", "pytorchcv:bn_vgg19"])
def test_shapes_take_no_memory(name):
    before = torch.get_rng_state()
    with shapes_only():
        network = build_architecture(name, 10)
    assert sum(value.numel() for value in network.state_dict().values() if value.device.type != "meta") < 1000
    assert torch.get_rng_state().equal(before)
    assert torch.empty(1).device.type == "cpu"


def test_layout_matches_the_network():
    network = models.regnet_x_400mf()
    assert layout_of(known_spec("torchvision:regnet_x_400mf")) == {key: tuple(value.shape) for key, value in network.state_dict().items()}


def test_offline_names_of_torchvision_need_its_default_weights(caches):
    folder = caches / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "resnet18-f37072fd.pth").write_bytes(b"")
    (folder / "resnet50-0676ba61.pth").write_bytes(b"")  # not the default weights
    assert offline_names() == ["resnet20_cifar10", "torchvision:resnet18"]


def test_offline_names_do_not_import_torch_if_its_cache_is_empty(tmp_path):
    snapshot = tmp_path / "hf" / "hub" / "models--timm--resnet18.a1_in1k" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(b"")
    code = "import sys; from core.models.zoos.lookup import offline_names; print(offline_names()); sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "TORCH_HOME": str(tmp_path), "HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, check=False, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['resnet20_cifar10', 'timm:resnet18.a1_in1k']"


def test_spec_of_a_timm_network_for_grey_images_that_are_not_square(monkeypatch):
    config = replace(timm.models.get_pretrained_cfg("test_byobnet"), input_size=(1, 32, 48), mean=(0.5,), std=(0.2,), crop_pct=0.8)
    monkeypatch.setattr(timm.models, "get_pretrained_cfg", lambda name: config)
    spec = known_spec("timm:test_byobnet")
    assert (spec.shape, spec.resize) == ((1, 32, 48), 40)


@pytest.mark.parametrize(
    ("name", "classes", "size"), [("sknet50", 1000, 224), ("efficientnet_b8", 1000, 672), ("shakedropresnet20_cifar100", 100, 32)]
)
def test_classifiers_of_pytorchcv_without_weights_are_known(name, classes, size):
    """pytorchcv's table lists the networks that it has weights for, about ninety classifiers fewer than it can build."""
    spec = known_spec(f"pytorchcv:{name}")
    assert (len(spec.classes), spec.image_size) == (classes, size)
    with pytest.raises(ModelError, match="has no trained weights"):
        find_pretrained(f"pytorchcv:{name}")


@pytest.mark.parametrize("name", ["unet_cityscapes", "centernet_resnet18_voc", "no_network"])
def test_other_networks_of_pytorchcv_without_weights_are_refused(name):
    with pytest.raises(UnknownNameError, match="unknown architecture"):
        known_spec(f"pytorchcv:{name}")
