"""Recipe of the embedded CLIP encoder: contrastive training of a small image and text tower on labeled images with captions.

A caption states the class of an image and, each with probability 1/2, its brightness and its dominant color, which are computed from the
pixels so that images of one class keep different embeddings. A caption is often true of several images of a batch, so that the usual loss
with one positive would push true pairs apart; here every caption that is true of an image is a positive, as in UniCL (Yang et al. 2022,
"Unified Contrastive Learning in Image-Text-Label Space").

The result is a folder in open_clip's format (`open_clip_config.json`, `open_clip_model.safetensors`), which
`open_clip.create_model_from_pretrained("local-dir:FOLDER")` opens without this project.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from core.config import EncoderTrainingConfig
from core.data.labeled import LabeledImages
from core.errors import DataError
from core.layout import plain_rights
from core.recipes.mixed_precision import bfloat16_autocast
from core.schedules import cosine_below_warm_up
from core.threads import cpu_threads

TEMPLATES = (
    "a photo of a {}",
    "a picture of a {}",
    "a small photo of a {}",
    "a blurry photo of a {}",
    "a {}",
)
BRIGHTNESS = ("dark", "", "bright")
TONES = ("gray", "red", "brown", "green", "blue", "purple")

OPEN_CLIP_CONFIG: dict[str, dict[str, Any]] = {
    "model_cfg": {
        "embed_dim": 128,
        # 32-pixel images are enlarged to 64: resnet10t divides by 32, and a last map of 2 x 2 is clearly better than one of 1 x 1
        "vision_cfg": {"timm_model_name": "resnet10t", "timm_pool": "avg", "timm_proj": "linear", "image_size": 64},
        # open_clip's tokenizer has 49,408 tokens; with a width of 32, their table has 1.6 M parameters
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 2},
    },
    "preprocess_cfg": {
        "mean": [0.4914, 0.4822, 0.4465],
        "std": [0.2470, 0.2435, 0.2616],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    },
}


def describe_pixels(image: Tensor) -> tuple[int, int]:
    """Brightness and dominant color of an image `(3, H, W)` in [0, 1], as indices into BRIGHTNESS and TONES."""
    mean = image.mean(dim=(1, 2))
    luminance = float(mean @ torch.tensor([0.299, 0.587, 0.114]))
    brightness = 0 if luminance < 0.38 else 2 if luminance > 0.57 else 1
    red, green, blue = mean.tolist()
    value, chroma = max(red, green, blue), max(red, green, blue) - min(red, green, blue)
    if chroma <= 0.12 * value:
        tone = "gray"
    elif value == blue:
        tone = "purple" if red > green else "blue"
    elif value == green:
        tone = "green"
    else:
        tone = "purple" if blue > green else "brown" if green - blue > 0.3 * chroma else "red"
    return brightness, TONES.index(tone)


def caption(class_name: str, template: str, brightness: str = "", tone: str = "") -> str:
    """One caption: `caption("cat", "a photo of a {}", "dark", "gray")` is "a photo of a cat, dark, mostly gray"."""
    parts = [template.format(class_name)]
    if brightness:
        parts.append(brightness)
    if tone:
        parts.append(f"mostly {tone}")
    return ", ".join(parts)


def caption_targets(facts: Tensor, stated: Tensor) -> Tensor:
    """Which captions are true of which images: `(N, M)` float, 1 if caption m is true of image n.

    facts: `(N, 3)` class, brightness and tone of each image; stated: `(M, 3)` the same of each caption, -1 for what it does not state.
    """
    true = (facts[:, None, :] == stated[None, :, :]) | (stated[None, :, :] == -1)
    return true.all(dim=-1).float()


def contrastive_loss(image_features: Tensor, text_features: Tensor, scale: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy between the softmax of scaled cosines and the uniform distribution over true pairs, mean of both directions.

    image_features, text_features: `(N, D)`, L2-normalized; targets: `(N, N)` of 0 and 1 with the diagonal 1.
    """
    logits = scale * image_features @ text_features.T
    by_image = F.cross_entropy(logits, targets / targets.sum(dim=1, keepdim=True))
    by_text = F.cross_entropy(logits.T, targets.T / targets.T.sum(dim=1, keepdim=True))
    return (by_image + by_text) / 2


class _CaptionedImages(Dataset):
    """Images of a labeled set, augmented and enlarged, with the three facts that captions state."""

    def __init__(self, base: LabeledImages, crop_padding: int, size: int) -> None:
        self.base = base
        preprocess = OPEN_CLIP_CONFIG["preprocess_cfg"]
        self.to_tensor = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
        self.augment = v2.Compose([v2.Pad(crop_padding, padding_mode="reflect"), v2.RandomHorizontalFlip()])
        self.finish = v2.Compose(
            [
                v2.Resize(size, interpolation=v2.InterpolationMode.BICUBIC),
                self.to_tensor,
                v2.Normalize(preprocess["mean"], preprocess["std"]),
            ]
        )

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, label = self.base[index]
        facts = torch.tensor([label, *describe_pixels(self.to_tensor(image))])
        crop = v2.RandomCrop((image.height, image.width))
        return self.finish(crop(self.augment(image))), facts


def _write_captions(facts: Tensor, classes: list[str], generator: torch.Generator) -> tuple[list[str], Tensor]:
    """A caption for each image, and what it states, -1 for nothing: brightness and tone each with probability 1/2."""
    is_stated = torch.rand(len(facts), 2, generator=generator) < 0.5
    stated = facts.clone()
    stated[:, 1:][~is_stated] = -1
    stated[stated[:, 1] == BRIGHTNESS.index(""), 1] = -1  # medium brightness has no word
    choice = torch.randint(len(TEMPLATES), (len(facts),), generator=generator).tolist()
    texts = []
    for (label, brightness, tone), template in zip(stated.tolist(), choice):
        texts.append(
            caption(
                classes[label],
                TEMPLATES[template],
                BRIGHTNESS[brightness] if brightness >= 0 else "",
                TONES[tone] if tone >= 0 else "",
            )
        )
    return texts, stated


def train_encoder(
    dataset: LabeledImages,
    classes: list[str],
    config: EncoderTrainingConfig,
    out: Path,
    trained_on: str,
    on_step: Callable[[int, int, float], None] | None = None,
) -> Path:
    """Trains both towers on `dataset` and writes them to the folder `out` in half precision, in open_clip's format. Returns `out`.

    dataset: yields (PIL image, class index), as torchvision's datasets without a transform do.
    classes: name of each class index in captions.
    trained_on: description of the dataset, shown beside the encoder's figures.
    on_step: called with (step, steps, loss) after every step.
    Raises DataError if the dataset has fewer images than one batch.
    """
    if len(dataset) < config.batch_size:
        raise DataError(f"the training set must have at least one batch of {config.batch_size} images, got {len(dataset)}")
    out.mkdir(parents=True, exist_ok=True)
    # open_clip reads the architecture from the same file that is shipped with the weights
    (out / "open_clip_config.json").write_text(
        json.dumps({**OPEN_CLIP_CONFIG, "trained_on": trained_on}, indent=2) + "\n", encoding="utf-8"
    )
    with cpu_threads(config.threads), torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = open_clip.create_model(f"local-dir:{out}", load_weights=False)
        _fit(model, open_clip.get_tokenizer(f"local-dir:{out}"), dataset, classes, config, on_step)
    weights = {name: value.half() if value.is_floating_point() else value for name, value in model.state_dict().items()}
    path = out / "open_clip_model.safetensors"
    save_file({name: value.contiguous() for name, value in weights.items()}, path)
    plain_rights(path)
    return out


def _fit(model: open_clip.CLIP, tokenizer, dataset, classes, config: EncoderTrainingConfig, on_step) -> None:
    generator = torch.Generator().manual_seed(config.seed)
    loader = DataLoader(
        _CaptionedImages(dataset, config.crop_padding, OPEN_CLIP_CONFIG["model_cfg"]["vision_cfg"]["image_size"]),
        batch_size=config.batch_size,
        shuffle=True,
        drop_last=True,
        generator=generator,
    )
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}], lr=config.lr
    )
    steps = config.epochs * len(loader)
    warm_up = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cosine_below_warm_up(step, steps, warm_up))
    model.train()
    model.visual.to(memory_format=torch.channels_last)
    step = 0
    for _ in range(config.epochs):
        for images, facts in loader:
            texts, stated = _write_captions(facts, classes, generator)
            # bfloat16 for the convolutions only: the text tower is small, and its sums over positions need float32
            with bfloat16_autocast(torch.device("cpu")):
                image_features = model.encode_image(images.to(memory_format=torch.channels_last))
            text_features = model.encode_text(tokenizer(texts), normalize=True)
            loss = contrastive_loss(
                F.normalize(image_features.float(), dim=-1),
                text_features,
                model.logit_scale.exp(),
                caption_targets(facts, stated),
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                model.logit_scale.clamp_(max=math.log(100))  # the bound of CLIP
            step += 1
            if on_step is not None:
                on_step(step, steps, float(loss.detach()))
    model.eval()
