"""Weights files: read without unpickling and unwrapped; those that would execute code or expand in memory are refused."""

import pickle
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from core.errors import ModelError
from core.models import weights
from core.models.state_dicts import find_state_dict
from core.models.weights import check_layout, fill, read_content

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.zeros(2), "n": torch.tensor(3)}


def read_weights(path):
    return find_state_dict(read_content(path), STATE, str(path)).weights


class Evil:
    """Unpickling it creates a file."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (str(self.target), "w")


def same(found):
    return found.keys() == STATE.keys() and all(torch.equal(found[key], STATE[key]) for key in STATE)


def refused(path) -> str:
    with pytest.raises(ModelError) as caught:
        read_weights(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "must" in message
    assert "\n" not in message
    assert len(message) < 700 + len(str(path))
    return message


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors", "a"])
@pytest.mark.parametrize("legacy", [False, True])
def test_state_dict_of_torch_save_with_any_file_name(tmp_path, legacy, name):
    torch.save(STATE, tmp_path / name, _use_new_zipfile_serialization=not legacy)
    assert same(read_weights(tmp_path / name))


def test_safetensors_with_any_file_name(tmp_path):
    save_file(STATE, tmp_path / "a.bin")
    assert same(read_weights(tmp_path / "a.bin"))


@pytest.mark.parametrize(
    "wrapped",
    [
        {"state_dict": STATE, "epoch": 3, "optimizer": {"lr": 0.1}},
        {"model": STATE},
        {"model_state_dict": STATE, "loss": 0.5},
        {"model": {"state_dict": STATE}, "args": {"a": 1}},
    ],
)
def test_wrapped_state_dict_is_found(tmp_path, wrapped):
    torch.save(wrapped, tmp_path / "a.pt")
    assert same(read_weights(tmp_path / "a.pt"))


@pytest.mark.parametrize("legacy", [False, True])
def test_malicious_pickle_is_refused_and_not_executed(tmp_path, legacy):
    target = tmp_path / "was executed"
    torch.save({"state_dict": STATE, "extra": Evil(target)}, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
    message = refused(tmp_path / "a.pt")
    assert "open" in message
    assert not target.exists()
    # unpickling the same file does harm, so this test can fail
    torch.load(tmp_path / "a.pt", weights_only=False)
    assert target.exists()


def test_plain_malicious_pickle_is_refused(tmp_path):
    (tmp_path / "a.pth").write_bytes(pickle.dumps(Evil(tmp_path / "was executed")))
    refused(tmp_path / "a.pth")
    assert not (tmp_path / "was executed").exists()


def test_whole_network_is_refused(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "a.pt")
    assert "state dict" in refused(tmp_path / "a.pt")


def test_compressed_archive_is_refused(tmp_path):
    torch.save({"a": torch.zeros(100_000)}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for member in plain.namelist():
            packed.writestr(member, plain.read(member))
    assert "compressed" in refused(tmp_path / "a.pt")


def test_long_tensor_descriptions_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "HEADER_BYTES", 50)
    torch.save(STATE, tmp_path / "a.pt")
    assert "description of its tensors" in refused(tmp_path / "a.pt")
    save_file(STATE, tmp_path / "a.safetensors")
    assert "its header must have" in refused(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "content", [b"", b"x", b"PK\x03\x04" + bytes(50), b"\x80\x02}q\x00.", b"\x80\x02", (2**60).to_bytes(8, "little") + b"{"]
)
def test_garbage_is_refused(tmp_path, content):
    (tmp_path / "a.pt").write_bytes(content)
    refused(tmp_path / "a.pt")


def test_truncated_file_is_refused(tmp_path):
    torch.save(STATE, tmp_path / "a.pt")
    content = (tmp_path / "a.pt").read_bytes()
    for length in (20, len(content) // 2, len(content) - 10):
        (tmp_path / "b.pt").write_bytes(content[:length])
        refused(tmp_path / "b.pt")


def test_missing_file_and_folder_are_refused(tmp_path):
    refused(tmp_path / "none.pt")
    refused(tmp_path)


@pytest.mark.parametrize(
    "value",
    [{}, [1, 2], {"a": 3}, torch.zeros(2), {"a": torch.eye(3).to_sparse()}, {"state_dict": {"a": "b"}}],
)
def test_file_without_plain_tensors_is_refused(tmp_path, value):
    torch.save(value, tmp_path / "a.pt")
    assert "must" in refused(tmp_path / "a.pt")


def test_mismatches_with_the_layout_are_listed():
    expected = {"a": (1, 2), "b": (3,), "c": (4,)}
    check_layout({"a": [1, 2], "b": (3,), "c": (4,)}, expected, "mine", "net")
    with pytest.raises(ModelError, match="^tensors of mine must be those of net; missing: b; unexpected: d, e, f ...$"):
        check_layout(dict.fromkeys("acdefg", ()), expected, "mine", "net")
    with pytest.raises(
        ModelError, match=r"^shapes of mine must be those of net: a must be \(1, 2\), got \(2, 1\); b must be \(3,\), got \(\)$"
    ):
        check_layout({"a": (2, 1), "b": (), "c": (4,)}, expected, "mine", "net")


def test_fill_converts_and_copies():
    network = nn.BatchNorm2d(2)
    fill(network, {key: (value + 2).half() for key, value in network.state_dict().items()})
    assert network.running_mean.dtype == torch.float32
    assert network.running_var.tolist() == [3, 3]
    assert network.num_batches_tracked.item() == 2
