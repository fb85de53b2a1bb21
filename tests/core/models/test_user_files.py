"""Networks of the user in a process of their own: real ones are stored, and none takes more memory or time than a file may."""

import io
import os
import sys
import zipfile
from collections import OrderedDict
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from core import untrusted
from core.errors import DataError, ModelError, UnknownNameError
from core.models.full_precision import find_model, load_model
from core.models.programs.export import save_program
from core.models.registry import MODELS, GivenSpec
from core.models.user_files import check_checkpoint, check_program, import_network
from core.untrusted import MEMORY_BYTES, MEMORY_FACTOR

PATH, SPEC = MODELS["resnet20_cifar10"]
ARCHITECTURE = "pytorchcv:resnet20_cifar10"
GIVEN = GivenSpec(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
pytestmark = pytest.mark.slow
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits memory")


def exported(network: nn.Module, size: int, path: Path) -> Path:
    program = torch.export.export(network.eval(), (torch.zeros(2, 3, size, size),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    torch.export.save(program, path)
    return path


def allocation(count: int) -> bytes:
    """A pickle of 32 bytes or so that calls bytearray(count), which `weights_only` allows."""
    return b"\x80\x02cbuiltins\nbytearray\n\x8a\x06" + count.to_bytes(6, "little") + b"\x85R."


def legacy_pickle(path: Path) -> Path:
    path.write_bytes(allocation(12 << 30))
    return path


def legacy_storage(path: Path) -> Path:
    """A file of torch.save before 1.6 whose only tensor states that it has 8 GB."""
    torch.save(OrderedDict(a=torch.zeros(77_777)), path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    announced = content.replace(b"J" + (77_777).to_bytes(4, "little"), b"J" + (2**31 - 1).to_bytes(4, "little"))
    assert announced != content
    path.write_bytes(announced)
    return path


def zip_pickle(path: Path) -> Path:
    """A file of torch.save whose description of the tensors calls bytearray."""
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(3)}, buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as new:
        for info in old.infolist():
            new.writestr(info.filename, allocation(12 << 30) if info.filename.endswith("data.pkl") else old.read(info))
    return path


def nested_pickle(path: Path) -> Path:
    """Allocations below the limit each, all of them kept."""
    one = allocation(50 << 20)[2:-1]
    path.write_bytes(b"\x80\x02(" + b"".join(one for _ in range(200)) + b"t.")
    return path


class Wide(nn.Module):
    """Live tensors of 400 MB each, or one long chain of expensive products; otherwise a valid classifier."""

    def __init__(self, live: int = 0, products: int = 0) -> None:
        super().__init__()
        self.live, self.products = live, products
        self.conv, self.bn, self.output = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 4)
        self.bn.running_mean.fill_(0.5)

    def forward(self, x):
        x = self.output(self.bn(self.conv(x)).mean((2, 3)))
        tensors = [x[:, :1].expand(-1, 50_000_000) + float(index) for index in range(self.live)]
        for tensor in tensors:
            x = x + tensor[:, :4]
        if self.products:
            square = x[0, 0].view(1, 1).expand(3000, 3000)
            for _ in range(self.products):
                square = (square @ square) * 0.0
            x = x + square[0, :4]
        return x


def live_program(path: Path) -> Path:
    return exported(Wide(live=8), 8, path.with_suffix(".pt2"))


def deep_json_program(path: Path) -> Path:
    """A graph of lists, whose objects take 27 times the bytes of the file."""
    small = exported(Wide(), 8, path.with_suffix(".pt2"))
    out = path.with_name("deep.pt2")
    with zipfile.ZipFile(small) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as new:
        for info in old.infolist():
            new.writestr(info.filename, b"[" + b"[]," * (5 << 20) + b"0]" if "models/" in info.filename else old.read(info))
    return out


ATTACKS = (legacy_pickle, legacy_storage, zip_pickle, nested_pickle, live_program, deep_json_program)


@needs_linux
def test_no_file_takes_more_memory_than_a_file_may(tmp_path, children):
    # what the process needs for its imports and a small network
    import_network(exported(Wide(), 8, tmp_path / "good.pt2"), "", out_folder=tmp_path / "good", given=GIVEN)
    harmless = children.peak()
    assert harmless > 100 << 20
    for attack in ATTACKS:
        file = attack(tmp_path / f"{attack.__name__}.pth")
        most = MEMORY_FACTOR * file.stat().st_size + MEMORY_BYTES
        with pytest.raises(ModelError) as caught:
            import_network(file, ARCHITECTURE, out_folder=tmp_path / "kept", given=GIVEN, name=file.name)
        assert str(caught.value) == (
            f"{file.name!r} needs more than {most >> 20:,} MB of memory to check; a file may need 4 times its size and 200 MB"
        )
        assert children.peak() < harmless + most
    assert not (tmp_path / "kept").exists()


def test_long_computation_is_refused_in_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(untrusted, "SECONDS", 3)
    file = exported(Wide(products=500), 8, tmp_path / "slow.pt2")
    with pytest.raises(ModelError, match=r"^'slow.pt2' took longer than 3 seconds to check; files of its size usually take a few$"):
        import_network(file, "", out_folder=tmp_path / "kept", given=GIVEN, name="slow.pt2")
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize(("name", "kind"), [("resnet18", ".pth"), ("efficientnet_b0", ".pt2")])
def test_real_networks_of_224_pixels_are_accepted(tmp_path, name, kind):
    import timm

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        network = timm.create_model(name, num_classes=1000)
        network.train()(torch.randn(2, 3, 224, 224))
    file = tmp_path / f"mine{kind}"
    exported(network, 224, file) if kind == ".pt2" else torch.save(network.state_dict(), file)
    path = import_network(file, f"timm:{name}", out_folder=tmp_path / "kept", given=GIVEN)
    model = load_model(str(path), "cpu")
    assert (model.spec.image_size, len(model.spec.classes)) == (224, 1000)
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(model.network(image), network.eval()(image), rtol=1e-3, atol=1e-3)
    assert sorted(one.name for one in path.parent.iterdir()) == sorted((path.name, path.with_suffix(".json").name))
    if kind == ".pt2":
        assert check_checkpoint(path) == ("mine", 1000)


@pytest.mark.parametrize("name", ["efficientnet_lite0", "mobilenetv2_050"])
def test_small_networks_with_large_images_are_accepted(tmp_path, name):
    import timm

    with torch.random.fork_rng(devices=[]):
        network = timm.create_model(name)
    weights = {key: value + 0.1 if key.endswith("running_mean") else value for key, value in network.state_dict().items()}
    torch.save(weights, tmp_path / "mine.pth")
    given = GivenSpec(image_size=1024)
    path = import_network(tmp_path / "mine.pth", f"timm:{name}", out_folder=tmp_path / "kept", given=given)
    assert load_model(str(path), "cpu").spec.image_size == 1024


def test_errors_of_the_import_are_those_of_import_checkpoint(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pth")
    with pytest.raises(ModelError, match="^tensors of mine.pth must be those of pytorchcv:resnet20_cifar10; missing: "):
        import_network(tmp_path / "a.pth", ARCHITECTURE, out_folder=tmp_path / "kept", given=GivenSpec(), name="mine.pth")
    with pytest.raises(UnknownNameError, match="unknown architecture 'nothing'"):
        import_network(tmp_path / "a.pth", "pytorchcv:nothing", out_folder=tmp_path / "kept", given=GivenSpec())
    assert not (tmp_path / "kept").exists()


def test_folder_that_cannot_be_written_is_a_sentence(tmp_path):
    torch.save(load_file(PATH), tmp_path / "a.pth")
    (tmp_path / "kept").write_text("no folder", encoding="utf-8")
    with pytest.raises(DataError, match=r"a.pth could not be stored \(.*\): .*kept must be writable and have free space"):
        import_network(tmp_path / "a.pth", ARCHITECTURE, out_folder=tmp_path / "kept", given=GivenSpec())


@needs_linux
def test_program_that_is_the_name_of_a_model_is_checked(tmp_path, children):
    spec = find_model("resnet20_cifar10")[1]
    values = {**asdict(spec), "name": "wide", "architecture": "program", "classes": tuple("abcd"), "image_size": 8}
    save_program(Wide(live=8).eval(), type(spec)(**values), tmp_path / "wide.pt2")
    with pytest.raises(ModelError, match=r"wide.pt2' needs more than 200 MB of memory to check"):
        check_program(str(tmp_path / "wide.pt2"))
    # those have been checked when they were stored
    kept = tmp_path / "uploads" / "networks"
    kept.mkdir(parents=True)
    os.rename(tmp_path / "wide.pt2", kept / "wide.pt2")
    check_program(str(kept / "wide.pt2"))
    check_program("resnet20_cifar10")
    check_program(str(tmp_path / "none.pt2"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("name", ["a.pth", "a.pt2", "a.safetensors"])
def test_named_pipe_is_refused_at_once(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(ModelError, match=r"cannot be read \(it is a named pipe, not a regular file\)"):
        import_network(tmp_path / name, ARCHITECTURE, out_folder=tmp_path / "kept", given=GivenSpec())
    if name != "a.pth":
        with pytest.raises(ModelError, match=r"cannot be read \(it is a named pipe, not a regular file\)"):
            load_model(str(tmp_path / name), "cpu")
