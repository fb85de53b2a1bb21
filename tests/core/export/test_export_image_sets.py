"""Exported sets: one function reads all three formats bit for bit, and their manifests are correct."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from core.config import IMAGE_FORMATS, RunConfig
from core.data.image_sets import ImageSet, load_image_set
from core.data.shards import SHARDS, about_shards, shard_name, write_shard
from core.errors import ConfigError, DataError, UnknownNameError
from core.export.image_sets import export_images, image_target
from core.layout import USER_IMAGES
from core.models.identity import weights_hash
from core.pipeline import given_images

pytestmark = pytest.mark.usefixtures("in_this_process")
DIVERSITY = {"encoder": "embedded", "encoder_trained_on": "captions", "images": 64, "mean_similarity": 0.3, "within_class_similarity": None}
FORMATS = pytest.mark.parametrize("format", IMAGE_FORMATS)


def target(folder: Path, format: str) -> Path:
    return folder / ("set.npz" if format == "npz" else "set")


@pytest.fixture
def generated(small_images) -> ImageSet:
    """An image set with the manifest of a generation."""
    return replace(
        small_images, manifest={"config": {"seed": 7, "epsilon": 0.1}, "changes": [], "summary": {"images": 64}, "model": "small"}
    )


def content_of(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else sorted(one for one in path.rglob("*") if one.is_file())
    return {str(one.relative_to(path.parent)): one.read_bytes() for one in files}


@FORMATS
def test_load_image_set_reads_all_formats(tmp_path, small, generated, format):
    out = target(tmp_path / "deeper", format)
    written = export_images(generated, small, format, out)
    back = load_image_set(out, small.spec)
    assert torch.equal(back.images, generated.images)
    assert torch.equal(back.labels, generated.labels)
    assert (back.images.dtype, back.labels.dtype) == (torch.uint8, torch.int64)
    assert written["images"] == 64
    assert written["bytes"] == sum(map(len, content_of(out).values()))
    assert written["out"] == str(out)


@FORMATS
def test_manifest(tmp_path, small, generated, format):
    export_images(generated, small, format, target(tmp_path, format), DIVERSITY)
    manifest = load_image_set(target(tmp_path, format)).manifest
    for key in ("config", "changes", "summary", "model"):
        assert manifest[key] == generated.manifest[key]
    assert manifest["network"]["name"] == "small"
    assert manifest["network"]["weights_sha256"] == weights_hash(small.network)
    assert manifest["normalisation"] == {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    assert manifest["classes"] == ["a", "b", "c", "d"]
    assert (manifest["image_size"], manifest["images"], manifest["format"]) == (8, 64, format)
    assert manifest["diversity"] == DIVERSITY
    if format != "npz":
        assert json.loads((tmp_path / "set" / "manifest.json").read_text(encoding="utf-8")) == manifest


@FORMATS
def test_same_set_same_bytes(tmp_path, small, generated, format):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        export_images(generated, small, format, target(tmp_path / name, format))
    first, second = (content_of(target(tmp_path / name, format)) for name in ("a", "b"))
    assert first == second
    assert first


@pytest.mark.parametrize("last", IMAGE_FORMATS)
@pytest.mark.parametrize("first", IMAGE_FORMATS)
def test_conversion_from_one_format_to_another(tmp_path, small, generated, first, last):
    """The result equals a direct export."""
    export_images(generated, small, first, target(tmp_path / "1", first))
    export_images(load_image_set(target(tmp_path / "1", first)), small, last, target(tmp_path / "2", last))
    export_images(generated, small, last, target(tmp_path / "3", last))
    assert content_of(target(tmp_path / "2", last)).keys() == content_of(target(tmp_path / "3", last)).keys()
    back = load_image_set(target(tmp_path / "2", last))
    assert torch.equal(back.images, generated.images)
    assert back.manifest == load_image_set(target(tmp_path / "3", last)).manifest


@FORMATS
def test_a_set_in_shards_is_exported_as_the_set_in_memory(tmp_path, small, generated, format):
    folder, files = tmp_path / "shards", []
    folder.mkdir()
    for first in range(0, 64, 24):
        files.append(folder / shard_name(first // 24))
        write_shard(files[-1], first, zip(generated.images[first : first + 24].numpy(), generated.labels[first : first + 24].tolist()))
    manifest = {**generated.manifest, SHARDS: about_shards(files, [24, 24, 16])}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    export_images(load_image_set(folder, small.spec), small, format, target(tmp_path / "1", format))
    export_images(generated, small, format, target(tmp_path / "2", format))
    ours, theirs = (content_of(target(tmp_path / name, format)) for name in ("1", "2"))
    assert ours == theirs
    assert torch.equal(load_image_set(target(tmp_path / "1", format)).images, generated.images)


def test_npz_has_normalized_images(tmp_path, small, generated):
    export_images(generated, small, "npz", tmp_path / "set.npz")
    with np.load(tmp_path / "set.npz", allow_pickle=False) as archive:
        expected = (generated.images.numpy().astype(np.float64) / 255 - 0.5) / 0.25
        np.testing.assert_allclose(archive["images"], expected, atol=1e-6)
        assert torch.equal(small.network(torch.from_numpy(archive["images"])), small.network(small.normalize(generated.images)))
        assert archive["classes"][archive["labels"]].tolist() == list("abcd") * 16
        assert json.loads(archive["manifest"].item())["network"]["name"] == "small"


def test_safetensors_is_the_format_of_generate(tmp_path, small, generated):
    export_images(generated, small, "safetensors", tmp_path / "set")
    tensors = load_file(tmp_path / "set" / "images.safetensors")
    assert sorted(os.listdir(tmp_path / "set")) == ["images.safetensors", "manifest.json"]
    assert torch.equal(tensors["images"], generated.images)


@FORMATS
def test_classes_with_hostile_names(tmp_path, small, generated, format):
    small.spec = replace(small.spec, classes=("../x", "/etc", "great white shark, white shark", ""))
    export_images(generated, small, format, target(tmp_path, format))
    back = load_image_set(target(tmp_path, format), small.spec)
    assert torch.equal(back.labels, generated.labels)
    assert back.manifest["classes"] == list(small.spec.classes)
    assert len(os.listdir(tmp_path)) == 1


@FORMATS
@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_existing_files_are_kept(tmp_path, small, generated, format, kind):
    out = target(tmp_path, format)
    if kind == "file":
        out.write_text("mine", encoding="utf-8")
    elif kind == "folder":
        out.mkdir()
        (out / "mine").write_text("mine", encoding="utf-8")
    else:
        out.symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match="(exists already|already exists)"):
        export_images(generated, small, format, out)
    assert [path.read_text(encoding="utf-8") for path in tmp_path.rglob("*") if path.is_file()] == ["mine"] * (kind != "link")
    assert os.listdir(tmp_path) == [out.name]


@FORMATS
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.ENOSPC, "No space left on device")])
def test_interrupted_write_leaves_nothing(tmp_path, small, generated, format, error, monkeypatch):
    written = []

    def sync(path):
        written.append(path)
        raise error

    # the last operation before the file is renamed
    monkeypatch.setattr("core.files.sync", sync)
    expected = KeyboardInterrupt if error is KeyboardInterrupt else DataError
    with pytest.raises(
        expected,
        match=None if error is KeyboardInterrupt else "^out must be writable .*No space left",
    ):
        export_images(generated, small, format, target(tmp_path / "deeper", format))
    assert written
    assert os.listdir(tmp_path) == []


def test_ending_of_the_archive_may_be_missing(tmp_path, small, generated):
    for name, written in (("a", "a.npz"), ("b.NPZ", "b.NPZ")):
        assert export_images(generated, small, "npz", tmp_path / name)["out"] == str(tmp_path / written)
        assert torch.equal(load_image_set(tmp_path / written).images, generated.images)
    assert image_target("png", tmp_path / "c") == tmp_path / "c"


@pytest.mark.parametrize(
    ("format", "name", "error", "words"),
    [
        ("zip", "set", UnknownNameError, "unknown format of images 'zip': must be one of png, safetensors, npz"),
        ("npz", "set.npy", ConfigError, "^out must end in .npz, got "),
        ("npz", "file/set.npz", DataError, "must be in a writable folder"),
        ("png", "file/set", DataError, "must be in a writable folder"),
        ("png", "x" * 300, DataError, "too long"),
    ],
)
def test_invalid_target_is_refused(tmp_path, small, generated, format, name, error, words):
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    for attempt in (lambda: image_target(format, tmp_path / name), lambda: export_images(generated, small, format, tmp_path / name)):
        with pytest.raises(error, match=words):
            attempt()
    assert os.listdir(tmp_path) == ["file"]


@FORMATS
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels": torch.arange(64)}, "labels must be 0 to 3"),
        ({"images": torch.zeros(64, 3, 9, 9, dtype=torch.uint8)}, "9 x 9"),
    ],
)
def test_set_that_does_not_fit_the_network_is_refused(tmp_path, small, generated, format, change, words):
    with pytest.raises(DataError, match=words):
        export_images(replace(generated, **change), small, format, target(tmp_path, format))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("format", ["png", "npz"])
def test_run_reads_an_exported_set_as_one_set(tmp_path, small, generated, format):
    """Even if a class, and therefore a folder, has the name of a method."""
    small.spec = replace(small.spec, classes=(USER_IMAGES, "adam", "c", "d"))
    out = target(tmp_path, format)
    export_images(generated, small, format, out)
    assert given_images(RunConfig(images_from=str(out), methods=(USER_IMAGES, "adam"))) == {USER_IMAGES: out}
