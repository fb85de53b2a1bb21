import logging

import open_clip
import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms.v2.functional import to_pil_image

from core.data.labeled import embedded_images
from core.errors import EncoderError, UnknownNameError
from core.evaluation.encoder import EMBEDDED_FOLDER, Encoder, describe_folder, load_encoder
from core.models.registry import CIFAR10_CLASSES


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
