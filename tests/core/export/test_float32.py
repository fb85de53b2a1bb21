import dataclasses

import onnxruntime
import pytest
import torch

import core.export.float32
from core.export.float32 import float32_file
from core.layout import FLOAT32
from core.models.full_precision import FullPrecisionModel


@pytest.fixture
def folders(tmp_path):
    """Of a run, and of an export."""
    for name in ("run", "temporary"):
        (tmp_path / name).mkdir()
    return tmp_path / "run", tmp_path / "temporary"


def written(path):
    return path, path.stat().st_mtime_ns, path.stat().st_ino


def kept(run):
    return sorted((run / FLOAT32).iterdir())


@pytest.mark.parametrize("kind", ["onnx-exact", "pt2"])
def test_the_second_export_finds_the_file_of_the_first(kind, small, folders, monkeypatch):
    first = written(float32_file(kind, small, *folders))
    assert first[0].parent == folders[0] / FLOAT32
    assert written(float32_file(kind, small, *folders)) == first
    # not of another version of the exporters
    monkeypatch.setattr(core.export.float32, "versions", lambda packages: f"{', '.join(packages)} of tomorrow")
    second = float32_file(kind, small, *folders)
    assert second != first[0]
    assert kept(folders[0]) == [second]


def test_the_onnx_formats_share_a_file(small, folders):
    files = {float32_file(kind, small, *folders) for kind in ("onnx", "onnx-symmetric", "onnx-exact")}
    assert kept(folders[0]) == sorted(files)
    assert len(files) == 1


@pytest.mark.parametrize("changed", ["a weight", "the layers", "the normalization"])
def test_another_network_is_written_again(changed, small, folders):
    before = float32_file("onnx", small, *folders)
    network, spec = small.network, small.spec
    if changed == "a weight":
        with torch.no_grad():
            next(iter(network.parameters())).view(-1)[0] += 1
    elif changed == "the layers":
        network = torch.nn.Sequential(network, torch.nn.Softmax(dim=1)).eval()
    else:
        spec = dataclasses.replace(spec, mean=tuple(value + 0.1 for value in spec.mean))
    model = FullPrecisionModel(network, spec)
    after = float32_file("onnx", model, *folders)
    assert kept(folders[0]) == [after]
    assert after != before
    images = torch.randn(2, *spec.shape)
    (scores,) = onnxruntime.InferenceSession(after, providers=["CPUExecutionProvider"]).run(None, {"images": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(scores), model.network(images).detach(), rtol=1e-3, atol=1e-4)


def test_files_with_and_without_preprocessing_are_kept_side_by_side(small, folders):
    plain, pixels = float32_file("onnx", small, *folders), float32_file("onnx", small, *folders, preprocessing=True)
    assert kept(folders[0]) == sorted((plain, pixels))
    types = [onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).get_inputs()[0].type for path in (plain, pixels)]
    assert types == ["tensor(float)", "tensor(uint8)"]


def test_an_export_goes_on_if_the_file_cannot_be_kept(small, folders):
    (folders[0] / FLOAT32).write_bytes(b"not a folder")
    path = float32_file("pt2", small, *folders)
    assert path.parent == folders[1]
    assert path.stat().st_size > 0
