"""Uploads: accepted files are stored whole under their hash, rejected ones leave nothing behind."""

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import asdict, replace
from pathlib import Path
from weakref import WeakValueDictionary

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save, save_file

from core import untrusted
from core.config import IMAGE_FORMATS, PRESETS
from core.data.image_sets import ImageSet, load_image_set
from core.errors import CoreError, DataError, ModelError
from core.export.image_sets import export_images
from core.models.full_precision import find_model, load_model
from core.models.registry import MODELS, GivenSpec
from core.runs.manager import default_name
from dashboard.server import uploads
from dashboard.server.uploads import Uploads

PATH, SPEC = MODELS["resnet20_cifar10"]


def checkpoint(tmp_path, tensors=None, metadata=None, **changes) -> bytes:
    path = tmp_path / "made.safetensors"
    save_file(
        tensors or load_file(PATH), path, metadata=metadata or {"spec": json.dumps({**asdict(replace(SPEC, name="mine")), **changes})}
    )
    content = path.read_bytes()
    path.unlink()
    return content


def archive(value=0, name="cat/a.png") -> bytes:
    picture, buffer = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (32, 32), (value,) * 3).save(picture, format="PNG")
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(zipfile.ZipInfo(name), picture.getvalue())
    return buffer.getvalue()


@pytest.fixture
def kept(tmp_path, in_this_process):
    return Uploads(tmp_path / "runs")


@pytest.fixture
def apart(tmp_path):
    """The same, with a process for each file, as in the server."""
    return Uploads(tmp_path / "runs")


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("architecture", ["", "pytorchcv:resnet20_cifar10"])
def test_index_of_shards_says_what_to_do(kept, tmp_path, architecture):
    """It cannot be read: its shards would be looked for among the uploads of others."""
    other = kept.store_network(io.BytesIO(checkpoint(tmp_path)), "mine.safetensors")
    name = "model.safetensors.index.json"
    index = io.BytesIO(json.dumps({"weight_map": dict.fromkeys(load_file(PATH), Path(other).name)}, indent=2).encode())
    with pytest.raises(CoreError, match=r"--weights of the command line, .*; elsewhere, merge them into one \.safetensors file$"):
        kept.import_network(index, name, architecture) if architecture else kept.store_network(index, name)


def test_network_is_stored_under_its_hash_and_loads(tmp_path, kept):
    content = checkpoint(tmp_path)
    path = kept.store_network(io.BytesIO(content), "../../evil name.safetensors")
    digest = hashlib.sha256(content).hexdigest()
    assert files_in(tmp_path / "runs") == [f"uploads/networks/{digest}.json", f"uploads/networks/{digest}.safetensors"]
    assert find_model(path)[1].name == "mine"
    assert load_model(path, "cpu").spec.classes == SPEC.classes
    assert kept.networks() == {path: "mine (10 classes), uploaded as ../../evil name.safetensors"}


def test_same_network_is_stored_once(tmp_path, kept):
    content = checkpoint(tmp_path)
    paths = [kept.store_network(io.BytesIO(content), name) for name in ("a.safetensors", "b.safetensors")]
    other = kept.store_network(io.BytesIO(checkpoint(tmp_path, name="other")), "c.safetensors")
    assert paths[0] == paths[1] != other
    assert len(kept.networks()) == 2
    assert kept.networks()[paths[0]].endswith("uploaded as a.safetensors")


def refused(keep, content, tmp_path, name="my file.bin") -> str:
    with pytest.raises(CoreError) as caught:
        keep(io.BytesIO(content), name)
    assert files_in(tmp_path / "runs") == []
    message = str(caught.value)
    assert message.isprintable()
    assert f"'{name}'" in message
    assert "must" in message or "allowed" in message or "missing" in message
    assert str(tmp_path) not in message
    return message


@pytest.mark.parametrize(
    "content", [b"", b"x", b"PK\x03\x04" + bytes(100), (2**60).to_bytes(8, "little") + b"{", b"\x80\x02}q\x00." + bytes(50)]
)
def test_other_files_are_rejected(tmp_path, kept, content):
    assert "but starts with" in refused(kept.store_network, content, tmp_path)


def test_pickle_is_rejected(tmp_path, kept):
    buffer = io.BytesIO()
    torch.save(load_file(PATH), buffer)
    assert "but starts with" in refused(kept.store_network, buffer.getvalue(), tmp_path)


@pytest.mark.parametrize(
    ("content", "name", "words"),
    [
        (b"\x08\x08\x12\x07pytorch", "network.onnx", "an ONNX file, in which the BatchNorm layers are usually folded"),
        (b"\x08\x08\x12\x07pytorch", "network.pth", "an ONNX file, in which the BatchNorm layers are usually folded"),
        (b"PK\x03\x04" + bytes(100), "network.keras", "a Keras file"),
        (b"\x89HDF\r\n\x1a\n", "network.h5", "a Keras file"),
        (b"\x1c\x00\x00\x00TFL3", "network.tflite", "a TensorFlow Lite file"),
    ],
)
def test_other_formats_say_at_once_what_to_do_instead(tmp_path, kept, content, name, words):
    def check(file, name):
        uploads.check_network(file, name, "timm:resnet18")

    def with_architecture(file, name):
        kept.import_network(file, name, "timm:resnet18")

    for keep in (check, kept.store_network, with_architecture):
        assert words in refused(keep, content, tmp_path, name)
        with pytest.raises(ModelError) as caught:
            keep(io.BytesIO(content), name)
        assert len(caught.value.paste) == 3


def test_header_whose_length_begins_like_onnx_is_stored(tmp_path, kept):
    """The length of the header is a multiple of eight; of every 32 files, one begins with the first byte of ONNX files."""
    contents = (checkpoint(tmp_path, trained_on="y" * count) for count in range(0, 264, 8))
    content = next(content for content in contents if content[0] == 8)
    assert Path(kept.store_network(io.BytesIO(content), "mine.safetensors")).is_file()


def test_oversized_network_is_rejected(tmp_path, kept, monkeypatch):
    content = checkpoint(tmp_path)
    monkeypatch.setattr(uploads, "NETWORK_BYTES", 1000)
    assert f"must have at most 1,000 bytes, got {len(content):,}" in refused(kept.store_network, content, tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "resnet2000"}, "unknown architecture"),
        ({"architecture": "vgg16"}, "must be those of vgg16"),
        ({"image_size": 10**9}, "image_size"),
        ({"image_size": 1}, "1 x 1 pixels"),
        ({"classes": []}, "classes"),
        ({"mean": "abc"}, "mean"),
    ],
)
def test_unusable_networks_are_rejected(tmp_path, kept, changes, words):
    content = checkpoint(tmp_path, **changes)
    if "unknown" in words:  # this message names the architecture, not the file
        with pytest.raises(ModelError, match=words):
            kept.store_network(io.BytesIO(content), "a")
        assert files_in(tmp_path / "runs") == []
    else:
        assert words in refused(kept.store_network, content, tmp_path)


def test_network_without_our_header_is_rejected(tmp_path, kept):
    assert "whose header describes the network" in refused(kept.store_network, save(load_file(PATH)), tmp_path)
    assert "whose header describes the network" in refused(
        kept.store_network, checkpoint(tmp_path, metadata={"spec": "[" * 100_000}), tmp_path
    )


def test_truncated_network_is_rejected(tmp_path, kept):
    refused(kept.store_network, checkpoint(tmp_path)[:-100], tmp_path)


def test_network_with_nan_is_rejected(tmp_path, kept):
    weights = load_file(PATH)
    weights["output.bias"][0] = torch.nan
    assert "must be finite, got infinity or NaN in " in refused(kept.store_network, checkpoint(tmp_path, weights), tmp_path)


def others(state=None) -> bytes:
    """The embedded network as a third-party weights file, with the prefix of DataParallel."""
    buffer = io.BytesIO()
    torch.save({"state_dict": {f"module.{key}": value for key, value in (state or load_file(PATH)).items()}}, buffer)
    return buffer.getvalue()


def test_third_party_weights_file_is_stored_with_the_given_settings(tmp_path, kept):
    names = list("abcdefghij")
    path = kept.import_network(
        io.BytesIO(others()), "../my net.pth", "pytorchcv:resnet20_cifar10", GivenSpec(mean=[0.5, 0.5, 0.5], class_names=names)
    )
    assert kept.networks() == {path: "my net (10 classes), imported from my net.pth"}
    model = load_model(path, "cpu")
    assert model.spec.classes == tuple(names)
    assert model.spec.mean == (0.5, 0.5, 0.5)
    assert torch.equal(model.network.state_dict()["output.bias"], load_file(PATH)["output.bias"])
    assert default_name(replace(PRESETS["quick"], model=path)) == "my net.pth, mi-fgsm + adam, W3A3 W4A4 W5A5"
    assert sorted(os.listdir(kept.folder / "networks")) == sorted(
        os.path.basename(path).replace("safetensors", end) for end in ("json", "safetensors")
    )


@pytest.mark.parametrize(
    ("content", "given", "words"),
    [
        (b"no weights", {}, "begins with"),
        (others()[:-500], {}, "cannot be read"),
        (others({"a": torch.zeros(1)}), {}, "must be those of pytorchcv:resnet20_cifar10"),
        (others(), {"image_size": 1}, "1 x 1 pixels"),
        (others(), {"class_names": ["a"]}, "output.bias must be (1,), got (10,)"),
    ],
)
def test_unusable_third_party_weights_file_is_rejected(tmp_path, kept, content, given, words):
    with pytest.raises(ModelError, match=re.escape(words)) as caught:
        kept.import_network(io.BytesIO(content), "a.pth", "pytorchcv:resnet20_cifar10", GivenSpec(**given))
    assert "a.pth" in str(caught.value)
    assert str(tmp_path) not in str(caught.value)
    assert files_in(tmp_path / "runs") == []


def test_oversized_third_party_weights_file_is_rejected(tmp_path, kept, monkeypatch):
    monkeypatch.setattr(uploads, "NETWORK_BYTES", 1000)
    with pytest.raises(DataError, match="must have at most 1,000 bytes"):
        kept.import_network(io.BytesIO(others()), "a.pth", "pytorchcv:resnet20_cifar10")
    assert not kept.folder.exists()


def test_images_are_stored_under_their_hash(tmp_path, kept):
    content = archive(7)
    folder = kept.store_images(io.BytesIO(content), "../cats.zip")
    assert folder == tmp_path / "runs" / "uploads" / "images" / hashlib.sha256(content).hexdigest()
    assert files_in(folder) == ["given/cat/a.png"]
    assert load_image_set(folder / uploads.USER_IMAGES, SPEC).labels.tolist() == [3]
    assert kept.store_images(io.BytesIO(content), "again.zip") == folder
    assert os.listdir(folder.parent) == [folder.name]


@pytest.mark.parametrize("kind", IMAGE_FORMATS)
def test_every_export_format_of_images_can_be_uploaded(tmp_path, kept, embedded, kind):
    labels = torch.tensor([3, 0, 3])
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    out = tmp_path / ("out.npz" if kind == "npz" else "out")
    export_images(ImageSet(images, labels, {"optimizer": "adam"}), embedded, kind, out)
    file = out if out.is_file() else Path(shutil.make_archive(str(tmp_path / "set"), "zip", out))
    with file.open("rb") as content:
        folder = kept.store_images(content, f"set{file.suffix}")
    back = load_image_set(folder / "given", embedded.spec)
    assert torch.equal(back.images, images)
    assert torch.equal(back.labels, labels)
    assert [path.name for path in folder.iterdir()] == ["given"]


def test_error_of_an_invalid_numpy_archive_has_its_name(tmp_path, kept):
    with pytest.raises(DataError, match=r"'calibration\.npz'"):
        kept.store_images(io.BytesIO(b"PK\x03\x04 and nothing else"), "calibration.npz")
    assert files_in(tmp_path / "runs") == []


@pytest.mark.parametrize("content", [b"", b"no archive", archive(name="../cat/a.png"), archive(name="a.png")])
def test_invalid_archives_are_rejected(tmp_path, kept, content):
    refused(kept.store_images, content, tmp_path)
    assert os.listdir(tmp_path / "runs" / "uploads" / "images") == []


def test_oversized_archive_is_rejected_unread(tmp_path, kept, monkeypatch):
    monkeypatch.setattr(uploads, "ARCHIVE_BYTES", 100)
    assert "must have at most 100 bytes" in refused(kept.store_images, archive(), tmp_path)
    assert not kept.folder.exists()


def test_full_disk_is_reported_before_storing(tmp_path, kept, monkeypatch):
    class Usage:
        free = uploads.SPARE_BYTES

    monkeypatch.setattr("shutil.disk_usage", lambda folder: Usage)
    for keep, content in ((kept.store_images, archive()), (kept.store_network, checkpoint(tmp_path))):
        with pytest.raises(DataError, match="the disk must have 51[0-9] MB free for this upload, got 512 MB"):
            keep(io.BytesIO(content), "a")
    assert files_in(tmp_path / "runs") == []


def test_disk_error_is_reported_in_one_sentence(tmp_path, kept, monkeypatch):
    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dashboard.server.uploads.sync", fails)
    assert "No space left" in refused(kept.store_network, checkpoint(tmp_path), tmp_path)


def test_leftovers_of_a_killed_process_are_removed_after_a_day(tmp_path, kept):
    kept.store_images(io.BytesIO(archive(1)), "a.zip")
    folder = kept.folder / "images"
    for name, age in ((".old", 2 * 24 * 3600), (".young", 60)):
        (folder / name).mkdir()
        os.utime(folder / name, (time.time() - age,) * 2)
    kept.store_images(io.BytesIO(archive(2)), "b.zip")
    assert [name for name in os.listdir(folder) if name.startswith(".")] == [".young"]


def test_concurrent_uploads_of_one_file(apart):
    content, folders = archive(), []
    threads = [threading.Thread(target=lambda: folders.append(apart.store_images(io.BytesIO(content), "a.zip"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(folders) == 4
    assert len(set(folders)) == 1


def test_uploads_of_one_user_leave_places_to_another(tmp_path, apart, monkeypatch):
    """Somebody sends more files than are checked at once, each of which takes as long as the test."""
    monkeypatch.setattr(untrusted, "_slots", threading.BoundedSemaphore(untrusted.AT_ONCE))
    monkeypatch.setattr(uploads, "_places", WeakValueDictionary())
    release, waiting = threading.Event(), []

    def slow():
        waiting.append(1)
        with uploads.place_of("somebody"), untrusted._slots:
            waiting.pop()
            release.wait(60)

    threads = [threading.Thread(target=slow) for _ in range(untrusted.AT_ONCE + 2)]
    try:
        for thread in threads:
            thread.start()
        while untrusted._slots._value > untrusted.AT_ONCE - uploads.AT_ONCE_OF_ONE:
            time.sleep(0.01)
        monkeypatch.setattr(untrusted, "WAIT_SECONDS", 5)
        with uploads.place_of("somebody else"):
            assert apart.store_images(io.BytesIO(archive()), "a.zip").is_dir()
        assert len(waiting) == len(threads) - uploads.AT_ONCE_OF_ONE
        monkeypatch.setattr(uploads, "WAIT_SECONDS", 0.1)
        with pytest.raises(DataError, match="at most 2 files of one user are checked at the same time"), uploads.place_of("somebody"):
            pass
    finally:
        release.set()
        for thread in threads:
            thread.join()
    with uploads.place_of("somebody"):
        pass


def test_slow_upload_does_not_keep_others_waiting(tmp_path, apart, monkeypatch):
    """A network whose check takes as long as the test, and an archive of somebody else."""
    release, started = threading.Event(), threading.Event()

    def slow(file, name):
        started.set()
        release.wait(60)
        return "slow", 10

    monkeypatch.setattr(uploads, "check_checkpoint", slow)
    stored = []
    thread = threading.Thread(target=lambda: stored.append(apart.store_network(io.BytesIO(checkpoint(tmp_path)), "slow.safetensors")))
    thread.start()
    assert started.wait(60)
    assert apart.store_images(io.BytesIO(archive()), "a.zip").is_dir()
    assert stored == []
    release.set()
    thread.join()
    assert len(stored) == 1


@pytest.mark.slow
def test_uploads_are_checked_without_importing_torch_here(tmp_path):
    """A network, a weights file, an archive and a NumPy archive; a file of 32 bytes that asks for 12 GB."""
    (tmp_path / "a.safetensors").write_bytes(checkpoint(tmp_path))
    (tmp_path / "a.pth").write_bytes(others())
    (tmp_path / "a.zip").write_bytes(archive())
    (tmp_path / "bad.pth").write_bytes(b"\x80\x02cbuiltins\nbytearray\n\x8a\x06" + (12 << 30).to_bytes(6, "little") + b"\x85R.")
    code = f"""
import sys
from pathlib import Path
from core.errors import ModelError
from dashboard.server.uploads import Uploads
folder = Path({str(tmp_path)!r})
kept = Uploads(folder / "runs")
print(kept.store_network(open(folder / "a.safetensors", "rb"), "a.safetensors"))
print(kept.import_network(open(folder / "a.pth", "rb"), "a.pth", "pytorchcv:resnet20_cifar10"))
print(kept.store_images(open(folder / "a.zip", "rb"), "a.zip"))
try:
    kept.import_network(open(folder / "bad.pth", "rb"), "bad.pth", "pytorchcv:resnet20_cifar10")
except ModelError as error:
    print(error)
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=False, cwd=Path(__file__).parents[3])
    assert done.returncode == 0, done.stderr
    *paths, refusal = done.stdout.splitlines()
    assert [Path(path).exists() for path in paths] == [True] * 3
    assert load_model(paths[1], "cpu").spec.name == "a"
    if sys.platform == "linux":
        assert refusal == "'bad.pth' needs more than 200 MB of memory to check; a file may need 4 times its size and 200 MB"


def test_run_names(tmp_path, kept):
    path = kept.store_network(io.BytesIO(checkpoint(tmp_path)), "a.safetensors")
    plain = PRESETS["quick"]
    assert default_name(replace(plain, model=path)) == "a.safetensors, mi-fgsm + adam, W3A3 W4A4 W5A5"
    assert default_name(plain, "cats.zip") == "resnet20_cifar10, cats.zip, W3A3 W4A4 W5A5"


def test_network_with_an_unreadable_label_is_still_listed(tmp_path, kept):
    path = kept.store_network(io.BytesIO(checkpoint(tmp_path)), "a.safetensors")
    for path_of_label in (kept.folder / "networks").glob("*.json"):
        path_of_label.write_text("{", encoding="utf-8")
    assert list(kept.networks()) == [path]
    assert "an uploaded network" in kept.networks()[path]
