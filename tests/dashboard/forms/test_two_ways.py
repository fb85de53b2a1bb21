"""The first page of a fresh server: the embedded network with one click, and a network of the user from its file alone."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from app_pages import page, texts

from core.config import PRESETS
from core.errors import ModelError
from core.models.full_precision import build_architecture, find_model
from core.models.identification import Candidate, Identified
from core.models.zoos.zoo import numbered_classes
from dashboard import session
from dashboard.forms import two_ways
from dashboard.server import uploads
from dashboard.text import plain

FOUND = Candidate("timm:resnet18", "resnet18 of timm", 1.0, True, 37, 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "weights of timm")


@pytest.fixture
def found(monkeypatch):
    """Sets what the dropped file is, and where it is stored; returns what was asked for and stored."""
    calls = {"asked": [], "stored": []}

    def identified(*candidates, error=None):
        def identify(path, name):
            calls["asked"].append((path.read_bytes(), name))
            if error is not None:
                raise error
            return Identified(candidates)

        def store(self, file, name, architecture="", given=None):
            calls["stored"].append((architecture, given))
            return "uploads/networks/best.safetensors"

        monkeypatch.setattr(uploads, "identify", identify)
        for method in ("import_network", "store_network"):
            monkeypatch.setattr(uploads.Uploads, method, store)
        return calls

    return identified


def dropped(name="best.pth", content=b"weights"):
    app = page("studio")
    app.file_uploader(key="own network/upload network 0").set_value((name, content, "")).run()
    assert not app.exception, app.exception
    return app


def field(app, name):
    (one,) = [text for text in app.text_input if text.key.endswith(f"/{name}")]
    return one


def press(app):
    app.button(key="start own").click().run()
    assert not app.exception, app.exception


def test_the_embedded_network_starts_with_one_click(started):
    app = page("studio")
    assert app.button(key="start own").disabled
    app.button(key="try").click().run()
    assert not app.exception
    assert started == [PRESETS["quick"]]
    assert app.query_params["run"] == session.store().runs()[0].id


def test_a_file_that_was_found_out_starts_without_a_word(started, found):
    calls = found(FOUND)
    app = dropped()
    assert "resnet18 of timm, 37 classes, 224 pixels; normalization as in weights of timm." in texts(app)
    assert "Architecture" not in [box.label for box in app.selectbox]
    assert [field(app, name).value for name in ("image size", "mean")] == ["224", "0.485 0.456 0.406"]
    press(app)
    (config,) = started
    assert (config.model, config.bits, config.methods) == (str(Path("uploads/networks/best.safetensors")), (4,), ("mi-fgsm",))
    assert config.generation == PRESETS["imagenet"].generation
    assert config.evaluation.encoder == ""
    assert config.machine.budget == 5
    # once for a file, although the page was drawn several times
    assert calls["asked"] == [(b"weights", "best.pth")]
    # what nobody changed is left to the zoo
    ((architecture, given),) = calls["stored"]
    assert architecture == "timm:resnet18"
    assert (given.image_size, given.mean, given.std, given.class_names) == (None, None, None, None)


def test_changed_values_and_bit_widths_are_used(started, found):
    calls = found(FOUND)
    app = dropped()
    field(app, "image size").set_value("48 32")
    field(app, "mean").set_value("0.5 0.5 0.5")
    app.multiselect(key="own network/bits").set_value([3, 5])
    app.selectbox(key="own network/time").set_value("30 minutes")
    press(app)
    assert started[0].machine.budget == 30
    assert started[0].bits == (3, 5)
    assert started[0].generation == PRESETS["quick"].generation  # small images
    assert (calls["stored"][0][1].image_size, calls["stored"][0][1].mean) == ([48, 32], [0.5, 0.5, 0.5])


def test_a_time_can_be_typed(started, found, monkeypatch):
    monkeypatch.setattr(two_ways, "_TIMES", ("5 minutes", "soon", "1h30m"))  # AppTest cannot set what is not among the options
    found(FOUND)
    app = dropped()
    app.selectbox(key="own network/time").set_value("soon").run()
    assert [error.value for error in app.error] == [plain("time must be written like 90s, 10m or 1h30m, got 'soon'")]
    assert app.button(key="start own").disabled
    app.selectbox(key="own network/time").set_value("1h30m").run()
    press(app)
    assert started[0].machine.budget == 90


def test_another_candidate_can_be_chosen(started, found):
    calls = found(FOUND, replace(FOUND, architecture="timm:resnet18d", title="resnet18d of timm", image_size=256))
    app = dropped()
    (box,) = [box for box in app.selectbox if box.label == "Architecture"]
    assert box.options == ["resnet18 of timm", "resnet18d of timm"]
    box.set_value("timm:resnet18d").run()
    assert field(app, "image size").value == "256"
    press(app)
    assert calls["stored"][0][0] == "timm:resnet18d"


def test_a_network_that_fits_in_part_is_refused_until_another_is_chosen(started, found):
    found(replace(FOUND, fit=0.871, whole=False), replace(FOUND, architecture="timm:b", title="b of timm"))
    app = dropped()
    assert [error.value for error in app.error] == [
        plain(
            "'best.pth' must have the tensors of resnet18 of timm, and 87% of them fit: choose another architecture, or export the "
            "network, a classifier, as a .pt2 program"
        )
    ]
    assert "torch.export.save(program" in app.code[0].value
    assert app.button(key="start own").disabled
    next(box for box in app.selectbox if box.label == "Architecture").set_value("timm:b").run()
    assert not app.error
    press(app)
    assert len(started) == 1


def test_only_what_the_file_does_not_tell_is_asked(started, found):
    calls = found(replace(FOUND, architecture="", title="a program of torch.export", mean=(), std=()))
    app = dropped("best.pt2")
    assert texts(app).count("The file does not tell; take the value of its training.") == 2
    assert app.button(key="start own").disabled
    field(app, "mean").set_value("0.5")
    field(app, "standard deviation").set_value("0.25").run()
    press(app)
    given = calls["stored"][0][1]
    assert (given.image_size, given.mean, given.std) == ([224], [0.5], [0.25])
    assert len(started) == 1


def test_a_checkpoint_of_pretrain_asks_nothing(started, found):
    calls = found(replace(FOUND, architecture="", title="mine", image_size=32, source="the file"))
    app = dropped("mine.safetensors")
    assert "mine, 37 classes, 32 pixels; normalization as in the file." in texts(app)
    assert not [one for one in app.text_input if one.key.startswith("own network/")]
    press(app)
    assert calls["stored"] == [("", None)]
    assert started[0].generation == PRESETS["quick"].generation


def test_a_network_refused_at_start_disables_start_until_another_is_dropped(started, found, monkeypatch):
    found(FOUND)

    def refuse(self, file, name, architecture="", given=None):
        raise ModelError("tensors of 'best.pth' must be finite, got fc.weight")

    monkeypatch.setattr(uploads.Uploads, "import_network", refuse)
    app = dropped()
    press(app)
    assert [error.value for error in app.error] == [plain("tensors of 'best.pth' must be finite, got fc.weight")]
    assert app.button(key="start own").disabled
    assert started == []
    app.file_uploader(key="own network/upload network 0").set_value(("other.pth", b"others", "")).run()
    assert not app.error
    assert not app.button(key="start own").disabled


@pytest.mark.parametrize(
    ("name", "error", "reason"),
    [
        ("network.txt", None, "network must be a .safetensors, .pt, .pth or .pt2 file, got 'network.txt'"),
        ("network.onnx", None, "got an ONNX file, in which the BatchNorm layers are usually folded"),
        ("best.pth", ModelError("'best.pth' must have tensors, got none"), "'best.pth' must have tensors, got none"),
    ],
)
def test_a_refused_file_disables_start_until_another_is_dropped(started, found, name, error, reason):
    calls = found(FOUND, error=error)
    app = dropped(name)
    (refusal,) = app.error
    assert plain(reason) in refusal.value
    assert app.button(key="start own").disabled
    app.run()
    assert len(calls["asked"]) == (error is not None)  # not again for each drawing
    found(FOUND)
    app.file_uploader(key="own network/upload network 0").set_value(("other.pth", b"others", "")).run()
    assert not app.error
    assert not app.button(key="start own").disabled


def test_nothing_found_asks_for_the_architecture(started, found):
    found()
    app = dropped()
    assert "architecture of 'best.pth' must be timm:NAME" in texts(app)
    assert app.button(key="start own").disabled


def test_no_bit_width_disables_start(started, found):
    found(FOUND)
    app = dropped()
    app.multiselect(key="own network/bits").set_value([]).run()
    assert app.button(key="start own").disabled
    assert "Choose at least one bit width." in texts(app)


def test_settings_for_small_and_large_images():
    assert two_ways.own_config(64, [4], 5.0).generation == PRESETS["quick"].generation
    assert two_ways.own_config(65, [4], 5.0).generation == PRESETS["imagenet"].generation


@pytest.mark.slow
@pytest.mark.parametrize("classes", [7, 10])
def test_a_stranger_with_another_head_is_imported(started, tmp_path, classes):
    """With the real identification and import. Ten classes are as many as CIFAR-10 has, by chance: its images must not measure them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = build_architecture("pytorchcv:resnet20_cifar10", classes, 3).train()
        with torch.no_grad():
            network(torch.randn(8, 3, 32, 32))  # so that the running statistics are not the initial ones
    torch.save({"state_dict": {f"module.{key}": value for key, value in network.state_dict().items()}}, tmp_path / "best.pth")
    app = dropped(content=(tmp_path / "best.pth").read_bytes())
    assert not app.error
    assert f"{classes} classes, 32 pixels" in texts(app)
    press(app)
    spec = find_model(started[0].model)[1]
    assert (spec.classes, spec.image_size) == (numbered_classes(classes), 32)
