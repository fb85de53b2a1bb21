import json

import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from core.config import EncoderTrainingConfig
from core.errors import DataError
from core.recipes.encoder import (
    BRIGHTNESS,
    OPEN_CLIP_CONFIG,
    TONES,
    _write_captions,
    caption,
    caption_targets,
    contrastive_loss,
    describe_pixels,
    train_encoder,
)

COLORS = [(250, 10, 10), (10, 250, 10), (10, 10, 250), (240, 240, 240), (5, 5, 5), (120, 80, 40), (160, 40, 200), (128, 128, 128)]


def plain(red: float, green: float, blue: float) -> torch.Tensor:
    return torch.tensor([red, green, blue]).view(3, 1, 1).expand(3, 8, 8)


@pytest.mark.parametrize(
    ("color", "brightness", "tone"),
    [
        ((0.0, 0.0, 0.0), "dark", "gray"),
        ((0.05, 0.05, 0.05), "dark", "gray"),
        ((0.5, 0.5, 0.5), "", "gray"),
        ((1.0, 1.0, 1.0), "bright", "gray"),
        ((1.0, 0.0, 0.0), "dark", "red"),
        ((0.0, 1.0, 0.0), "bright", "green"),
        ((0.0, 0.0, 1.0), "dark", "blue"),
        ((0.4, 0.26, 0.13), "dark", "brown"),
        ((0.5, 0.0, 0.5), "dark", "purple"),
        ((0.6, 0.8, 1.0), "bright", "blue"),
    ],
)
def test_brightness_and_tone_of_plain_colors(color, brightness, tone):
    assert describe_pixels(plain(*color)) == (BRIGHTNESS.index(brightness), TONES.index(tone))


def test_caption():
    assert caption("cat", "a photo of a {}", "dark", "gray") == "a photo of a cat, dark, mostly gray"
    assert caption("cat", "a {}", tone="red") == "a cat, mostly red"
    assert caption("cat", "a {}") == "a cat"


def test_targets_by_hand():
    dark_gray_cat, bright_gray_cat, dark_gray_dog = [3, 0, 0], [3, 2, 0], [5, 0, 0]
    facts = torch.tensor([dark_gray_cat, bright_gray_cat, dark_gray_dog])
    stated = torch.tensor([[3, -1, -1], [3, 0, -1], [5, -1, 0], [3, 2, 0], [5, 2, -1]])
    assert caption_targets(facts, stated).tolist() == [
        [1, 1, 0, 0, 0],
        [1, 0, 0, 1, 0],
        [0, 0, 1, 0, 0],
    ]


def features(seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(6, 5, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_loss_without_shared_captions_equals_open_clip():
    images, texts, scale = features(0).requires_grad_(), features(1).requires_grad_(), torch.tensor(14.0)
    loss = contrastive_loss(images, texts, scale, torch.eye(6))
    expected = open_clip.ClipLoss()(images, texts, scale)
    torch.testing.assert_close(loss, expected)
    for mine, theirs in zip(torch.autograd.grad(loss, [images, texts]), torch.autograd.grad(expected, [images, texts])):
        torch.testing.assert_close(mine, theirs)


def test_loss_spreads_evenly_over_true_pairs():
    # all cosines are equal: every softmax is uniform, so every cross entropy is ln 6
    same = torch.ones(6, 4) / 2
    targets = torch.eye(6)
    targets[0, 1:4] = 1
    torch.testing.assert_close(contrastive_loss(same, same, torch.tensor(10.0), targets), torch.tensor(6.0).log())
    # two images share both captions: the optimum puts half on each, at a loss of ln 2
    features = torch.eye(2)[[0, 0, 1, 1]]
    targets = torch.block_diag(torch.ones(2, 2), torch.ones(2, 2))
    loss = contrastive_loss(features, features, torch.tensor(100.0), targets)
    torch.testing.assert_close(loss, torch.tensor(2.0).log())
    assert contrastive_loss(features, features, torch.tensor(100.0), torch.eye(4)) >= loss - 1e-6


def test_caption_text_contains_what_it_states():
    generator = torch.Generator().manual_seed(0)
    facts = torch.stack([torch.randint(high, (300,), generator=generator) for high in (2, len(BRIGHTNESS), len(TONES))], dim=1)
    texts, stated = _write_captions(facts, ["cat", "dog"], generator)
    for text, fact, (label, brightness, tone) in zip(texts, facts.tolist(), stated.tolist()):
        assert label == fact[0]
        assert ["cat", "dog"][label] in text
        words = text.split(", ")[1:]
        tones = [word.removeprefix("mostly ") for word in words if word.startswith("mostly ")]
        levels = [word for word in words if not word.startswith("mostly ")]
        assert tones == ([TONES[fact[2]]] if tone >= 0 else [])
        # a text that does not mention brightness is true of any brightness
        assert levels == ([BRIGHTNESS[fact[1]]] if brightness >= 0 else []), text
    assert {len(text.split(", ")) for text in texts} == {1, 2, 3}


def color_images() -> list[tuple[Image.Image, int]]:
    return [(Image.new("RGB", (32, 32), color), i % 2) for i, color in enumerate(COLORS)]


def test_open_clip_loads_the_trained_encoder(tmp_path):
    steps, before = [], torch.get_rng_state()
    config = EncoderTrainingConfig(epochs=1, batch_size=4, threads=1)
    out = train_encoder(color_images(), ["cat", "dog"], config, tmp_path / "encoder", "eight plain images", lambda *s: steps.append(s))
    assert torch.equal(torch.get_rng_state(), before)
    assert [step[:2] for step in steps] == [(1, 2), (2, 2)]
    assert sorted(path.name for path in out.iterdir()) == ["open_clip_config.json", "open_clip_model.safetensors"]
    assert json.loads((out / "open_clip_config.json").read_text(encoding="utf-8"))["trained_on"] == "eight plain images"
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{out}")
    tokens = open_clip.get_tokenizer(f"local-dir:{out}")(["a photo of a cat"])
    with torch.no_grad():
        image = model.eval().encode_image(preprocess(color_images()[0][0])[None])
        text = model.encode_text(tokens)
    assert image.shape == text.shape == (1, OPEN_CLIP_CONFIG["model_cfg"]["embed_dim"])
    assert torch.isfinite(image).all()
    assert torch.isfinite(text).all()


def test_same_seed_same_encoder(tmp_path):
    config = EncoderTrainingConfig(epochs=1, batch_size=8, threads=1)
    files = []
    for name in ("first", "second"):
        out = train_encoder(color_images(), ["cat", "dog"], config, tmp_path / name, "eight plain images")
        files.append((out / "open_clip_model.safetensors").read_bytes())
    assert files[0] == files[1]


def test_fewer_images_than_a_batch_are_refused(tmp_path):
    with pytest.raises(DataError, match="must have at least one batch of 9 images, got 8"):
        train_encoder(color_images(), ["cat", "dog"], EncoderTrainingConfig(batch_size=9), tmp_path / "encoder", "")
    assert not (tmp_path / "encoder").exists()
