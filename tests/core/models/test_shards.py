"""Weights in several files: an index names files in its own folder only, and all together are limited as one file is."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from core import untrusted
from core.errors import ModelError
from core.models import registry
from core.models.full_precision import load_model
from core.models.importing import import_checkpoint, notes_of
from core.models.registry import MODELS, GivenSpec, check_size
from core.models.shards import is_index, shards_of, total_size
from core.models.user_files import import_network

ARCHITECTURE = "pytorchcv:resnet20_cifar10"
NAME = "model.safetensors.index.json"
WEIGHTS = load_file(MODELS["resnet20_cifar10"][0])
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def write_shards(folder: Path, parts: int = 2, prefix: str = "") -> Path:
    """The embedded network in shards; returns the index."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {f"{prefix}{name}": f"model-{i % parts + 1:05}-of-{parts:05}.safetensors" for i, name in enumerate(WEIGHTS)}
    for file in sorted(set(names.values())):
        save_file({key: WEIGHTS[key[len(prefix) :]] for key, value in names.items() if value == file}, folder / file)
    return write_index(folder, names)


def write_index(folder: Path, names: object) -> Path:
    index = folder / NAME
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": names}), encoding="utf-8")
    return index


def refused(index: Path) -> str:
    with pytest.raises(ModelError) as caught:
        import_checkpoint(index, ARCHITECTURE, out_folder=index.parent / "networks")
    assert "\n" not in str(caught.value)
    assert str(index) in str(caught.value)
    return str(caught.value)


def test_shards_are_read_as_one_file(tmp_path):
    index = write_shards(tmp_path / "given", 3, prefix="module.")
    path = import_checkpoint(index, ARCHITECTURE, out_folder=tmp_path / "networks")
    save_file({f"module.{key}": value for key, value in WEIGHTS.items()}, tmp_path / "model.safetensors")
    whole = import_checkpoint(tmp_path / "model.safetensors", ARCHITECTURE, out_folder=tmp_path / "networks")
    ours, expected = (load_model(str(one), "cpu") for one in (path, whole))
    assert all(torch.equal(value, expected.network.state_dict()[key]) for key, value in ours.network.state_dict().items())
    assert ours.spec.name == expected.spec.name == "model"
    assert NAME in json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["label"]


def test_shards_of_torch_save_are_read_and_converted(tmp_path):
    half = {key: value.half() if value.is_floating_point() else value for key, value in WEIGHTS.items()}
    torch.save(half, tmp_path / "pytorch_model-1.bin")
    (tmp_path / "pytorch_model.bin.index.json").write_text(
        json.dumps({"weight_map": dict.fromkeys(half, "pytorch_model-1.bin")}), encoding="utf-8"
    )
    path = import_checkpoint(tmp_path / "pytorch_model.bin.index.json", ARCHITECTURE, out_folder=tmp_path / "networks")
    assert notes_of(str(path)) == ["converted float16 to float32"]


@pytest.mark.slow
def test_shards_are_read_in_a_process_of_their_own_with_a_limit_for_all_of_them(tmp_path, monkeypatch):
    index = write_shards(tmp_path / "given")
    asked = []
    answer = untrusted._answer
    monkeypatch.setattr(untrusted, "_answer", lambda request, timeout: asked.append(request) or answer(request, timeout))
    path = import_network(index, ARCHITECTURE, out_folder=tmp_path / "networks", given=GivenSpec())
    assert load_model(str(path), "cpu").spec.name == "model"
    together = sum((index.parent / name).stat().st_size for name in SHARDS)
    assert [request["memory"] for request in asked] == [untrusted.MEMORY_FACTOR * together + untrusted.MEMORY_BYTES]


@pytest.mark.parametrize(
    "name",
    ["../secret.safetensors", "/etc/passwd", "..", ".", "", "a/b.safetensors", "a\\b.safetensors", "C:b.safetensors", ".hidden", "a\0b", 7],
)
def test_shard_must_be_a_plain_name(tmp_path, name):
    save_file(WEIGHTS, tmp_path / "secret.safetensors")
    (tmp_path / "given").mkdir()
    index = write_index(tmp_path / "given", {"a": SHARDS[0]})
    save_file(WEIGHTS, index.parent / SHARDS[0])
    names = dict.fromkeys(WEIGHTS, SHARDS[0]) | {"output.bias": name}
    assert "must be plain names of files in its folder, got" in refused(write_index(index.parent, names))


def test_link_out_of_the_folder_is_refused(tmp_path):
    index = write_shards(tmp_path / "given")
    (index.parent / SHARDS[1]).rename(tmp_path / "elsewhere")
    (index.parent / SHARDS[1]).symlink_to(tmp_path / "elsewhere")
    assert "is a link to another folder" in refused(index)
    (index.parent / SHARDS[1]).unlink()
    assert "it does not exist" in refused(index)
    os.mkfifo(index.parent / SHARDS[1])
    assert "a named pipe" in refused(index)


def test_cache_of_the_hub_is_read(tmp_path):
    """Its snapshots have links to files of one other folder, the index included."""
    index = write_shards(tmp_path / "blobs")
    (tmp_path / "snapshots" / "1").mkdir(parents=True)
    for number, name in enumerate((NAME, *SHARDS)):
        (tmp_path / "blobs" / name).rename(tmp_path / "blobs" / f"{number}")
        (tmp_path / "snapshots" / "1" / name).symlink_to(Path("..", "..", "blobs", f"{number}"))
    index = tmp_path / "snapshots" / "1" / NAME
    assert load_model(str(import_checkpoint(index, ARCHITECTURE, out_folder=tmp_path / "networks")), "cpu").spec.name == "model"


def test_sizes_are_added(tmp_path, monkeypatch):
    index = write_shards(tmp_path)
    together = sum((tmp_path / name).stat().st_size for name in SHARDS)
    assert total_size(index, "x") == together
    assert total_size(tmp_path / SHARDS[0], "x") < together
    monkeypatch.setattr(registry, "NETWORK_BYTES", together)
    check_size(index, str(index))
    monkeypatch.setattr(registry, "NETWORK_BYTES", together - 1)
    assert f"must be at most {together - 1:,} bytes, got {together:,}" in refused(index)


def test_shard_without_a_tensor_of_its_own_is_refused(tmp_path):
    index = write_shards(tmp_path)
    names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    assert f"{SHARDS[0]} must have the tensors" in refused(write_index(tmp_path, {**names, "more.weight": SHARDS[0]}))


def test_shard_that_is_no_file_of_weights_is_refused(tmp_path):
    index = write_shards(tmp_path)
    (tmp_path / SHARDS[1]).write_bytes(b"\x89HDF\r\n\x1a\n and more")
    with pytest.raises(ModelError, match=f"{SHARDS[1]} must be a .safetensors file.*a Keras file"):
        import_checkpoint(index, ARCHITECTURE, out_folder=tmp_path / "networks")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": {}}}', '{"weight_map": {}}', "[" * 100_000])
def test_index_that_names_no_shards_is_refused(tmp_path, text):
    (tmp_path / NAME).write_text(text, encoding="utf-8")
    with pytest.raises(ModelError, match="must"):
        shards_of(tmp_path / NAME, NAME)


def test_index_is_known_by_its_name(tmp_path):
    """So that an upload, which is stored under another name, cannot name the files of others."""
    assert is_index(Path("a", NAME))
    index = write_shards(tmp_path)
    index.rename(tmp_path / ".upload.safetensors")
    with pytest.raises(ModelError, match="is read with them by --weights of the command line, .* merge them into one .safetensors file"):
        import_checkpoint(tmp_path / ".upload.safetensors", ARCHITECTURE, out_folder=tmp_path / "networks", name=NAME)
