"""Every stage with networks whose layers share parameters."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_model

from core.config import GenerationConfig, TrainingConfig
from core.data.image_sets import ImageSet
from core.export.formats import SUFFIXES
from core.export.network import save_network
from core.export.packed import load_packed
from core.export.verify import open_onnx, open_program
from core.generation.loop import synthesize
from core.models.full_precision import FullPrecisionModel, load_model, save_checkpoint
from core.models.importing import import_checkpoint
from core.models.programs.export import save_program
from core.models.programs.importing import import_program
from core.models.programs.translation import load_program
from core.models.registry import GivenSpec
from core.models.zoos.lookup import build_architecture
from core.quantization.saved_network import load_quantized, save_quantized
from core.quantization.training import QuantizationTraining
from core.recipes.pretrain import _average_into
from tests.core.tied_networks import TIED, tied

IMAGES = ImageSet(torch.randint(0, 256, (16, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 4)
CONFIG = TrainingConfig(weight_bits=3, activation_bits=3, steps=2, training_batch_size=8, calibration_images=16)


def normalized(model: FullPrecisionModel) -> torch.Tensor:
    return model.normalize(IMAGES.images).contiguous(memory_format=torch.channels_last)


def trained(model: FullPrecisionModel) -> QuantizationTraining:
    training = QuantizationTraining(model, IMAGES, CONFIG)
    training.step()
    training.step()
    return training


def shared(network: torch.nn.Module) -> int:
    """How many names of parameters are further names of another one."""
    return len(list(network.named_parameters(remove_duplicate=False))) - len(list(network.parameters()))


@pytest.mark.parametrize("name", TIED)
def test_generation(name):
    model = tied(name)
    before = copy.deepcopy(model.network.state_dict())
    images, summary = synthesize(model, GenerationConfig(images=4, batch_size=4, snapshots=1, iterations=2))
    assert len(images) == 4
    assert summary["bns_loss_last"] > 0
    assert all(torch.equal(value, before[key]) for key, value in model.network.state_dict().items())


@pytest.mark.parametrize("name", TIED)
def test_training_keeps_what_is_shared_and_resumes(name, tmp_path):
    model = tied(name)
    training = QuantizationTraining(model, IMAGES, CONFIG)
    training.step()
    torch.save(training.state(), tmp_path / "state.pt")
    resumed = QuantizationTraining(model, IMAGES, CONFIG)
    resumed.load_state(torch.load(tmp_path / "state.pt", weights_only=True))
    for one in (training, resumed):
        one.step()
        assert sum("quantizer" not in name for name, _ in one.student.named_parameters()) == len(list(model.network.parameters()))
    assert torch.equal(training.inference_network()(normalized(model)), resumed.inference_network()(normalized(model)))
    path = save_quantized(training.quantized, CONFIG, tmp_path)
    loaded = load_quantized(path, model)
    assert torch.equal(loaded.network(normalized(model)), training.student(normalized(model)))


ONNX = ("Affine", "Dilations", "Modules", "Transposed")  # translating takes seconds


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *((kind, name) for kind in ("packed", "pt2") for name in TIED),
        *(pytest.param("onnx", name, marks=pytest.mark.slow if name in ONNX else pytest.mark.exhaustive) for name in TIED),
    ],
)
def test_exports(kind, name, tmp_path):
    model = tied(name)
    training = trained(model)
    path = tmp_path / f"network{SUFFIXES[kind]}"
    save_network(kind, training.quantized, model, CONFIG, path)
    loaded = {"packed": lambda: load_packed(path, model.network), "pt2": lambda: open_program(path), "onnx": lambda: open_onnx(path, 1)}
    torch.testing.assert_close(loaded[kind]()(normalized(model)), training.inference_network()(normalized(model)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", TIED)
def test_programs(name, tmp_path):
    """Read, stored and read again, a program shares what its network shares."""
    model = tied(name)
    save_program(model.network, model.spec, tmp_path / "network.pt2")
    given = GivenSpec(mean=model.spec.mean, std=model.spec.std)
    stored = import_program(tmp_path / "network.pt2", out_folder=tmp_path / "networks", given=given)
    for path in (tmp_path / "network.pt2", stored):
        network = load_program(path)
        torch.testing.assert_close(network(normalized(model)), model.network(normalized(model)))
        assert len(list(network.parameters())) == len(list(model.network.parameters()))
    trained(FullPrecisionModel(network, model.spec))


def test_a_function_of_a_transposed_weight_is_no_linear_layer(tmp_path):
    """The weight is square, so that its shape does not tell."""
    model = tied("Transposed")
    save_program(model.network, model.spec, tmp_path / "network.pt2")
    training = trained(FullPrecisionModel(load_program(tmp_path / "network.pt2"), model.spec))
    assert len(training.quantized.layers) == 5
    assert training.quantized.note == "in full precision where a function reads them: middle.weight"


@pytest.mark.parametrize("form", ["torch", "safetensors"])
def test_checkpoints(form, tmp_path):
    """A DIA-ResNet calls one recurrent cell in every block of a stage; safetensors writes a shared tensor once."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_architecture("pytorchcv:diaresnet20_cifar10", 10)
    assert shared(network) > 0
    network.train()(torch.randn(8, 3, 32, 32))
    file = tmp_path / "network"
    if form == "torch":
        torch.save(network.eval().state_dict(), file)
    else:
        save_model(network.eval(), str(file))
        assert len(load_file(file)) < len(network.state_dict())
    path = import_checkpoint(file, "pytorchcv:diaresnet20_cifar10", out_folder=tmp_path / "networks")
    model = load_model(str(path), "cpu")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model.network(images), network(images))
    save_checkpoint(model.network, model.spec, tmp_path / "again.safetensors")
    assert shared(load_model(str(tmp_path / "again.safetensors"), "cpu").network) == shared(network)


@pytest.mark.parametrize("name", TIED)
def test_a_checkpoint_has_every_tensor_under_every_name(name, tmp_path):
    model = tied(name)
    save_checkpoint(model.network, model.spec, tmp_path / "network.safetensors")
    saved = load_file(tmp_path / "network.safetensors")
    assert saved.keys() == model.network.state_dict().keys()
    assert all(torch.equal(saved[key], value) for key, value in model.network.state_dict().items())
    file_size = (tmp_path / "network.safetensors").stat().st_size
    assert file_size < 2 * sum(value.nbytes for value in saved.values()) + 8192  # not the whole buffer for each of its slices


def test_the_average_of_a_pretraining_takes_a_shared_tensor_once():
    model = tied("Modules")
    averaged = copy.deepcopy(model.network)
    with torch.no_grad():
        for tensor in (*averaged.parameters(), *averaged.buffers()):
            tensor.fill_(1)
        for tensor in (*model.network.parameters(), *model.network.buffers()):
            tensor.fill_(5)
    _average_into(averaged, model.network, 0.75)
    values = {float(value.mean()) for value in averaged.state_dict().values() if value.is_floating_point()}
    assert values == {2.0}
