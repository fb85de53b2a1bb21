"""Image sets on disk: round trips, and broken sets are refused in one sentence."""

import json
import os
import stat
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision.transforms.v2.functional import to_pil_image

from core.config import GenerationConfig, MachineConfig
from core.data.image_sets import ImageSet, check_images, check_origin, load_image_set, save_image_set, write_image_set
from core.errors import DataError
from core.files import atomic_folder, check_free
from core.generation.loop import synthesize
from core.layout import IMAGES_FILE, MANIFEST
from core.models.full_precision import FullPrecisionModel
from core.models.registry import ModelSpec


def some_images(count=6, size=8) -> ImageSet:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
    return ImageSet(images, torch.arange(count) % 4, {"summary": {"images": count}, "name": "ε"})


def refused(path) -> str:
    with pytest.raises(DataError) as error:
        load_image_set(path)
    message = str(error.value)
    assert "\n" not in message
    assert "must" in message
    return message


def test_round_trip(tmp_path):
    written = some_images()
    save_image_set(written, tmp_path)
    for path in (tmp_path, str(tmp_path)):
        back = load_image_set(path)
        assert torch.equal(back.images, written.images)
        assert torch.equal(back.labels, written.labels)
        assert back.labels.dtype == torch.int64
        assert back.manifest == written.manifest
        assert len(back) == 6
    assert sorted(os.listdir(tmp_path)) == ["images.safetensors", "manifest.json"]


def test_channels_last_images_are_preserved(tmp_path):
    images = some_images().images
    save_image_set(ImageSet(images.contiguous(memory_format=torch.channels_last), torch.zeros(6, dtype=torch.long)), tmp_path)
    assert torch.equal(load_image_set(tmp_path).images, images)


def test_missing_folder_is_refused(tmp_path):
    assert "nowhere" in refused(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x", encoding="utf-8")
    assert "file" in refused(tmp_path / "file")


def test_empty_folder_is_refused(tmp_path):
    assert str(tmp_path) in refused(tmp_path)


@pytest.mark.parametrize("manifest", ["{ broken", "", b"\xff\xfe\x00", "null", "[]", "3"])
def test_broken_manifest_is_refused(tmp_path, manifest):
    save_image_set(some_images(), tmp_path)
    (tmp_path / "manifest.json").write_bytes(manifest if isinstance(manifest, bytes) else manifest.encode())
    assert str(tmp_path) in refused(tmp_path)


@pytest.mark.parametrize("content", [None, b"", b"garbage that is no safetensors file", b"\xff" * 64])
def test_broken_images_are_refused(tmp_path, content):
    save_image_set(some_images(), tmp_path)
    (tmp_path / "images.safetensors").unlink()
    if content is not None:
        (tmp_path / "images.safetensors").write_bytes(content)
    assert str(tmp_path) in refused(tmp_path)


@pytest.mark.parametrize(
    "tensors",
    [
        {"images": torch.zeros(2, 3, 8, 8, dtype=torch.uint8)},
        {"labels": torch.zeros(2, dtype=torch.long)},
        {"images": torch.zeros(2, 3, 8, 8), "labels": torch.zeros(2, dtype=torch.long)},
        {"images": torch.zeros(2, 5, 8, 8, dtype=torch.uint8), "labels": torch.zeros(2, dtype=torch.long)},
        {"images": torch.zeros(2, 3, 8, dtype=torch.uint8), "labels": torch.zeros(2, dtype=torch.long)},
        {"images": torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "labels": torch.zeros(3, dtype=torch.long)},
    ],
    ids=["no labels", "no images", "float", "five channels", "three dimensions", "more labels"],
)
def test_wrong_tensors_are_refused(tmp_path, tensors):
    save_image_set(some_images(), tmp_path)
    save_file(tensors, tmp_path / "images.safetensors")
    assert str(tmp_path) in refused(tmp_path)


def test_set_without_images_is_refused(tmp_path):
    save_image_set(ImageSet(torch.zeros(0, 3, 8, 8, dtype=torch.uint8), torch.zeros(0, dtype=torch.long)), tmp_path)
    refused(tmp_path)


def test_folder_of_real_images(tmp_path):
    for name, value in (("bee", 7), ("ant", 200)):
        (tmp_path / name).mkdir()
        Image.new("RGB", (10, 6), (value, 0, 1)).save(tmp_path / name / "0.png")
    images = load_image_set(tmp_path)
    assert images.images.shape == (2, 3, 6, 10)
    assert images.images.dtype == torch.uint8
    assert images.images[:, :, 0, 0].tolist() == [[200, 0, 1], [7, 0, 1]]
    assert images.labels.tolist() == [0, 1]


def test_real_images_of_any_depth_and_few_damaged_ones(tmp_path):
    for number in range(100):
        (tmp_path / "train" / "ant").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (number, 0, 1)).save(tmp_path / "train" / "ant" / f"{number:03}.png")
    (tmp_path / "val" / "ant").mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(tmp_path / "val" / "ant" / "0.png")
    (tmp_path / "train" / "ant" / "050.png").write_bytes(b"no image")
    Image.fromarray(np.full((4, 4), 200 * 257, dtype=np.uint16)).save(tmp_path / "train" / "ant" / "060.png")
    Image.fromarray(np.full((4, 4), 100 / 255, dtype=np.float32)).save(tmp_path / "train" / "ant" / "070.tif")
    images = load_image_set(tmp_path)
    assert images.images[:, 0, 0, 0].tolist() == [*range(50), *range(51, 60), 200, *range(61, 71), 100, *range(71, 100)]
    assert images.manifest == {"source": str(tmp_path), "images": 100}
    assert images.notes == [
        "Images of 32 bits are scaled by their largest values: '070.tif'.",
        f"1 of 101 images of {tmp_path / 'train'} cannot be read and are skipped: '050.png'.",
    ]
    with pytest.raises(DataError, match=r"050\.png must be an image"):
        load_image_set(tmp_path, strict=True)


def test_images_without_labels_are_classes_of_their_own_unless_a_network_needs_labels(tmp_path):
    for number in range(3):
        Image.new("L", (4, 4), number).save(tmp_path / f"{number}.gif")
    assert load_image_set(tmp_path).labels.tolist() == [0, 1, 2]
    with pytest.raises(DataError, match="labels are needed here"):
        load_image_set(tmp_path, ModelSpec("pets", "resnet20_cifar10", ("ant", "bee"), 4, (0.5,) * 3, (0.25,) * 3, "nothing"))


def test_images_of_two_sizes_are_refused(tmp_path):
    (tmp_path / "ant").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "ant" / "0.png")
    Image.new("RGB", (8, 9)).save(tmp_path / "ant" / "1.png")
    assert "2 sizes" in refused(tmp_path)


def test_file_that_is_not_an_image_is_refused(tmp_path):
    (tmp_path / "ant").mkdir()
    (tmp_path / "ant" / "0.png").write_bytes(b"no image at all")
    assert "0.png" in refused(tmp_path)


def test_folder_is_renamed_when_it_is_complete(tmp_path):
    out = tmp_path / "deeper" / "set"
    with atomic_folder(out) as folder:
        assert folder.parent == out.parent
        assert not out.exists()
        save_image_set(some_images(), folder)
    assert os.listdir(out.parent) == ["set"]
    assert len(load_image_set(out)) == 6


def test_folder_has_default_permissions(tmp_path):
    with atomic_folder(tmp_path / "set"):
        pass
    (tmp_path / "plain").mkdir()
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("set", "plain")]
    assert modes[0] == modes[1]


def test_empty_folder_is_accepted(tmp_path):
    (tmp_path / "set").mkdir()
    with atomic_folder(tmp_path / "set") as folder:
        (folder / "a").write_text("1", encoding="utf-8")
    assert os.listdir(tmp_path / "set") == ["a"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_exception_leaves_no_files(tmp_path, error):
    def fails_half_way():
        with atomic_folder(tmp_path / "set") as folder:
            (folder / "half").write_text("1", encoding="utf-8")
            raise error

    with pytest.raises(error):
        fails_half_way()
    assert os.listdir(tmp_path) == []


def test_exception_leaves_no_parent_folders(tmp_path):
    with pytest.raises(ValueError), atomic_folder(tmp_path / "deeper" / "still" / "set"):
        raise ValueError
    assert os.listdir(tmp_path) == []


def test_existing_files_are_never_overwritten(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("1", encoding="utf-8")
    (tmp_path / "file").write_text("2", encoding="utf-8")
    for name in ("full", "file"):
        with pytest.raises(DataError, match=f"must be new or an empty folder, .*{name}.*already exists"):
            check_free(tmp_path / name)
        with pytest.raises(DataError, match="already exists"), atomic_folder(tmp_path / name):
            pytest.fail("the block must not begin")
    assert (tmp_path / "full" / "mine").read_text(encoding="utf-8") == "1"
    assert sorted(os.listdir(tmp_path)) == ["file", "full"]
    check_free(tmp_path / "new")


def test_path_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("2", encoding="utf-8")
    with pytest.raises(DataError, match="file"):
        check_free(tmp_path / "file" / "set")


def test_manifest_is_written_last(tmp_path):
    """A manifest marks a complete set: a write that fails halfway leaves no files."""

    def fails():
        yield some_images().images[:2]
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_image_set(tmp_path, some_images().labels, (3, 8, 8), fails(), {})
    assert list(tmp_path.iterdir()) == []


def test_manifest_is_plain_json(tmp_path):
    save_image_set(some_images(), tmp_path)
    assert json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))["name"] == "ε"


def test_files_have_default_permissions(tmp_path):
    save_image_set(some_images(), tmp_path)
    (tmp_path / "plain").write_text("1", encoding="utf-8")
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_current_folder_is_refused(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    for name in (".", "", str(tmp_path / "empty"), "../empty"):
        with pytest.raises(DataError, match="must be new or an empty folder, .* is the current folder"):
            check_free(Path(name))


def test_existing_parent_folders_are_kept(tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError), atomic_folder(tmp_path / "mine" / "new" / "set"):
        raise ValueError
    assert os.listdir(tmp_path) == ["mine"]
    assert os.listdir(tmp_path / "mine") == []


def test_labels_of_real_images_are_class_indices_of_the_network(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "0.png")
    spec = ModelSpec("pets", "any", ("dog", "mouse", "cat"), 8, (0.5,) * 3, (0.5,) * 3, "")
    assert load_image_set(tmp_path).labels.tolist() == [0, 1]
    assert load_image_set(tmp_path, spec).labels.tolist() == [2, 0]
    with pytest.raises(DataError, match="folders of .* must have the names of the classes .*'cat'"):
        load_image_set(tmp_path, ModelSpec("other", "any", ("a", "b", "c"), 8, (0.5,) * 3, (0.5,) * 3, ""))


def test_set_written_in_parts_has_the_bytes_of_safetensors(tmp_path, small_images):
    (tmp_path / "set").mkdir()
    parts = small_images.images.split(5)
    write_image_set(tmp_path / "set", small_images.labels, (3, 8, 8), parts, {"made": "here"})
    save_file({"images": small_images.images, "labels": small_images.labels}, tmp_path / "expected.safetensors")
    assert (tmp_path / "set" / "images.safetensors").read_bytes() == (tmp_path / "expected.safetensors").read_bytes()
    loaded = load_image_set(tmp_path / "set")
    assert torch.equal(loaded.images, small_images.images)
    assert torch.equal(loaded.labels, small_images.labels)
    assert loaded.manifest == {"made": "here"}


def test_parts_are_consumed_one_at_a_time(tmp_path):
    """Only the last part is in memory while the next is made, so that a set may be larger than memory."""
    alive = []

    def parts():
        for value in range(3):
            assert sum(reference() is not None for reference in alive) <= 1
            part = torch.full((2, 3, 4, 4), value, dtype=torch.uint8)
            alive.append(weakref.ref(part))
            yield part
            part = None

    write_image_set(tmp_path, torch.arange(6), (3, 4, 4), parts(), {})
    assert load_image_set(tmp_path).images[:, 0, 0, 0].tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("name", [IMAGES_FILE, MANIFEST])
def test_pipe_in_the_place_of_a_file_is_refused_at_once(tmp_path, name):
    save_image_set(ImageSet(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.arange(2)), tmp_path)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match="named pipe" if name == IMAGES_FILE else "must contain images"):
        load_image_set(tmp_path)


def test_endless_manifest_is_refused(tmp_path, monkeypatch):
    save_image_set(ImageSet(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.arange(2), {"a": "b" * 100}), tmp_path)
    assert load_image_set(tmp_path).manifest == {"a": "b" * 100}
    monkeypatch.setattr("core.data.image_sets.MANIFEST_BYTES", 100)
    with pytest.raises(DataError, match="it has more than 100 bytes"):
        load_image_set(tmp_path)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_images_of_other_channels_than_the_network_are_refused(small, channels):
    images = ImageSet(torch.zeros(4, channels, 8, 8, dtype=torch.uint8), torch.arange(4))
    with pytest.raises(DataError, match=f"^images must be RGB for small, got {'grey' if channels == 1 else f'{channels} channels'}$"):
        check_images(small, images)


OTHER_WEIGHTS = "0" * 64


@pytest.mark.parametrize(
    ("manifest", "got"),
    [
        ({"model": "resnet56"}, "'resnet56'"),  # of an earlier version
        ({"network": {"name": "resnet56", "weights_sha256": OTHER_WEIGHTS}, "model": "small"}, "'resnet56'"),
        ({"network": {"name": "small", "weights_sha256": OTHER_WEIGHTS}}, "other weights of the same name"),
    ],
)
def test_images_made_from_another_network_are_refused(small, small_images, manifest, got):
    with pytest.raises(DataError, match=f"^images must be made from the network to quantize, 'small', got images made from {got}$"):
        check_origin(small, replace(small_images, manifest=manifest))


def test_images_of_the_same_weights_or_of_unknown_origin_pass(small, small_images):
    config = GenerationConfig(images=2, iterations=2, batch_size=2, snapshots=1)
    made, _ = synthesize(
        FullPrecisionModel(small.network, replace(small.spec, name="renamed")), config, machine=MachineConfig(device="cpu")
    )
    check_origin(small, made)
    for manifest in ({}, {"source": "pictures"}, {"model": "small"}, {"model": 5}, {"network": "resnet56"}, {"network": {"name": ["x"]}}):
        check_origin(small, replace(small_images, manifest=manifest))
    small.network.bn1.running_var[0] += 1e-6
    with pytest.raises(DataError, match="got images made from 'renamed'$"):
        check_origin(small, made)


def test_images_that_are_turned_are_refused(small):
    wide = FullPrecisionModel(small.network, replace(small.spec, image_size=(8, 12)))
    check_images(wide, ImageSet(torch.zeros(4, 3, 8, 12, dtype=torch.uint8), torch.arange(4)))
    with pytest.raises(DataError, match="^images must be 8 x 12 pixels for small, got 12 x 8$"):
        check_images(wide, ImageSet(torch.zeros(4, 3, 12, 8, dtype=torch.uint8), torch.arange(4)))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_real_images_and_stored_sets_have_the_channels_of_the_network(tmp_path, small, channels):
    spec = replace(small.spec, image_size=(8, 12), mean=(0.5,) * channels, std=(0.25,) * channels)
    pixels = torch.randint(0, 256, (4, channels, 8, 12), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for name, image in zip(spec.classes, pixels):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        to_pil_image(image).save(tmp_path / "pictures" / name / "0.png")
    found = load_image_set(tmp_path / "pictures", spec)
    assert torch.equal(found.images, pixels)
    (tmp_path / "set").mkdir()
    save_image_set(found, tmp_path / "set")
    assert torch.equal(load_image_set(tmp_path / "set").images, pixels)
