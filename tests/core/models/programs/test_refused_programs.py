"""Programs that must be refused: damaged, malicious, too large, or with operations that no classifier has."""

import json
import os
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from core.errors import ModelError
from core.models.full_precision import find_model
from core.models.programs.translation import load_program

ANY_NUMBER = ({0: torch.export.Dim.DYNAMIC},)


def with_noise(network: nn.Module) -> nn.Module:
    """The network with BatchNorm layers as if trained."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm1d)):
            for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                if tensor is not None:
                    tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return network.eval()


def exported(network: nn.Module, path: Path, size: int = 8, dynamic=ANY_NUMBER, decomposed: bool = False) -> torch.export.ExportedProgram:
    program = torch.export.export(network, (torch.zeros(2, 3, size, size),), dynamic_shapes=dynamic)
    program = program.run_decompositions() if decomposed else program
    torch.export.save(program, path)
    return program


def changed(path: Path, out: Path, changes: dict, compression: int = zipfile.ZIP_STORED) -> Path:
    """A copy of a program with changed members: name -> new bytes, or a function that edits the parsed JSON."""
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


@pytest.mark.parametrize("spec", [b"{", b"[]", b"null", b"\xff", b'{"name": "x"}', b"[" * 100_000])
def test_invalid_spec_is_refused(program, tmp_path, spec):
    path = changed(program, tmp_path / "bad.pt2", {"extra/spec.json": spec})
    with pytest.raises(ModelError, match="must"):
        find_model(str(path))


def test_error_for_a_fixed_batch_size_says_how_to_export(small, tmp_path):
    exported(small.network, tmp_path / "one.pt2", dynamic=None)
    message = refused(tmp_path / "one.pt2")
    assert "batch size must be dynamic, got 2" in message
    assert "dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)" in message


def test_program_in_training_mode_is_refused(tmp_path):
    exported(nn.Sequential(nn.Conv2d(3, 4, 8), nn.BatchNorm2d(4), nn.Flatten()).train(), tmp_path / "a.pt2")
    assert "network.eval()" in refused(tmp_path / "a.pt2")


def test_in_place_change_visible_in_a_view_is_refused(tmp_path):
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


def test_files_that_are_not_programs_are_refused(tmp_path):
    assert "does not exist" in refused(tmp_path / "none.pt2")
    (tmp_path / "folder.pt2").mkdir()
    refused(tmp_path / "folder.pt2")
    for content in (b"", b"garbage", b"PK\x05\x06" + bytes(18)):
        (tmp_path / "a.pt2").write_bytes(content)
        refused(tmp_path / "a.pt2")
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "state.pt2")
    refused(tmp_path / "state.pt2")


def test_truncated_file_is_refused(program, tmp_path):
    content = program.read_bytes()
    for length in range(0, len(content), len(content) // 20):
        (tmp_path / "cut.pt2").write_bytes(content[:length])
        refused(tmp_path / "cut.pt2")


def graph(values: dict) -> dict:
    return values["graph_module"]["graph"]


class Payload:
    """Unpickling it creates a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def set_expression(values: dict, text: str) -> None:
    tensors = graph(values)["tensor_values"]
    name = next(name for name in tensors if name in json.dumps(graph(values)["nodes"][0]["inputs"]) and "as_expr" in str(tensors[name]))
    tensors[name]["sizes"][0]["as_expr"]["expr_str"] = text


def test_malicious_program_executes_nothing(program, tmp_path):
    """Each executes code in torch.export.load, which proves that the attack works, and none does here."""
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
            load_program(path)  # the harmful part is never read
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
def test_unknown_operation_is_refused(program, tmp_path, target):
    def change(values: dict) -> None:
        graph(values)["nodes"][0]["target"] = target

    assert "operation" in refused(changed(program, tmp_path / "a.pt2", {"models/model.json": change}))


@pytest.mark.parametrize(
    "name", ["conv1.weight; import os", "a\nb", "", "a..b", "forward.weight", "_modules.weight", "graph.weight", "x" * 600]
)
def test_invalid_attribute_name_is_refused(program, tmp_path, name):
    def rename(values: dict) -> None:
        text = json.dumps(values).replace('"conv1.weight"', json.dumps(name))
        values.clear()
        values.update(json.loads(text))

    path = changed(program, tmp_path / "a.pt2", {"models/model.json": rename, "data/weights/model_weights_config.json": rename})
    refused(path)


def test_result_names_never_become_code(program, tmp_path):
    def rename(values: dict) -> None:
        text = json.dumps(values).replace('"conv2d"', json.dumps("x=__import__('os').abort()\n"))
        values.clear()
        values.update(json.loads(text))

    network = load_program(changed(program, tmp_path / "a.pt2", {"models/model.json": rename}))
    assert "abort" not in network.code


def test_bombs_are_refused(program, tmp_path):
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


def test_tensor_too_large_for_memory_is_refused(program, tmp_path):
    def repeat(values: dict) -> None:
        node = graph(values)["nodes"][0]
        node["target"] = "torch.ops.aten.repeat.default"
        repeats = {"name": "repeats", "arg": {"as_ints": [1, 1, 4096, 4096]}, "kind": 1}
        node["inputs"] = [{"name": "self", "arg": node["inputs"][0]["arg"], "kind": 1}, repeats]

    assert "elements at repeat" in refused(changed(program, tmp_path / "a.pt2", {"models/model.json": repeat}))

    def zeros(values: dict) -> None:
        node = graph(values)["nodes"][0]
        node["target"] = "torch.ops.aten.zeros.default"
        node["inputs"] = [{"name": "size", "arg": {"as_ints": [4096, 4096, 4096]}, "kind": 1}]

    assert "elements at zeros" in refused(changed(program, tmp_path / "b.pt2", {"models/model.json": zeros}))
