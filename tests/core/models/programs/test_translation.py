import copy
import json
import os
import zipfile
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from core.config import TrainingConfig
from core.errors import ModelError
from core.generation.fused.network import FusedConvolution, FusedNetwork, with_statistics
from core.models.full_precision import batch_norm_layers, batch_norm_names_of, find_model, load_model
from core.models.programs.export import save_program
from core.models.programs.translation import load_program, read_program
from core.models.registry import ModelSpec
from core.quantization.placement import quantize_network

ANY_NUMBER = ({0: torch.export.Dim.DYNAMIC},)
SPEC = ModelSpec("mine", "program", ("a", "b", "c", "d"), 8, (0.5, 0.4, 0.3), (0.25, 0.2, 0.3), "noise")


class DenseNetwork(nn.Module):
    """BatchNorm before the convolution, several layers that read one concatenation, and a pooled end without Flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding="same")
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(8 + 4 * i), nn.ReLU(inplace=True), nn.Conv2d(8 + 4 * i, 4, 3, padding=1, bias=False))
            for i in range(3)
        )
        self.last = nn.BatchNorm2d(20, affine=False)
        self.output = nn.Linear(20, 10)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = torch.cat([x, block(x)], 1)
        return self.output(F.relu(self.last(x), inplace=True).mean((2, 3)))


def with_noise(network: nn.Module) -> nn.Module:
    """BatchNorm layers as if trained."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm1d)):
            for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                if tensor is not None:
                    tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return network.eval()


def built(name: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if name == "resnet20_cifar10":
            return copy.deepcopy(load_model(name, "cpu").network)
        if name == "efficientnet_lite0":
            return with_noise(timm.create_model(name, num_classes=10))
        if name == "dense":
            return with_noise(DenseNetwork())
        return with_noise(torchvision.models.get_model(name, weights=None, num_classes=10))


def exported(network: nn.Module, path: Path, size: int = 8, dynamic=ANY_NUMBER, decomposed: bool = False) -> torch.export.ExportedProgram:
    program = torch.export.export(network, (torch.zeros(2, 3, size, size),), dynamic_shapes=dynamic)
    program = program.run_decompositions() if decomposed else program
    torch.export.save(program, path)
    return program


def changed(path: Path, out: Path, changes: dict, compression: int = zipfile.ZIP_STORED) -> Path:
    """A copy of a program whose members are changed: name -> bytes, or a function of the JSON that is in it."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w", compression) as new:
        left = dict(changes)
        root = old.namelist()[0].split("/")[0]
        for info in old.infolist():
            name = info.filename.split("/", 1)[1]
            content, change = old.read(info), left.pop(name, None)
            if callable(change):
                values = json.loads(content)
                change(values)
                content = json.dumps(values).encode()
            elif change is not None:
                content = change
            new.writestr(f"{root}/{name}", content)
        for name, content in left.items():
            new.writestr(f"{root}/{name}", content)
    return out


def refused(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_program(path)
    message = str(caught.value)
    assert path.name in message
    assert "must" in message
    assert "\n" not in message
    return message


@pytest.fixture
def program(small, tmp_path) -> Path:
    path = tmp_path / "small.pt2"
    exported(small.network, path)
    return path


# the same network


@pytest.mark.parametrize("decomposed", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        "resnet20_cifar10",
        "dense",
        pytest.param("mobilenet_v2", marks=pytest.mark.slow),
        pytest.param("mobilenet_v3_small", marks=pytest.mark.slow),
        pytest.param("efficientnet_lite0", marks=pytest.mark.slow),
        pytest.param("densenet121", marks=pytest.mark.slow),
        pytest.param("shufflenet_v2_x0_5", marks=pytest.mark.slow),
    ],
)
def test_same_network_as_the_one_exported(tmp_path, name, decomposed):
    network = built(name)
    size = 32 if name in ("resnet20_cifar10", "dense") else 64
    program = exported(network, tmp_path / "a.pt2", size, decomposed=decomposed)
    back = load_program(tmp_path / "a.pt2")
    generator = torch.Generator().manual_seed(2)
    for count in (1, 5):
        images = torch.randn(count, 3, size, size, generator=generator)
        expected = program.module()(images)
        torch.testing.assert_close(back(images), expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-5)
    assert list(batch_norm_layers(back)) == list(batch_norm_layers(network))
    assert set(back.state_dict()) == set(network.state_dict())
    layers = [{n: type(m) for n, m in one.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))} for one in (network, back)]
    assert layers[0].keys() == layers[1].keys()
    ours, eager = (quantize_network(one, TrainingConfig(), images[:1]) for one in (back, network))
    assert ours.traced
    assert eager.traced
    assert (len(ours.activations), len(ours.layers)) == (len(eager.activations), len(eager.layers))
    fused = with_statistics(back)
    assert isinstance(fused, FusedNetwork)
    torch.testing.assert_close(fused(images)[0], expected, atol=1e-4 * float(expected.abs().max()), rtol=1e-4)
    if name != "efficientnet_lite0":  # timm's BatchNorm layers have their activation in them, which fusion finds only here

        def activations(one: FusedNetwork) -> list:
            return [m.geometry.activation for m in one.module.modules() if isinstance(m, FusedConvolution)]

        assert activations(fused) == activations(with_statistics(network))


def test_network_can_be_moved_copied_and_trained(tmp_path):
    given = with_noise(DenseNetwork())
    exported(given, tmp_path / "a.pt2")
    network = copy.deepcopy(load_program(tmp_path / "a.pt2")).to(memory_format=torch.channels_last)
    images = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(network(images), given(images))
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    before = network.last.running_mean.clone()
    network.train().requires_grad_(True)
    network(images).sum().backward()
    assert not torch.equal(network.last.running_mean, before)
    assert network.stem.weight.grad is not None
    assert network.to("meta")(images.to("meta")).shape == (3, 10)


def test_loading_leaves_the_global_seed_alone(program):
    before = torch.get_rng_state()
    load_program(program)
    assert torch.equal(torch.get_rng_state(), before)


def test_one_layer_used_twice_and_tensors_outside_of_layers(tmp_path):
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.bn = nn.BatchNorm2d(3)
            self.kernel = nn.Parameter(torch.randn(4, 3, 1, 1))
            self.scale = nn.Parameter(torch.rand(1, 3, 1, 1))
            self.register_buffer("shift", torch.rand(3, 1, 1))

        def forward(self, x):
            x = self.bn(self.conv(self.conv(x))) * self.scale + self.shift
            return F.conv2d(x, self.kernel).flatten(2).amax(2)

    network = with_noise(Shared())
    exported(network, tmp_path / "a.pt2")
    back = load_program(tmp_path / "a.pt2")
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(back(images), network(images))
    assert sum(isinstance(module, nn.Conv2d) for module in back.modules()) == 2
    assert {"conv.weight", "bn.running_var", "scale", "shift"} <= set(back.state_dict())


def test_image_size(program, small, tmp_path):
    assert read_program(program).image_size == (8, 8)
    sides = (dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC),)
    exported(small.network, tmp_path / "any.pt2", dynamic=sides)
    any_size = read_program(tmp_path / "any.pt2")
    assert any_size.image_size == (None, None)
    images = torch.randn(1, 3, 20, 12)
    torch.testing.assert_close(any_size.network(images), small.network(images))


def test_saved_program_is_the_name_of_a_model(small, tmp_path):
    path = tmp_path / "mine.pt2"
    save_program(small.network, SPEC, path)
    assert [one.name for one in tmp_path.iterdir()] == ["mine.pt2"]
    assert find_model(str(path)) == (path, SPEC)
    model = load_model(str(path), "cpu")
    images = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(model.network(images), small.network(images))
    assert batch_norm_names_of(str(path)) == ["bn1", "bn2"]
    # the standard reader reads it, too, and it says nothing of the machine that it was written on
    torch.testing.assert_close(torch.export.load(path).module()(images), small.network(images))
    assert os.path.dirname(__file__).encode() not in path.read_bytes()


def test_program_without_a_spec_is_no_model(program):
    with pytest.raises(ModelError, match="must contain its classes, image size"):
        find_model(str(program))


@pytest.mark.parametrize("spec", [b"{", b"[]", b"null", b"\xff", b'{"name": "x"}', b"[" * 100_000])
def test_spec_that_is_none(program, tmp_path, spec):
    path = changed(program, tmp_path / "bad.pt2", {"extra/spec.json": spec})
    with pytest.raises(ModelError, match="must"):
        find_model(str(path))


# what is refused


def test_fixed_number_of_images_says_how_to_export(small, tmp_path):
    exported(small.network, tmp_path / "one.pt2", dynamic=None)
    message = refused(tmp_path / "one.pt2")
    assert "batch size must be dynamic, got 2" in message
    assert "dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)" in message


def test_training_mode(tmp_path):
    exported(DenseNetwork().train(), tmp_path / "a.pt2")
    assert "network.eval()" in refused(tmp_path / "a.pt2")


def test_change_in_place_that_another_tensor_shows(tmp_path):
    class InPlace(nn.Module):
        def __init__(self, shows: bool) -> None:
            super().__init__()
            self.shows = shows
            self.conv = nn.Conv2d(3, 4, 1)
            self.bn = nn.BatchNorm2d(4)

        def forward(self, x):
            x = self.bn(self.conv(x))
            view = x.flatten(1)
            x.mul_(2.0)
            return (view if self.shows else x.flatten(1))[:, :4] + x.mean((2, 3))

    for shows in (True, False):
        network = with_noise(InPlace(shows))
        program = exported(network, tmp_path / "a.pt2")
        images = torch.randn(3, 3, 8, 8)
        if shows:
            assert "run_decompositions" in refused(tmp_path / "a.pt2")
            torch.export.save(program.run_decompositions({}), tmp_path / "a.pt2")
        torch.testing.assert_close(load_program(tmp_path / "a.pt2")(images), network(images))


def test_other_files(tmp_path):
    assert "does not exist" in refused(tmp_path / "none.pt2")
    (tmp_path / "folder.pt2").mkdir()
    refused(tmp_path / "folder.pt2")
    for content in (b"", b"garbage", b"PK\x05\x06" + bytes(18)):
        (tmp_path / "a.pt2").write_bytes(content)
        refused(tmp_path / "a.pt2")
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "state.pt2")
    refused(tmp_path / "state.pt2")


def test_file_that_is_cut_or_damaged(program, tmp_path):
    content = program.read_bytes()
    for length in range(0, len(content), len(content) // 20):
        (tmp_path / "cut.pt2").write_bytes(content[:length])
        refused(tmp_path / "cut.pt2")


def graph(values: dict) -> dict:
    return values["graph_module"]["graph"]


class Payload:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def set_expression(values: dict, text: str) -> None:
    tensors = graph(values)["tensor_values"]
    name = next(name for name in tensors if name in json.dumps(graph(values)["nodes"][0]["inputs"]) and "as_expr" in str(tensors[name]))
    tensors[name]["sizes"][0]["as_expr"]["expr_str"] = text


def test_malicious_program_runs_nothing(program, tmp_path):
    """Each does harm in torch.export.load, which shows that they are real, and nothing here."""
    pickled = tmp_path / "payload"
    torch.save((Payload(tmp_path / "inputs"),), pickled)
    inputs = changed(program, tmp_path / "inputs.pt2", {"data/sample_inputs/model.pt": pickled.read_bytes()})
    text = f"__import__('os').mkdir({str(tmp_path / 'expression')!r})"
    expression = changed(program, tmp_path / "expression.pt2", {"models/model.json": lambda values: set_expression(values, text)})

    def as_pickle(values: dict) -> None:
        values["config"]["conv1.weight"].update(use_pickle=True, tensor_meta=None, path_name="harm")

    torch.save(Payload(tmp_path / "weight"), pickled)
    weight = changed(
        program,
        tmp_path / "weight.pt2",
        {"data/weights/model_weights_config.json": as_pickle, "data/weights/harm": pickled.read_bytes()},
    )
    for path in (inputs, expression, weight):
        harm = path.with_suffix("")
        if path == weight:
            assert "pickle" in refused(path)
        else:
            load_program(path)  # what is harmful in it is never looked at
        assert not harm.exists()
        try:
            torch.export.load(path)
        except Exception as error:  # it fails after the harm is done
            print(error)
        assert harm.is_dir()


@pytest.mark.parametrize(
    "target",
    [
        "torch.os.system",
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.save.default",
        "torch.ops.aten.__class__.__init__",
        "torch.ops.aten.add.__init__",
        "torch.ops.aten.add.out",
        "torch.ops.prim.Print.default",
        "_operator.methodcaller",
        "math.exp",
        "torch.ops.aten.relu.default\nimport os",
        7,
        None,
    ],
)
def test_operation_that_is_none_of_a_classifier(program, tmp_path, target):
    def change(values: dict) -> None:
        graph(values)["nodes"][0]["target"] = target

    assert "operation" in refused(changed(program, tmp_path / "a.pt2", {"models/model.json": change}))


@pytest.mark.parametrize(
    "name", ["conv1.weight; import os", "a\nb", "", "a..b", "forward.weight", "_modules.weight", "graph.weight", "x" * 600]
)
def test_name_that_no_attribute_has(program, tmp_path, name):
    def rename(values: dict) -> None:
        text = json.dumps(values).replace('"conv1.weight"', json.dumps(name))
        values.clear()
        values.update(json.loads(text))

    path = changed(program, tmp_path / "a.pt2", {"models/model.json": rename, "data/weights/model_weights_config.json": rename})
    refused(path)


def test_names_of_results_never_become_code(program, tmp_path):
    def rename(values: dict) -> None:
        text = json.dumps(values).replace('"conv2d"', json.dumps("x=__import__('os').abort()\n"))
        values.clear()
        values.update(json.loads(text))

    network = load_program(changed(program, tmp_path / "a.pt2", {"models/model.json": rename}))
    assert "abort" not in network.code


def test_bombs(program, tmp_path):
    packed = changed(program, tmp_path / "packed.pt2", {"extra/zeros": bytes(10_000_000)}, zipfile.ZIP_DEFLATED)
    assert "compressed" in refused(packed)

    def huge(values: dict) -> None:
        values["config"]["conv1.weight"]["tensor_meta"].update(sizes=[{"as_int": 1 << 20}] * 4, strides=[{"as_int": 0}] * 4)

    assert "conv1.weight" in refused(changed(program, tmp_path / "a.pt2", {"data/weights/model_weights_config.json": huge}))

    def many(values: dict) -> None:
        values["config"] |= {f"w{i}": values["config"]["conv2.weight"] for i in range(1000)}

    assert "times as many" in refused(changed(program, tmp_path / "b.pt2", {"data/weights/model_weights_config.json": many}))

    def long(values: dict) -> None:
        graph(values)["nodes"] *= 5000

    assert "operations" in refused(changed(program, tmp_path / "c.pt2", {"models/model.json": long}))

    def deep(values: dict) -> None:
        values["graph_module"]["graph"] = None

    refused(changed(program, tmp_path / "d.pt2", {"models/model.json": deep}))
    refused(changed(program, tmp_path / "e.pt2", {"models/model.json": b"[" * 1_000_000}))


def test_tensor_that_would_not_fit_in_memory(program, tmp_path):
    def repeat(values: dict) -> None:
        node = graph(values)["nodes"][0]
        node["target"] = "torch.ops.aten.repeat.default"
        repeats = {"name": "repeats", "arg": {"as_ints": [1, 1, 4096, 4096]}, "kind": 1}
        node["inputs"] = [{"name": "self", "arg": node["inputs"][0]["arg"], "kind": 1}, repeats]

    assert "elements at repeat" in refused(changed(program, tmp_path / "a.pt2", {"models/model.json": repeat}))
