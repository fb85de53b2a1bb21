"""Uploaded networks and images on the pages, in Streamlit's AppTest."""

import io
import json
import shutil
import zipfile
from dataclasses import asdict, replace

import pytest
import torch
from app_pages import page, quantized_at_8_bits, tables, texts
from PIL import Image
from safetensors.torch import load_file, save, save_file

from core.models.full_precision import find_model
from core.models.registry import MODELS
from core.runs.state import RunState
from dashboard import session
from dashboard.text import plain


def checkpoint(folder, **changes):
    """A weights file to upload: the embedded network under another name."""
    path, spec = MODELS["resnet20_cifar10"]
    file = folder / "made.safetensors"
    save_file(load_file(path), file, metadata={"spec": json.dumps({**asdict(replace(spec, name="mine")), **changes})})
    return file.read_bytes()


def archive(count=2, name="cat/{}.png"):
    """A zip file of black images."""
    picture, buffer = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (32, 32)).save(picture, format="PNG")
    with zipfile.ZipFile(buffer, "w") as file:
        for index in range(count):
            file.writestr(zipfile.ZipInfo(name.format(index)), picture.getvalue())
    return buffer.getvalue()


def upload_network(app, file, form="quick/machine"):
    """Chooses to upload a network, and uploads this one: name, content and media type."""
    app.radio(key=f"{form}/network source 0").set_value("Upload a file").run()
    app.file_uploader(key=f"{form}/upload network 0").set_value(file).run()


def errors(app):
    return [error.value for error in app.error]


def test_studio_accepts_an_uploaded_network_and_offers_it_again(runs_folder, tmp_path):
    app = page("studio", "all settings/")
    app.number_input(key="quick/generation/images").set_value(8)
    app.number_input(key="quick/generation/iterations").set_value(6)
    app.multiselect(key="quick/bits").set_value([])
    app.text_input(key="quick/machine/encoder").set_value("")
    upload_network(app, ("net.safetensors", checkpoint(tmp_path), "application/octet-stream"))
    app.button(key="start").click().run()
    assert not app.exception
    assert [error.value for error in app.error] == []
    (run,) = session.store().runs()
    (path,) = session.uploads().networks()
    assert run.config.model == path
    assert run.name == "net.safetensors, mi-fgsm + adam"
    session.manager().wait(run.id)
    assert session.store().run(run.id).state is RunState.COMPLETE
    again = page("studio")
    assert "quick/machine/model" not in [box.key for box in again.selectbox]  # the form is drawn only when it is open
    again.session_state[f"new run/{run.id}"] = again.session_state[f"all settings/{run.id}"] = True
    again.run()
    assert not again.exception
    assert again.selectbox(key="quick/machine/model").options[:2] == [
        "resnet20_cifar10",
        "mine (10 classes), uploaded as net.safetensors",
    ]


@pytest.mark.slow
def test_studio_imports_a_third_party_weights_file(runs_folder, tmp_path):
    torch.save({"model": load_file(MODELS["resnet20_cifar10"][0])}, tmp_path / "others.pth")
    app = page("studio", "all settings/")
    app.number_input(key="quick/generation/images").set_value(8)
    app.number_input(key="quick/generation/iterations").set_value(6)
    app.multiselect(key="quick/bits").set_value([])
    app.text_input(key="quick/machine/encoder").set_value("")
    content = (tmp_path / "others.pth").read_bytes()
    upload_network(app, ("others.pth", content, "application/octet-stream"))
    app.text_input(key="quick/machine/architecture").set_value("pytorchcv:resnet20_cifar10")
    app.text_input(key="quick/machine/mean").set_value("0.5 half")
    app.text_input(key="quick/machine/image size").set_value("32 x 48").run()
    assert not app.exception
    assert errors(app) == [
        plain("image size must be one or two whole numbers, such as 224 or 32 48, got '32 x 48'"),
        plain("mean must be one number for each channel, such as 0.485 0.456 0.406, got '0.5 half'"),
    ]
    assert app.button(key="start").disabled
    assert "Start is disabled: see the image size and the mean above." in texts(app)
    app.text_input(key="quick/machine/mean").set_value("0.5, 0.5, 0.5")
    app.text_input(key="quick/machine/image size").set_value("32 32")
    app.text_area(key="quick/machine/class names").set_value("\n".join("abcdefghij")).run()
    app.button(key="start").click().run()
    assert not app.exception
    assert [error.value for error in app.error] == []
    (run,) = session.store().runs()
    assert run.name == "others.pth, mi-fgsm + adam"
    spec = find_model(run.config.model)[1]
    assert (spec.mean, spec.classes, spec.image_size) == ((0.5, 0.5, 0.5), tuple("abcdefghij"), 32)
    session.manager().wait(run.id)
    assert session.store().run(run.id).state is RunState.COMPLETE


def test_a_network_refused_at_start_disables_start_until_it_is_replaced(runs_folder, tmp_path):
    app = page("studio", "all settings/")
    content = checkpoint(tmp_path, image_size=10**9)
    upload_network(app, ("a_b.safetensors", content, "application/octet-stream"))
    assert not app.button(key="start").disabled
    app.button(key="start").click().run()
    assert not app.exception
    assert errors(app) == [
        plain(
            "image_size in the header of 'a_b.safetensors' must be an integer from 1 to 1024, or two of them, height and width, "
            "got 1000000000"
        )
    ]
    assert app.button(key="start").disabled
    assert session.store().runs() == []
    assert session.uploads().networks() == {}
    app.file_uploader(key="quick/machine/upload network 0").set_value(("net.safetensors", checkpoint(tmp_path), "")).run()
    assert errors(app) == []
    assert not app.button(key="start").disabled


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        (None, b"", "Upload a network to start with it."),
        ("network.onnx", b"\x08\x08", "got an ONNX file, in which the BatchNorm layers are usually folded into the convolutions"),
        ("network.txt", b"abc", "network must be a .safetensors, .pt, .pth or .pt2 file, got 'network.txt'"),
        ("best.pth", b"PK\x03\x04", "'best.pth' must be a .safetensors file written by `pretrain`, or another one with its architecture"),
    ],
)
@pytest.mark.parametrize(
    ("shown", "opened", "form", "button"),
    [
        ("studio", "all settings/", "quick/machine", "start"),
        ("quantize", "quantize own/", "own/quick", "quantize own"),
        ("diversity", "diversity own/", "own diversity", "measure own"),
    ],
)
def test_a_refused_network_disables_the_button_until_another_is_chosen(runs_folder, shown, opened, form, button, name, content, reason):
    app = page(shown, opened)
    if button != "start":
        app.file_uploader(key=f"{form}/upload images 0").set_value(("cats.zip", archive(), "application/zip")).run()
    assert not app.button(key=button).disabled
    app.radio(key=f"{form}/network source 0").set_value("Upload a file").run()
    if name:
        app.file_uploader(key=f"{form}/upload network 0").set_value((name, content, "")).run()
    assert not app.exception
    assert reason in texts(app)
    assert app.button(key=button).disabled
    app.radio(key=f"{form}/network source 0").set_value("By name or path").run()
    assert errors(app) == []
    assert not app.button(key=button).disabled


@pytest.mark.slow
def test_quantize_accepts_uploaded_images_without_any_run(runs_folder):
    app = page("quantize", "quantize own/")
    app.multiselect(key="own/quick/bits").set_value([8])
    app.number_input(key="own/quick/steps").set_value(0)
    app.file_uploader(key="own/quick/upload images 0").set_value(("own cats.zip", archive(), "application/zip")).run()
    app.button(key="quantize own").click().run()
    assert not app.exception
    assert [error.value for error in app.error] == []
    (run,) = session.store().runs()
    assert run.config.methods == ("given",)
    assert run.name == "resnet20_cifar10, own cats.zip, W8A8"
    session.manager().wait(run.id)
    assert session.store().run(run.id).state is RunState.COMPLETE, session.store().run(run.id).traceback
    assert "accuracy/given/W8A8" in session.store().results(run.id)
    # also in a new session after the run
    app = page("quantize")
    table = next(table for table in tables(app) if "calibrated %" in table)
    assert list(table["images by"]) == ["given images"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"no archive", "begins with b'no archi'"), (archive(name="../{}.png"), "'../0.png' leads elsewhere")],
)
@pytest.mark.parametrize(
    ("name", "uploader", "button"),
    [("quantize", "own/quick/upload images 0", "quantize own"), ("diversity", "own diversity/upload images 0", "measure own")],
)
def test_unusable_images_start_nothing(runs_folder, name, uploader, button, content, reason):
    app = page(name, f"{name} own/")
    assert app.button(key=button).disabled
    assert "Upload images to start" in texts(app)
    app.file_uploader(key=uploader).set_value(("a.tar", content, "")).run()
    assert errors(app) == [plain("images must be a .zip or .npz file, got 'a.tar'")]
    assert app.button(key=button).disabled
    app.file_uploader(key=uploader).set_value(("a.zip", content, "application/zip")).run()
    assert errors(app) == []
    app.button(key=button).click().run()
    assert not app.exception
    (error,) = errors(app)
    assert plain(reason) in error
    assert "must" in error
    assert app.button(key=button).disabled
    assert session.store().runs() == []
    app.file_uploader(key=uploader).set_value(("b.zip", archive(), "application/zip")).run()
    assert errors(app) == []
    assert not app.button(key=button).disabled


@pytest.mark.slow
def test_diversity_of_uploaded_images(runs_folder):
    app = page("diversity", "diversity own/")
    app.file_uploader(key="own diversity/upload images 0").set_value(("cats.zip", archive(), "application/zip")).run()
    app.button(key="measure own").click().run()
    (run,) = session.store().runs()
    session.manager().wait(run.id)
    app = page("diversity")
    assert [metric.label for metric in app.metric] == ["given images", "Noise \\(reference\\)", "Real images \\(reference\\)"]
    assert app.metric[0].value == "1.000"  # all images are black
    # uploaded images can be measured and used again, like generated ones
    app.button(key="measure").click().run()
    assert not app.exception
    (again,) = [other for other in session.store().runs() if other.id != run.id]
    assert again.config.images_from == run.config.images_from
    session.manager().wait(again.id)
    assert session.store().result(again.id, "diversity/given") == session.store().result(run.id, "diversity/given")
    newest = quantized_at_8_bits(f"quantize/{again.id}/True")
    session.manager().wait(newest.id)
    assert "accuracy/given/W8A8" in session.store().results(newest.id)
    # this run measured no diversity; the page offers to, as long as the images exist
    app = page("diversity")
    assert "Open “Measure with an encoder” below" in texts(app)
    assert app.button(key="measure").label == "Measure"
    shutil.rmtree(run.config.images_from)
    app = page("diversity")
    assert "its images no longer exist" in texts(app)
    assert "measure" not in {button.key for button in app.button}


def test_uploaded_images_of_another_network_are_refused_at_their_field(runs_folder):
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as file:
        manifest = {"network": {"name": "resnet56", "weights_sha256": "0" * 64}}
        file.writestr("manifest.json", json.dumps(manifest))
        file.writestr("images.safetensors", save({"images": torch.zeros(2, 3, 32, 32, dtype=torch.uint8), "labels": torch.arange(2)}))
    app = page("quantize", "quantize own/")
    app.file_uploader(key="own/quick/upload images 0").set_value(("set.zip", made.getvalue(), "application/zip")).run()
    app.button(key="quantize own").click().run()
    assert not app.exception
    assert errors(app) == [plain("images must be made from the network to quantize, 'resnet20_cifar10', got images made from 'resnet56'")]
    assert app.button(key="quantize own").disabled
    assert session.store().runs() == []
