"""Evaluation sets: the embedded images, folders in every layout, and resizing for the network."""

import gc
import io
import json
import math
import os
import tempfile
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torch.utils.data import DataLoader
from torchvision.transforms import InterpolationMode
from torchvision.transforms._presets import ImageClassification
from torchvision.transforms.functional import center_crop, pil_to_tensor, to_pil_image

from core.data.labeled import EMBEDDED_SHEET, UNREADABLE, EvaluationSet, embedded_images, load_evaluation_set, open_training_set
from core.errors import DataError
from core.models.registry import MODELS, ModelSpec
from core.threads import cpu_threads

CIFAR10_SPEC = MODELS["resnet20_cifar10"][1]
PETS = ModelSpec("pets", "resnet20_cifar10", ("ant", "bee", "cat"), 8, (0.5,) * 3, (0.25,) * 3, "nothing")


def folder_of(root, classes, per_class=1, size=(8, 8), mode="RGB"):
    """Writes one folder per class; all pixels of image i of class c are 20 c + i."""
    for index, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            value = 20 * index + i
            Image.new(mode, size, (value,) * 3 if mode == "RGB" else value).save(root / name / f"{i}.png")
    return root


def one_sentence(error) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def test_embedded_images_are_the_first_cifar10_test_images():
    images, labels = embedded_images()
    assert images.shape == (2000, 3, 32, 32)
    assert images.dtype == torch.uint8
    # as in the original test_batch: a cat whose top left pixel is (158, 112, 49), then two ships, an airplane and a frog
    assert images[0, :, 0, 0].tolist() == [158, 112, 49]
    assert images[0, 0, 0, :4].tolist() == [158, 159, 165, 166]
    assert labels[:10] == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]
    assert set(labels) == set(range(10))
    counts = Counter(labels)
    assert sum(counts.values()) == 2000
    # balanced within four standard deviations of a count among 2,000
    assert all(abs(count - 200) < 4 * math.sqrt(2000 * 0.1 * 0.9) for count in counts.values())


def test_embedded_images_are_the_tiles_of_the_sheet():
    images, _ = embedded_images()
    sheet = np.asarray(Image.open(EMBEDDED_SHEET).convert("RGB"))
    for index in (0, 1, 49, 50, 777, 1999):
        row, column = divmod(index, 50)
        tile = sheet[32 * row : 32 * row + 32, 32 * column : 32 * column + 32]
        assert np.array_equal(images[index].permute(1, 2, 0).numpy(), tile)


def test_embedded_evaluation_set():
    dataset = load_evaluation_set("embedded", CIFAR10_SPEC)
    assert len(dataset) == 2000
    image, label = dataset[0]
    assert image.shape == (3, 32, 32)
    assert int(label) == 3
    assert "2,000 CIFAR-10 test images" in dataset.description


def test_embedded_images_have_the_image_size_of_the_network():
    image, _ = load_evaluation_set("embedded", replace(CIFAR10_SPEC, image_size=16))[0]
    assert image.shape == (3, 16, 16)


@pytest.mark.parametrize("source", ["embedded", "cifar10", "cifar100"])
@pytest.mark.parametrize("classes", [PETS.classes, tuple("abcdefghij"), CIFAR10_SPEC.classes[:9]])
def test_named_sets_are_refused_for_other_classes(source, classes):
    with pytest.raises(DataError, match=f"data must have the classes of pets, '{source}' has others; use a folder") as error:
        load_evaluation_set(source, replace(PETS, classes=classes))
    one_sentence(error)


def test_embedded_labels_follow_the_class_order_of_the_network():
    backwards = replace(CIFAR10_SPEC, classes=tuple(name.upper() for name in reversed(CIFAR10_SPEC.classes)))
    assert load_evaluation_set("embedded", backwards).labels.tolist() == [9 - label for label in embedded_images()[1]]
    nameless = replace(CIFAR10_SPEC, classes=tuple(map(str, range(10))))
    assert load_evaluation_set("embedded", nameless).labels.tolist() == embedded_images()[1]


def test_folders_are_mapped_by_name(tmp_path):
    # the network's classes are not in alphabetical order, and one has no folder
    spec = replace(PETS, classes=("cat", "zebra", "ant"))
    dataset = load_evaluation_set(str(folder_of(tmp_path, ["ant", "cat"], per_class=2)), spec)
    assert dataset.labels.tolist() == [2, 2, 0, 0]
    assert [int(dataset[i][0][0, 0, 0]) for i in range(4)] == [0, 1, 20, 21]
    assert "4 images" in dataset.description


def test_folders_are_mapped_in_order_if_their_count_matches(tmp_path):
    dataset = load_evaluation_set(str(folder_of(tmp_path, ["0", "1", "2"])), PETS)
    assert dataset.labels.tolist() == [0, 1, 2]


def test_folders_that_match_neither_way_are_refused(tmp_path):
    with pytest.raises(DataError, match="ant, bee, cat.*exactly 3.*got 2 folders with 'wolf'") as error:
        load_evaluation_set(str(folder_of(tmp_path, ["cat", "wolf"])), PETS)
    one_sentence(error)


def test_folder_images_are_resized_and_cropped_to_the_network(tmp_path):
    root = folder_of(tmp_path, ["ant"], size=(40, 20), mode="L")
    image, label = load_evaluation_set(str(root), PETS)[0]
    assert image.shape == (3, 8, 8)
    assert image.dtype == torch.uint8
    assert int(label) == 0


def test_crop_is_centered(tmp_path):
    (tmp_path / "ant").mkdir()
    wide = np.zeros((8, 24, 3), dtype=np.uint8)
    wide[:, 8:16] = 200
    Image.fromarray(wide).save(tmp_path / "ant" / "0.png")
    image, _ = load_evaluation_set(str(tmp_path), PETS)[0]
    assert bool((image == 200).all())


def test_missing_folder_is_refused(tmp_path):
    for call in (lambda p: load_evaluation_set(str(p), PETS), lambda p: open_training_set(str(p))):
        with pytest.raises(DataError, match="data must be .*nowhere.*does not exist") as error:
            call(tmp_path / "nowhere")
        one_sentence(error)


def test_file_instead_of_a_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(DataError, match="data must be .*a folder.*file"):
        load_evaluation_set(str(tmp_path / "file"), PETS)


@pytest.mark.parametrize("inside", [[], ["cat"]])
def test_folder_without_images_is_refused(tmp_path, inside):
    for name in inside:
        (tmp_path / name).mkdir()
    with pytest.raises(DataError, match="must contain (one folder of )?images") as error:
        load_evaluation_set(str(tmp_path), PETS)
    one_sentence(error)


def test_text_files_are_ignored(tmp_path):
    root = folder_of(tmp_path, ["ant"])
    (root / "ant" / "notes.txt").write_text("no image", encoding="utf-8")
    assert len(load_evaluation_set(str(root), PETS)) == 1


@pytest.mark.parametrize("content", [b"", b"no image at all", b"\x89PNG\r\n\x1a\n"])
def test_file_that_is_not_an_image_is_named_at_once(tmp_path, content):
    root = folder_of(tmp_path, ["ant"])
    (root / "ant" / "a.png").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.png must be an image") as error:
        load_evaluation_set(str(root), PETS)
    one_sentence(error)


def cut_jpeg(path):
    """A file whose header can be read, and no more."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_truncated_image_is_named_when_it_is_read(tmp_path):
    root = folder_of(tmp_path, ["ant"])
    cut_jpeg(root / "ant" / "a.jpg")
    dataset = load_evaluation_set(str(root), PETS)
    with pytest.raises(DataError, match=r"a\.jpg must be an image.*at most 1 % .* got 1 of 2 so far") as error:
        [dataset[i] for i in range(2)]
    one_sentence(error)


def test_few_damaged_images_are_skipped_counted_and_named(tmp_path):
    root = folder_of(tmp_path, ["ant"], per_class=198)
    cut_jpeg(root / "ant" / "a.jpg")
    (root / "ant" / "b.png").write_bytes(b"no image at all")
    dataset = load_evaluation_set(str(root), PETS)
    assert dataset.damage() == [f"1 of 200 images of {root} cannot be read and are skipped: 'b.png'."]
    items = dataset.__getitems__(range(200))
    assert [int(label) for _, label in items].count(UNREADABLE) == 2
    assert dataset.labels.tolist().count(UNREADABLE) == 2
    assert dataset.description == f"198 images of {root}"
    assert dataset.damage() == [f"2 of 200 images of {root} cannot be read and are skipped: 'a.jpg', 'b.png'."]
    with pytest.raises(DataError, match=r"b\.png must be an image"):
        load_evaluation_set(str(root), PETS, strict=True)
    (root / "ant" / "b.png").unlink()
    dataset = load_evaluation_set(str(root), PETS, strict=True)
    with pytest.raises(DataError, match=r"a\.jpg must be an image"):
        dataset.__getitems__(range(199))


@pytest.mark.parametrize("threads", [1, 3])
def test_batches_are_in_order_for_any_number_of_threads(tmp_path, threads):
    dataset = load_evaluation_set(str(folder_of(tmp_path, ["ant", "bee", "cat"], per_class=15)), PETS)
    with cpu_threads(threads):
        batches = list(DataLoader(dataset, batch_size=32))
    assert torch.equal(torch.cat([images for images, _ in batches]), torch.stack([dataset[i][0] for i in range(45)]))
    assert torch.cat([labels for _, labels in batches]).tolist() == [0] * 15 + [1] * 15 + [2] * 15
    (tmp_path / "bee" / "3.png").unlink()
    with pytest.raises(DataError, match=r"3\.png must be an image"), cpu_threads(threads):
        list(DataLoader(dataset, batch_size=32))


def test_unreadable_training_image_is_named(tmp_path):
    root = folder_of(tmp_path, ["ant"], per_class=100)
    cut_jpeg(root / "ant" / "a.jpg")
    dataset, _ = open_training_set(str(root))
    assert len([dataset[i] for i in range(len(dataset))]) == 100
    assert dataset.notes == [f"1 of 101 images of {root} cannot be read and are skipped: 'a.jpg'."]
    with pytest.raises(DataError, match=r"a\.jpg must be an image"):
        open_training_set(str(root), strict=True)
    for number in range(2):
        (root / "ant" / f"{number}.png").unlink()
    with pytest.raises(DataError, match=r"a\.jpg must be an image.* got 1 of 99 so far"):
        open_training_set(str(root))


def test_training_set_has_images_and_class_names(tmp_path):
    dataset, classes = open_training_set(str(folder_of(tmp_path, ["bee", "ant"], per_class=2, mode="L")))
    assert classes == ["ant", "bee"]
    picture, label = dataset[3]
    assert (picture.mode, picture.size, label) == ("RGB", (8, 8), 1)


def test_folders_that_are_only_partly_classes_are_refused(tmp_path):
    """Mapping the three folders to the three classes in order would make cats bees, and cows cats."""
    with pytest.raises(DataError, match="got 3 folders with 'cow'") as error:
        load_evaluation_set(str(folder_of(tmp_path, ["ant", "cat", "cow"])), PETS)
    one_sentence(error)


def test_folders_without_images_change_no_class(tmp_path):
    root = folder_of(tmp_path, ["ant", "bee"])
    (root / "annotations").mkdir()
    dataset = load_evaluation_set(str(root), PETS)
    assert dataset.labels.tolist() == [0, 1]
    assert dataset.notes == [f"Folders of {root} without images are ignored: 'annotations'."]
    # with other names the order decides, in which an empty class has its place
    dataset = load_evaluation_set(str(folder_of(tmp_path / "others", ["a", "c"])), replace(PETS, classes=("x", "y")))
    assert dataset.labels.tolist() == [0, 1]
    (tmp_path / "others" / "b").mkdir()
    assert load_evaluation_set(str(tmp_path / "others"), replace(PETS, classes=("x", "y"))).labels.tolist() == [0, 1]
    dataset = load_evaluation_set(str(tmp_path / "others"), PETS)
    assert dataset.labels.tolist() == [0, 2]
    assert dataset.notes[1:] == [f"Empty folders of {tmp_path / 'others'} count as classes: 'b'."]


def test_classes_numbered_from_1(tmp_path):
    dataset = load_evaluation_set(str(folder_of(tmp_path, ["1", "2", "3"])), PETS)
    assert dataset.labels.tolist() == [0, 1, 2]
    assert dataset.notes == [f"Numbers of the folders of {tmp_path} are taken to begin with 1, which is 'ant'."]


@pytest.mark.parametrize("top", ["", "pets/"])
def test_zip_file_of_a_folder_in_any_layout(tmp_path, top):
    folder_of(tmp_path / "set" / "valid", ["x", "y"], size=(16, 8))
    folder_of(tmp_path / "set" / "train", ["x"])
    with zipfile.ZipFile(tmp_path / "pets.zip", "w") as archive:
        for path in (tmp_path / "set").rglob("*.png"):
            archive.write(path, top + str(path.relative_to(tmp_path / "set")))
        archive.writestr(top + "README.md", "not an image")
        archive.writestr(top + "valid/classes.json", b"\xef\xbb\xbf" + json.dumps({"x": "cat", "y": 0}).encode())
    before = set(Path(tempfile.gettempdir()).iterdir())
    dataset = load_evaluation_set(str(tmp_path / "pets.zip"), PETS)
    assert dataset.labels.tolist() == [2, 0]
    assert dataset.description == f"2 images of {tmp_path / 'pets.zip'}"
    assert [int(pixels[0, 0, 0]) for pixels, _ in dataset.__getitems__([0, 1])] == [0, 20]
    images, classes = open_training_set(str(tmp_path / "pets.zip"))
    assert (classes, images[0][0].size) == (["x"], (8, 8))
    del dataset, images
    gc.collect()
    assert {path for path in set(Path(tempfile.gettempdir()).iterdir()) - before if os.access(path / "pets.zip", os.F_OK)} == set()


def test_images_without_labels_are_resized_and_counted_as_those_with_labels(tmp_path):
    images = folder_of(tmp_path, ["photos"], per_class=3, size=(40, 20)) / "photos"
    with pytest.raises(DataError, match="labels are needed here"):
        open_training_set(str(images))
    dataset = load_evaluation_set(str(images), PETS)
    assert not dataset.labeled
    assert dataset.labels.tolist() == [0, 1, 2]
    assert [(tuple(pixels.shape), int(pixels[0, 0, 0])) for pixels, _ in dataset.__getitems__(range(3))] == [
        ((3, 8, 8), i) for i in range(3)
    ]
    assert dataset.description == f"3 images of {images}"
    assert load_evaluation_set(str(folder_of(tmp_path / "labeled", ["ant"])), PETS).labeled


def zipped(path, entries):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return str(path)


def test_messages_name_the_zip_file_instead_of_where_it_was_unpacked(tmp_path):
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    file = zipped(tmp_path / "pets.zip", {f"top/{name}/1.png": picture.getvalue() for name in "xyz"})
    assert load_evaluation_set(file, PETS).notes == [
        f"Images of {file}/top are used, the only folder of {file} with images.",
        f"Names of the folders of {file}/top are not those of the classes, so they are matched in order: "
        "'x' is 'ant', 'y' is 'bee', 'z' is 'cat' ...",
    ]
    damaged = zipped(tmp_path / "damaged.zip", {f"{name}/1.png": picture.getvalue()[:30] for name in PETS.classes})
    with pytest.raises(DataError, match=f"^{damaged}/.*/1.png must be an image"):
        load_evaluation_set(damaged, PETS)[0]
    empty = zipped(tmp_path / "empty.zip", {"a/b.txt": b""})
    with pytest.raises(DataError, match=f"{empty}.*must contain"):
        load_evaluation_set(empty, PETS)
    unknown = zipped(tmp_path / "unknown.zip", {f"{name}/1.png": picture.getvalue() for name in ("ant", "cow")})
    with pytest.raises(DataError, match=f"^folders of {unknown} must have the names"):
        load_evaluation_set(unknown, PETS)


def test_another_file_is_not_called_a_folder_that_does_not_exist(tmp_path):
    (tmp_path / "pets.tar").write_bytes(b"")
    with pytest.raises(DataError, match="or a zip file of one, got another file: '.*pets.tar'$"):
        load_evaluation_set(str(tmp_path / "pets.tar"), PETS)


def test_zip_file_of_images_without_labels(tmp_path):
    folder_of(tmp_path / "set", ["spring", "summer"], per_class=2)
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for path in (tmp_path / "set").rglob("*.png"):
            archive.write(path, path.relative_to(tmp_path / "set"))
    dataset = load_evaluation_set(str(tmp_path / "photos.zip"), PETS)
    assert not dataset.labeled
    assert sorted(int(pixels[0, 0, 0]) for pixels, _ in dataset.__getitems__(range(4))) == [0, 1, 20, 21]
    assert dataset.notes == ["'photos.zip' has no folder for each class of pets: measured without labels."]
    assert dataset.description == f"4 images of {tmp_path / 'photos.zip'}"


def test_error_for_an_unknown_name_lists_the_data_sets():
    with pytest.raises(DataError, match="data must be embedded, cifar10, cifar100, or a folder .*'imagenet' does not exist"):
        load_evaluation_set("imagenet", PETS)
    with pytest.raises(DataError, match="data must be cifar10, cifar100, or a folder .*'imagenet' does not exist"):
        open_training_set("imagenet")


# ImageNet's layout


def test_evaluation_uses_val_and_training_uses_train(tmp_path):
    folder_of(tmp_path / "train", ["ant", "bee"], per_class=3)
    folder_of(tmp_path / "val", ["bee", "cat"])
    (tmp_path / "meta.bin").write_bytes(b"torchvision's own; never opened")
    dataset = load_evaluation_set(str(tmp_path), PETS)
    assert dataset.labels.tolist() == [1, 2]
    assert dataset.description == f"2 images of {tmp_path}"
    images, classes = open_training_set(str(tmp_path))
    assert (len(images), classes) == (6, ["ant", "bee"])


def test_classes_may_be_named_train_and_val(tmp_path):
    dataset = load_evaluation_set(str(folder_of(tmp_path, ["train", "val", "wolf"])), replace(PETS, classes=("wolf", "val", "train")))
    assert dataset.labels.tolist() == [2, 1, 0]
    images, classes = open_training_set(str(tmp_path))
    assert (len(images), classes) == (3, ["train", "val", "wolf"])


def test_list_gives_the_classes_of_images_without_folders(tmp_path):
    images = folder_of(tmp_path, ["val"], per_class=3) / "val"
    (tmp_path / "val.txt").write_text("2.png 1\nval/0.png 0\n\n1.png 2\nabsent.png 0\n", encoding="utf-8")
    for folder in (tmp_path, images):
        dataset = load_evaluation_set(str(folder), PETS)
        assert dataset.labels.tolist() == [0, 2, 1]
        assert [int(dataset[i][0][0, 0, 0]) for i in range(3)] == [0, 1, 2]


def test_numbers_in_a_list_are_class_indices(tmp_path):
    folder_of(tmp_path, ["val"], per_class=2)
    (tmp_path / "val.txt").write_text("0.png 1\n1.png 4\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"numbered classes of .*val\.txt must be class indices, 0 to 2, got 4") as error:
        load_evaluation_set(str(tmp_path), PETS)
    one_sentence(error)


# resizing for the network


@pytest.fixture(scope="module")
def photograph() -> Image.Image:
    """An image of 61 x 47 pixels with coarse and fine structure."""
    generator = np.random.default_rng(3)
    coarse = Image.fromarray(generator.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize((61, 47), Image.Resampling.BICUBIC)
    fine = generator.integers(-20, 21, (47, 61, 3))
    return Image.fromarray((np.asarray(coarse).astype(int) + fine).clip(0, 255).astype(np.uint8))


def prepared(image, folder, spec):
    (folder / "ant").mkdir()
    image.save(folder / "ant" / "0.png")
    return load_evaluation_set(str(folder), spec)[0][0]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("crop", [0.875, 0.95, 1.0])
@pytest.mark.parametrize("size", [24, 33])
def test_same_pixels_as_timm(tmp_path, photograph, size, crop, interpolation):
    spec = replace(PETS, image_size=size, resize=math.floor(size / crop), interpolation=interpolation)
    theirs = create_transform((3, size, size), crop_pct=crop, interpolation=interpolation, mean=spec.mean, std=spec.std)(photograph)
    mine = (prepared(photograph, tmp_path, spec).float() / 255 - 0.5) / 0.25
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_same_pixels_as_torchvision(tmp_path, photograph, interpolation):
    spec = replace(PETS, image_size=24, resize=29, interpolation=interpolation)
    preset = ImageClassification(crop_size=24, resize_size=29, interpolation=InterpolationMode(interpolation), mean=spec.mean, std=spec.std)
    mine = (prepared(photograph, tmp_path, spec).float() / 255 - 0.5) / 0.25
    torch.testing.assert_close(mine, preset(photograph), rtol=0, atol=1e-5)


def test_large_networks_get_imagenets_usual_crop_by_default(tmp_path, photograph):
    preset = ImageClassification(crop_size=224, resize_size=256, mean=(0,) * 3, std=(1,) * 3)
    mine = prepared(photograph, tmp_path, replace(PETS, image_size=224))
    torch.testing.assert_close(mine.float() / 255, preset(photograph), rtol=0, atol=1e-5)


def test_images_in_memory_are_resized_for_the_network():
    images = torch.randint(0, 256, (1, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert torch.equal(EvaluationSet(images, [0], "", 16)[0][0], images[0])
    assert torch.equal(EvaluationSet(images, [0], "", 16, resize=16)[0][0], images[0])
    enlarged = ImageClassification(crop_size=16, resize_size=20, interpolation=InterpolationMode.BICUBIC, mean=(0,) * 3, std=(1,) * 3)
    mine = EvaluationSet(images, [0], "", 16, resize=20, interpolation="bicubic")[0][0]
    # Pillow rounds differently: up to one of 255 steps
    torch.testing.assert_close(mine.float() / 255, enlarged(to_pil_image(images[0])), rtol=0, atol=1.001 / 255)


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("LA", 2), ("RGB", 3), ("RGBA", 4)])
def test_images_have_the_channels_of_the_network(tmp_path, mode, channels):
    noise = np.random.default_rng(0).integers(0, 256, (32, 48, 4), dtype=np.uint8)
    picture = Image.fromarray(noise).convert(mode)
    for name in PETS.classes:
        (tmp_path / name).mkdir()
        picture.save(tmp_path / name / "0.png")
    spec = replace(PETS, image_size=(32, 48), mean=(0.5,) * channels, std=(0.2,) * channels)
    image, _ = load_evaluation_set(str(tmp_path), spec)[0]
    assert torch.equal(image, pil_to_tensor(picture))
    # a color image for a grey network, and the other way round
    other = replace(spec, mean=(0.5,) * (4 - channels or 1), std=(0.2,) * (4 - channels or 1))
    image, _ = load_evaluation_set(str(tmp_path), other)[0]
    assert torch.equal(image, pil_to_tensor(picture.convert(other.mode)))


def test_the_last_of_four_channels_does_not_weigh_the_others(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 4), dtype=np.uint8)
    noise[..., 3] = 0  # Pillow takes this for a transparent image, whose other channels do not matter
    for name in PETS.classes:
        (tmp_path / name).mkdir()
        Image.fromarray(noise).save(tmp_path / name / "0.png")
    four = replace(PETS, image_size=(32, 48), mean=(0.5,) * 4, std=(0.2,) * 4)
    image, _ = load_evaluation_set(str(tmp_path), four)[0]
    expected = pil_to_tensor(Image.fromarray(noise[..., :3]).resize((48, 32), Image.Resampling.BILINEAR))
    assert torch.equal(image[:3], expected)
    assert not image[3].any()


@pytest.mark.parametrize(
    ("image_size", "resize", "found", "resized"),
    [
        ((32, 48), None, (64, 96), (32, 48)),
        ((32, 48), None, (64, 64), (48, 48)),  # as large as needed for both sides
        ((48, 32), None, (64, 64), (48, 48)),
        ((32, 48), None, (20, 90), (32, 144)),
        ((32, 48), 40, (64, 96), (40, 60)),
        ((128, 192), None, (200, 300), (146, 219)),  # 256 / 224 of the image size
        (32, None, (50, 75), (32, 48)),
        (32, 40, (75, 50), (60, 40)),
    ],
)
def test_images_are_resized_to_cover_the_image_size(tmp_path, image_size, resize, found, resized):
    noise = np.random.default_rng(0).integers(0, 256, (*found, 3), dtype=np.uint8)
    spec = replace(PETS, image_size=image_size, resize=resize)
    whole = Image.fromarray(noise).resize(resized[::-1], Image.Resampling.BILINEAR)
    expected = pil_to_tensor(center_crop(whole, list(spec.size)))
    assert torch.equal(prepared(Image.fromarray(noise), tmp_path, spec), expected)


def test_cifar_images_are_grey_for_a_grey_network():
    grey = replace(CIFAR10_SPEC, mean=(0.5,), std=(0.2,))
    image, _ = load_evaluation_set("embedded", grey)[7]
    assert torch.equal(image, pil_to_tensor(to_pil_image(embedded_images()[0][7]).convert("L")))
