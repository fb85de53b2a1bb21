import json
import logging
import time

import open_clip
import pytest
import torch
import torch.nn.functional as F
from huggingface_hub import constants
from open_clip import factory
from safetensors.torch import save_file
from torchvision.transforms.v2.functional import to_pil_image

from core.data.labeled import embedded_images
from core.errors import EncoderError, UnknownNameError
from core.evaluation.encoder import EMBEDDED_FOLDER, Encoder, describe_folder, load_encoder
from core.models.registry import CIFAR10_CLASSES
from core.models.zoos import hub


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_encoder("embedded", "cpu")


def test_embedded_encoder_loads(encoder):
    assert encoder.name == "embedded"
    assert "CIFAR-10" in encoder.trained_on
    assert not encoder.model.training


def test_embeddings_have_unit_length(encoder):
    images, _ = embedded_images()
    embeddings = encoder.embed_images(images[:10], batch_size=4)
    assert embeddings.ndim == 2
    assert len(embeddings) == 10
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(10))


def test_embeddings_equal_those_of_open_clip(encoder):
    images, _ = embedded_images()
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{EMBEDDED_FOLDER}")
    pixels = torch.stack([preprocess(to_pil_image(image)) for image in images[:6]])
    with torch.no_grad():
        expected = F.normalize(model.eval().encode_image(pixels), dim=1)
    torch.testing.assert_close(encoder.embed_images(images[:6], batch_size=6), expected)
    torch.testing.assert_close(encoder.embed_images(images[:6], batch_size=1), expected, rtol=1e-4, atol=1e-5)


def test_pause_point_can_stop_the_embedding(encoder):
    images, _ = embedded_images()

    def stop() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        encoder.embed_images(images[:4], pause_point=stop)


def test_embedded_encoder_is_small():
    assert sum(path.stat().st_size for path in EMBEDDED_FOLDER.iterdir()) <= 16 * 2**20
    assert describe_folder(EMBEDDED_FOLDER) != "unknown"


@pytest.mark.slow
def test_zero_shot_accuracy_of_the_embedded_encoder():
    images, labels = embedded_images()
    source = f"local-dir:{EMBEDDED_FOLDER}"
    model, preprocess = open_clip.create_model_from_pretrained(source)
    tokens = open_clip.get_tokenizer(source)([f"a photo of a {name}" for name in CIFAR10_CLASSES])
    correct = 0
    model.visual.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        texts = F.normalize(model.eval().encode_text(tokens), dim=1)
        for start in range(0, len(images), 250):
            pixels = torch.stack([preprocess(to_pil_image(image)) for image in images[start : start + 250]])
            pixels = pixels.contiguous(memory_format=torch.channels_last)
            guesses = (model.encode_image(pixels) @ texts.T).argmax(dim=1)
            correct += int((guesses == torch.tensor(labels[start : start + 250])).sum())
    assert correct / len(images) >= 0.8


@pytest.mark.parametrize("name", ["clip", "ViT-B-32", "", "NoSuchNet:openai", ":openai"])
def test_error_for_an_unknown_name_lists_the_choices(name):
    with pytest.raises(UnknownNameError, match="unknown encoder .*must be one of embedded, ARCH:PRETRAINED .*ViT-B-32:laion2b_s34b_b79k"):
        load_encoder(name, "cpu")


def test_error_for_unknown_weights_lists_those_of_the_architecture():
    with pytest.raises(UnknownNameError, match="'RN50:bogus'.*embedded.*RN50:openai.*RN50:yfcc15m"):
        load_encoder("RN50:bogus", "cpu")


def test_failed_download_is_reported(monkeypatch):
    def no_network(*_arguments, **_options):
        raise OSError("[Errno -3] Temporary failure in name resolution\nsecond line")

    monkeypatch.setattr(open_clip.factory, "download_pretrained", no_network)
    monkeypatch.setattr(hub, "_problem", lambda address: "")
    level = logging.getLogger().level
    with pytest.raises(EncoderError, match="'RN50:openai'.*name resolution.*embedded") as caught:
        load_encoder("RN50:openai", "cpu")
    assert "\n" not in str(caught.value)
    assert logging.getLogger().level == level


def test_failure_without_a_message_is_reported(monkeypatch):
    def silent(*_arguments, **_options):
        raise TimeoutError

    monkeypatch.setattr(open_clip, "create_model_from_pretrained", silent)
    with pytest.raises(EncoderError, match="'RN50:openai'.*embedded"):
        load_encoder("RN50:openai", "cpu")


@pytest.fixture
def architecture(tmp_path, monkeypatch):
    """The name in open_clip of the architecture of the embedded encoder."""
    monkeypatch.setattr(factory, "_MODEL_CONFIG_PATHS", list(factory._MODEL_CONFIG_PATHS))
    monkeypatch.setattr(factory, "_MODEL_CONFIGS", dict(factory._MODEL_CONFIGS))
    config = json.loads((EMBEDDED_FOLDER / "open_clip_config.json").read_text(encoding="utf-8"))
    (tmp_path / "tiny-test.json").write_text(json.dumps(config["model_cfg"]), encoding="utf-8")
    open_clip.add_model_config(tmp_path / "tiny-test.json")
    return "tiny-test"


@pytest.mark.parametrize("form", ["safetensors", "training"])
def test_weights_of_a_local_file(architecture, encoder, tmp_path, form):
    weights = encoder.model.state_dict()
    path = tmp_path / ("clip.safetensors" if form == "safetensors" else "clip.pt")
    if form == "safetensors":
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)
    else:
        # as open_clip's training writes its checkpoints
        torch.save({"epoch": 3, "name": "a", "state_dict": weights}, path)
    state = torch.random.get_rng_state()
    loaded = load_encoder(f"{architecture}:{path}", "cpu")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert loaded.name == f"{architecture}:{path}"
    assert loaded.trained_on == f"unknown: weights in {path.name}"
    images = torch.rand(2, 3, *[encoder.model.visual.image_size[0]] * 2)
    with torch.no_grad():
        assert torch.equal(loaded.model.encode_image(images), encoder.model.encode_image(images))


class Code:
    def __reduce__(self):
        return print, ("executed",)


def test_a_file_that_is_no_weights_of_the_architecture_is_refused(architecture, tmp_path, capfd):
    torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "others.pt")
    torch.save({"state_dict": Code()}, tmp_path / "code.pt")
    (tmp_path / "folder.pt").mkdir()
    for name, says in (
        ("others.pt", "the file must have the weights of tiny-test under the names of open_clip"),
        ("code.pt", "could not be loaded"),
        ("folder.pt", "it is a folder"),
        ("nowhere.pt", "it does not exist"),
    ):
        with pytest.raises(EncoderError, match=says) as caught:
            load_encoder(f"{architecture}:{tmp_path / name}", "cpu")
        assert "\n" not in str(caught.value)
        assert name in str(caught.value)
    assert "executed" not in capfd.readouterr().out


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    began = time.monotonic()
    with pytest.raises(EncoderError, match=r"http://127.0.0.1:9 does not answer: .*: without network access it must be embedded"):
        load_encoder("ViT-B-32:laion2b_s34b_b79k", "cpu")
    assert time.monotonic() - began < 20  # its client alone takes 47 seconds
