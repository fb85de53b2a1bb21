"""CIFAR-10 and CIFAR-100 in torchvision's layout: the published files are read, and no other file is unpickled."""

import hashlib
import os
import pickle
from dataclasses import replace
from urllib.error import URLError

import numpy as np
import pytest
from torchvision.datasets import CIFAR10, CIFAR100

from core.data import cifar
from core.data.cifar import open_cifar
from core.data.labeled import load_evaluation_set, open_training_set
from core.errors import DataError
from core.models.registry import CIFAR10_CLASSES, CIFAR100_CLASSES, MODELS

CIFAR10_SPEC = MODELS["resnet20_cifar10"][1]
CIFAR100_SPEC = replace(CIFAR10_SPEC, name="hundred", classes=CIFAR100_CLASSES)
SPECS = {"cifar10": CIFAR10_SPEC, "cifar100": CIFAR100_SPEC}
BATCHES = [f"data_batch_{i}" for i in range(1, 6)]


class Hostile:
    """Creates a folder when it is unpickled."""

    def __init__(self, folder) -> None:
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def pickled(path, value) -> tuple[str, str]:
    path.write_bytes(pickle.dumps(value))
    return path.name, hashlib.md5(path.read_bytes()).hexdigest()


def published(root, name, monkeypatch) -> dict[str, np.ndarray]:
    """Writes a small set to `root`, whose files torchvision accepts as the published ones. Returns the pixels of both parts."""
    generator = np.random.default_rng(len(name))
    kind, classes = {"cifar10": (CIFAR10, CIFAR10_CLASSES), "cifar100": (CIFAR100, CIFAR100_CLASSES)}[name]
    key = "labels" if name == "cifar10" else "fine_labels"
    folder = root / kind.base_folder
    folder.mkdir(parents=True)

    def batch(file, images):
        labels = [(7 * i + images) % len(classes) for i in range(images)]
        data[file] = generator.integers(0, 256, (images, 3072), dtype=np.uint8)
        return pickled(folder / file, {"data": data[file], key: labels})

    data: dict[str, np.ndarray] = {}
    train = [batch(file, 2) for file in (BATCHES if name == "cifar10" else ["train"])]
    test = [batch("test_batch" if name == "cifar10" else "test", 3)]
    file, checksum = pickled(folder / kind.meta["filename"], {kind.meta["key"]: list(classes)})
    small = type(kind.__name__, (kind,), {"train_list": train, "test_list": test, "meta": {**kind.meta, "filename": file, "md5": checksum}})
    monkeypatch.setitem(cifar.CIFAR, name, small)
    return {"train": np.concatenate([data[file] for file, _ in train]), "test": data[test[0][0]]}


def one_sentence(error) -> str:
    message = str(error.value)
    assert "\n" not in message
    assert "must" in message
    return message


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("inside", [False, True])
def test_folder_in_torchvisions_layout(tmp_path, monkeypatch, name, inside):
    pixels = published(tmp_path, name, monkeypatch)
    source = str(tmp_path / cifar.CIFAR[name].base_folder if inside else tmp_path)
    dataset = load_evaluation_set(source, SPECS[name])
    assert dataset.labels.tolist() == [3, 10 % len(SPECS[name].classes), 17 % len(SPECS[name].classes)]
    # a row is 1,024 bytes of red, then of green and of blue
    assert np.array_equal(dataset[1][0].numpy(), pixels["test"][1].reshape(3, 32, 32))
    assert dataset.description == f"all 3 {cifar.TITLES[name]} test images of {source}"
    images, classes = open_training_set(source)
    assert len(images) == len(pixels["train"])
    assert classes == list(SPECS[name].classes)
    picture, label = images[1]
    assert np.array_equal(np.asarray(picture).transpose(2, 0, 1), pixels["train"][1].reshape(3, 32, 32))
    assert label == 9


def test_current_folder_is_recognized(tmp_path, monkeypatch):
    published(tmp_path, "cifar10", monkeypatch)
    monkeypatch.chdir(tmp_path / "cifar-10-batches-py")
    assert len(load_evaluation_set(".", CIFAR10_SPEC)) == 3


def test_of_two_sets_the_one_with_the_classes_of_the_network_is_used(tmp_path, monkeypatch):
    for name in SPECS:
        published(tmp_path, name, monkeypatch)
    for name, spec in SPECS.items():
        assert cifar.TITLES[name] + " test" in load_evaluation_set(str(tmp_path), spec).description
    with pytest.raises(DataError, match="must be one data set, .*contains CIFAR-10 and CIFAR-100") as error:
        open_training_set(str(tmp_path))
    one_sentence(error)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_folder_with_other_classes_is_refused(tmp_path, monkeypatch, name):
    published(tmp_path, name, monkeypatch)
    other = CIFAR100_SPEC if name == "cifar10" else CIFAR10_SPEC
    with pytest.raises(DataError, match=f"must have the classes of {other.name}, .*is {cifar.TITLES[name]}") as error:
        load_evaluation_set(str(tmp_path), other)
    one_sentence(error)


@pytest.mark.parametrize("file", [*BATCHES, "test_batch", "batches.meta"])
@pytest.mark.parametrize("call", [lambda p: load_evaluation_set(p, CIFAR10_SPEC), open_training_set])
def test_hostile_pickle_is_never_loaded(tmp_path, monkeypatch, file, call):
    """One of the seven files was replaced; torchvision accepts the others."""
    published(tmp_path, "cifar10", monkeypatch)
    path = tmp_path / "cifar-10-batches-py" / file
    path.write_bytes(pickle.dumps({"data": Hostile(tmp_path / "taken over"), "labels": []}))
    with pytest.raises(DataError, match=f"published checksums, {file} is missing or different") as error:
        call(str(tmp_path))
    one_sentence(error)
    assert not (tmp_path / "taken over").exists()
    # unpickling it does create the folder
    with path.open("rb") as opened:
        pickle.load(opened)
    assert (tmp_path / "taken over").exists()


def test_hostile_pickle_is_not_loaded_by_unpatched_torchvision(tmp_path):
    """With torchvision's own checksums."""
    for kind, name in ((CIFAR10, "cifar10"), (CIFAR100, "cifar100")):
        folder = tmp_path / kind.base_folder
        folder.mkdir()
        for file, _ in [*kind.train_list, *kind.test_list, (kind.meta["filename"], "")]:
            (folder / file).write_bytes(pickle.dumps(Hostile(tmp_path / "taken over")))
        with pytest.raises(DataError, match="published checksums, .* is missing or different") as error:
            load_evaluation_set(str(folder), SPECS[name])
        one_sentence(error)
    assert not (tmp_path / "taken over").exists()


def test_missing_file_is_named(tmp_path, monkeypatch):
    published(tmp_path, "cifar10", monkeypatch)
    (tmp_path / "cifar-10-batches-py" / "data_batch_4").unlink()
    with pytest.raises(DataError, match="data_batch_4 is missing") as error:
        load_evaluation_set(str(tmp_path), CIFAR10_SPEC)
    one_sentence(error)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("error", [URLError("no route to host"), RuntimeError("File not found or corrupted."), ConnectionResetError()])
def test_failed_download_suggests_what_works_offline(tmp_path, monkeypatch, name, error):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def unreachable(root, train, download):
        assert download
        assert str(root).startswith(str(tmp_path))
        raise error

    monkeypatch.setitem(cifar.CIFAR, name, unreachable)
    for call in (
        lambda: open_cifar(name, train=False),
        lambda: load_evaluation_set(name, SPECS[name]),
        lambda: open_training_set(name),
    ):
        with pytest.raises(DataError, match=f"{name} could not be downloaded.*offline, use the embedded images") as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_earlier_download_is_used(tmp_path, monkeypatch, name):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    pixels = published(tmp_path / "datasets", name, monkeypatch)
    dataset = load_evaluation_set(name, SPECS[name])
    assert np.array_equal(dataset[2][0].numpy(), pixels["test"][2].reshape(3, 32, 32))
    assert dataset.description == f"all 3 {cifar.TITLES[name]} test images"
    images, classes = open_training_set(name)
    assert (len(images), classes) == (len(pixels["train"]), list(SPECS[name].classes))


def test_labels_follow_the_class_order_of_the_network(tmp_path, monkeypatch):
    published(tmp_path, "cifar10", monkeypatch)
    spec = replace(CIFAR10_SPEC, classes=tuple(name.title() for name in reversed(CIFAR10_CLASSES)))
    assert load_evaluation_set(str(tmp_path), spec).labels.tolist() == [6, 9, 2]
