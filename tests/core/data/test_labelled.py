"""Evaluation sets: the embedded one, folders, and CIFAR-10 without a network."""

import math
from collections import Counter
from dataclasses import replace
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image

from core.data import labelled
from core.data.labelled import EMBEDDED_SHEET, embedded_images, load_evaluation_set, open_cifar10, open_image_folder, open_training_set
from core.errors import DataError
from core.models.registry import CIFAR10_CLASSES, MODELS, ModelSpec

CIFAR10_SPEC = MODELS["resnet20_cifar10"][1]
PETS = ModelSpec("pets", "resnet20_cifar10", ("ant", "bee", "cat"), 8, (0.5,) * 3, (0.25,) * 3, "nothing")


def folder_of(root, classes, per_class=1, size=(8, 8), mode="RGB"):
    """One folder a class; image i of class c is all of value 20 c + i."""
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


def test_embedded_images_are_the_first_of_cifar10s_test_set():
    images, labels = embedded_images()
    assert images.shape == (2000, 3, 32, 32)
    assert images.dtype == torch.uint8
    # test_batch of the original: a cat whose upper left corner is (158, 112, 49), then two ships, an airplane and a frog
    assert images[0, :, 0, 0].tolist() == [158, 112, 49]
    assert images[0, 0, 0, :4].tolist() == [158, 159, 165, 166]
    assert labels[:10] == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]
    assert set(labels) == set(range(10))
    counts = Counter(labels)
    assert sum(counts.values()) == 2000
    # balanced up to chance: four standard deviations of a count among 2,000
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


def test_embedded_images_have_the_size_that_the_network_wants():
    image, _ = load_evaluation_set("embedded", replace(CIFAR10_SPEC, image_size=16))[0]
    assert image.shape == (3, 16, 16)


@pytest.mark.parametrize("source", ["embedded", "cifar10"])
def test_cifar10_is_refused_for_other_classes(source):
    with pytest.raises(DataError, match=f"data is '{source}'.*pets.*allowed is a folder") as error:
        load_evaluation_set(source, PETS)
    one_sentence(error)


def test_folders_are_mapped_by_name(tmp_path):
    # folders in alphabetical order are not the order of the network, and one class is absent
    spec = replace(PETS, classes=("cat", "zebra", "ant"))
    dataset = load_evaluation_set(str(folder_of(tmp_path, ["ant", "cat"], per_class=2)), spec)
    assert dataset.labels.tolist() == [2, 2, 0, 0]
    assert [int(dataset[i][0][0, 0, 0]) for i in range(4)] == [0, 1, 20, 21]
    assert "4 images" in dataset.description


def test_folders_are_mapped_by_order_where_their_number_fits(tmp_path):
    dataset = load_evaluation_set(str(folder_of(tmp_path, ["0", "1", "2"])), PETS)
    assert dataset.labels.tolist() == [0, 1, 2]


def test_folders_that_fit_neither_way_are_refused(tmp_path):
    with pytest.raises(DataError, match="2 folders, among them 'wolf'.*ant, bee, cat.*exactly 3") as error:
        load_evaluation_set(str(folder_of(tmp_path, ["cat", "wolf"])), PETS)
    one_sentence(error)


def test_folder_images_are_resized_and_cropped_to_the_network(tmp_path):
    root = folder_of(tmp_path, ["ant"], size=(40, 20), mode="L")
    image, label = load_evaluation_set(str(root), PETS)[0]
    assert image.shape == (3, 8, 8)
    assert image.dtype == torch.uint8
    assert int(label) == 0


def test_centre_is_what_is_kept(tmp_path):
    (tmp_path / "ant").mkdir()
    wide = np.zeros((8, 24, 3), dtype=np.uint8)
    wide[:, 8:16] = 200
    Image.fromarray(wide).save(tmp_path / "ant" / "0.png")
    image, _ = load_evaluation_set(str(tmp_path), PETS)[0]
    assert bool((image == 200).all())


def test_missing_folder(tmp_path):
    for call in (lambda p: load_evaluation_set(str(p), PETS), open_image_folder, lambda p: open_training_set(str(p))):
        with pytest.raises(DataError, match="nowhere.*does not exist: allowed is") as error:
            call(tmp_path / "nowhere")
        one_sentence(error)


def test_file_instead_of_a_folder(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="file.*allowed is a folder"):
        open_image_folder(tmp_path / "file")


@pytest.mark.parametrize("inside", [[], ["cat"]])
def test_folder_without_images(tmp_path, inside):
    for name in inside:
        (tmp_path / name).mkdir()
    with pytest.raises(DataError, match="allowed is one folder a class") as error:
        load_evaluation_set(str(tmp_path), PETS)
    one_sentence(error)


def test_text_beside_images_is_ignored(tmp_path):
    root = folder_of(tmp_path, ["ant"])
    (root / "ant" / "notes.txt").write_text("no image")
    assert len(load_evaluation_set(str(root), PETS)) == 1


def test_file_that_is_no_image_is_named_when_it_is_read(tmp_path):
    root = folder_of(tmp_path, ["ant"])
    (root / "ant" / "a.png").write_bytes(b"no image at all")
    dataset = load_evaluation_set(str(root), PETS)
    with pytest.raises(DataError, match="a.png cannot be read as an image: allowed are") as error:
        [dataset[i] for i in range(2)]
    one_sentence(error)


def test_training_image_that_cannot_be_read_is_named(tmp_path):
    root = folder_of(tmp_path, ["ant"])
    (root / "ant" / "a.png").write_bytes(b"no image at all")
    dataset, _ = open_training_set(str(root))
    with pytest.raises(DataError, match=r"a\.png"):
        [dataset[i] for i in range(2)]


def test_training_set_is_pictures_with_class_names(tmp_path):
    dataset, classes = open_training_set(str(folder_of(tmp_path, ["bee", "ant"], per_class=2, mode="L")))
    assert classes == ["ant", "bee"]
    picture, label = dataset[3]
    assert (picture.mode, picture.size, label) == ("RGB", (8, 8), 1)


@pytest.mark.parametrize("error", [URLError("no route to host"), RuntimeError("File not found or corrupted."), ConnectionResetError()])
def test_cifar10_without_a_network_names_what_works(tmp_path, monkeypatch, error):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def unreachable(root, train, download):
        assert download
        assert str(root).startswith(str(tmp_path))
        raise error

    monkeypatch.setattr(labelled, "CIFAR10", unreachable)
    for call in (
        lambda: open_cifar10(train=False),
        lambda: load_evaluation_set("cifar10", CIFAR10_SPEC),
        lambda: open_training_set("cifar10"),
    ):
        with pytest.raises(DataError, match="cifar10 could not be downloaded.*without a network is embedded") as caught:
            call()
        one_sentence(caught)


def test_cifar10_of_torchvision_is_taken_as_it_is(monkeypatch):
    pixels = np.arange(2 * 32 * 32 * 3, dtype=np.uint32).astype(np.uint8).reshape(2, 32, 32, 3)

    class Downloaded:
        data, targets = pixels, [4, 9]

        def __init__(self, root, train, download):
            assert not train

        def __len__(self):
            return 2

    monkeypatch.setattr(labelled, "CIFAR10", Downloaded)
    dataset = load_evaluation_set("cifar10", CIFAR10_SPEC)
    assert len(dataset) == 2
    assert np.array_equal(dataset[1][0].numpy(), pixels[1].transpose(2, 0, 1))
    assert dataset.labels.tolist() == [4, 9]
    assert CIFAR10_SPEC.classes == CIFAR10_CLASSES


def test_folders_of_which_only_some_are_classes_are_refused(tmp_path):
    """Three folders for three classes, but 'cow' in the place of 'bee' would make every ant a bee."""
    with pytest.raises(DataError, match="3 folders, among them 'cow'") as error:
        load_evaluation_set(str(folder_of(tmp_path, ["ant", "cat", "cow"])), PETS)
    one_sentence(error)


def test_class_without_images_is_named(tmp_path):
    root = folder_of(tmp_path, ["ant", "bee"])
    (root / "cat").mkdir()
    with pytest.raises(DataError, match="no images in cat: allowed is one folder a class") as error:
        load_evaluation_set(str(root), PETS)
    one_sentence(error)


def test_names_that_are_no_folder_are_offered():
    with pytest.raises(DataError, match="'imagenet' does not exist: allowed is embedded, cifar10, or a folder"):
        load_evaluation_set("imagenet", PETS)
    with pytest.raises(DataError, match="'imagenet' does not exist: allowed is cifar10, or a folder"):
        open_training_set("imagenet")
