"""CLIP encoders, all through open_clip: the embedded one, and any architecture with pretrained weights or weights of a file."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from core.channels import as_rgb
from core.data.sharded_images import Images
from core.errors import EncoderError, ModelError, UnknownNameError, first_line
from core.models.full_precision import resolve_device
from core.models.registry import ASSETS
from core.models.zoos.hub import hub_asked_once
from core.untrusted import check_apart

EMBEDDED = "embedded"
EMBEDDED_FOLDER = ASSETS / "encoder"
_FORMS = ("ARCH:PRETRAINED as open_clip lists them, such as ViT-B-32:laion2b_s34b_b79k", "ARCH:FILE with a file of weights")
_OFFLINE = f": without network access it must be {EMBEDDED} or ARCH:FILE"


@dataclass
class Encoder:
    """A CLIP model with its preprocessing. `trained_on` is shown beside every figure that was measured with it."""

    name: str
    trained_on: str
    model: Any  # open_clip's CLIP, or another of its classes with encode_image
    preprocess: Callable[[Any], Tensor]
    device: torch.device

    @torch.no_grad()
    def embed_images(self, images: Images, batch_size: int = 128, pause_point: Callable[[], None] | None = None) -> Tensor:
        """uint8 `(N, C, H, W)`, in RGB by `as_rgb`, -> L2-normalized embeddings `(N, D)` on the CPU, with open_clip's preprocessing.

        pause_point: called between batches; may raise to stop early.
        """
        features = []
        for batch in images.split(batch_size):
            if pause_point is not None:
                pause_point()
            pixels = torch.stack([self.preprocess(to_pil_image(image)) for image in as_rgb(batch)]).to(self.device)
            features.append(F.normalize(self.model.encode_image(pixels), dim=-1).cpu())
        return torch.cat(features)


def load_encoder(name: str = EMBEDDED, device: str = "auto") -> Encoder:
    """The encoder `name`, with open_clip's preprocessing.

    name: `embedded`; `ARCH:PRETRAINED` as open_clip names them, such as `ViT-B-32:laion2b_s34b_b79k`, downloaded on first use; or
    `ARCH:FILE`, a file of weights as open_clip and its training save them. open_clip shows the progress of a download on stderr.
    Raises UnknownNameError for a name that open_clip does not have, and EncoderError if the weights cannot be loaded.
    """
    target = resolve_device(device)
    return _embedded(target) if name == EMBEDDED else _load(name, target)


@cache
def _embedded(device: torch.device) -> Encoder:
    """Loaded once for all runs of a process."""
    return _load(EMBEDDED, device)


def _load(name: str, target: torch.device) -> Encoder:
    architecture, _, pretrained = name.partition(":")
    if name == EMBEDDED:
        source, trained_on = f"local-dir:{EMBEDDED_FOLDER}", describe_folder(EMBEDDED_FOLDER)
        arguments: dict[str, str] = {}
        advice = ""
    else:
        if architecture not in open_clip.list_models() or not pretrained:
            raise UnknownNameError("encoder", name, [EMBEDDED, *_FORMS])
        trained_on, advice = _weights_of(name)
        source, arguments = architecture, {"pretrained": pretrained}
    try:
        # the initial weights are overwritten, so drawing them must not advance the global random number generator
        with _quiet_log(), hub_asked_once() if advice == _OFFLINE else nullcontext(), torch.random.fork_rng(devices=[]):
            model, preprocess = open_clip.create_model_from_pretrained(source, device=target, **arguments)
    except Exception as error:  # a download can raise many types of error, depending on the hub
        raise EncoderError(f"encoder {name!r} could not be loaded ({first_line(error)}){advice}") from error
    return Encoder(name, trained_on, model.eval(), preprocess, target)


def _weights_of(name: str) -> tuple[str, str]:
    """What the encoder ARCH:PRETRAINED or ARCH:FILE was trained on, and what to do if its weights cannot be loaded.

    Raises UnknownNameError and EncoderError as `load_encoder` does. A file is read first in a process of its own.
    """
    architecture, _, pretrained = name.partition(":")
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if pretrained in tags:
        return pretrained, _OFFLINE
    path = Path(pretrained)
    if not path.suffix:
        raise UnknownNameError("encoder", name, [EMBEDDED, *(f"{architecture}:{tag}" for tag in tags), f"{architecture}:FILE"])
    try:
        check_apart("core.models.state_dicts:count_tensors", path, pretrained, error=EncoderError, imports=("core.models.state_dicts",))
    except ModelError as error:
        raise EncoderError(f"encoder {name!r} could not be loaded: {error}") from error
    except OSError as error:
        raise EncoderError(f"encoder {name!r} could not be loaded: its file cannot be read ({error.strerror or error})") from error
    return f"unknown: weights in {path.name}", f": the file must have the weights of {architecture} under the names of open_clip"


def describe_folder(folder: Path) -> str:
    """What the encoder in an open_clip folder was trained on, from its config."""
    return str(json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8")).get("trained_on", "unknown"))


@contextmanager
def _quiet_log() -> Iterator[None]:
    """Silences open_clip, which logs every step of loading a model on the root logger; its exceptions are sufficient."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        root.setLevel(before)
