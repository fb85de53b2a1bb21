"""Upload fields for networks and images, and the stored form of what was uploaded."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import streamlit as st
from streamlit.runtime.uploaded_file_manager import UploadedFile

from core.config import RunConfig, help_text, knobs, label
from core.data.archives import ALLOWED, ARCHIVE_BYTES
from core.errors import ConfigError, DataError, quoted
from core.models.registry import MODELS, GivenSpec
from dashboard import session
from dashboard.server import access, uploads

_ONE_PER_CHANNEL = "one number for each channel, such as 0.485 0.456 0.406"


@dataclass(frozen=True)
class ChosenNetwork:
    """Values of the widgets for a network. Those after `file` describe a file that `pretrain` has not written."""

    model: str
    file: UploadedFile | None
    architecture: str
    image_size: str
    mean: str
    std: str
    class_names: str


def network_widgets(default: str, key: str) -> ChosenNetwork:
    """A box of embedded and uploaded networks that accepts any name or path, an upload field, and fields for missing metadata."""
    known = {**dict.fromkeys(MODELS, "embedded"), **session.uploads().networks()}
    names = list(known) if default in known else [default, *known]
    chosen = st.selectbox(
        label(knobs(RunConfig)["model"]),
        names,
        index=names.index(default),
        format_func=lambda name: name if known.get(name, "embedded") == "embedded" else known[name],
        accept_new_options=True,
        help=f"{help_text(RunConfig, 'model')}\n\nUploaded networks are listed as well. You can type a name or path.".replace("\n", "\n\n"),
        key=f"{key}/model",
    )
    file = st.file_uploader(
        "Or upload a network",
        type=["safetensors", "pt", "pth", "pt2", "json"],  # JSON for the sentence that says what to do with an index of shards
        max_upload_size=uploads.NETWORK_BYTES // uploads.MEGABYTE,
        help="A checkpoint written by `python -m core pretrain`; another checkpoint (safetensors, or a state dict written by torch.save), "
        "with its architecture below; or a .pt2 program written by torch.export. It replaces the choice above and is listed from then on.",
        key=f"{key}/upload network {_uploads_done()}",
    )
    with st.expander("Metadata missing from the file"):
        st.caption("For checkpoints made elsewhere. Empty fields take the values of the model zoo of the architecture.")
        architecture = st.text_input(
            "Architecture",
            placeholder="torchvision:resnet18",
            help="pytorchcv:NAME, torchvision:NAME or timm:NAME. Required for a checkpoint that `pretrain` has not written.",
            key=f"{key}/architecture",
        )
        sides = "One number, or height and width."
        size = st.text_input("Image size (pixels)", placeholder="224", help=sides, key=f"{key}/image size")
        channels = "Of each channel in [0, 1], such as red, green and blue, as in the training of the network."
        mean = st.text_input("Mean", placeholder="0.485 0.456 0.406", help=channels, key=f"{key}/mean")
        std = st.text_input("Standard deviation", placeholder="0.229 0.224 0.225", help=channels, key=f"{key}/std")
        class_names = st.text_area("Class names", help="One per line, in the order of the network's outputs.", key=f"{key}/class names")
    return ChosenNetwork((chosen or "").strip(), file, architecture.strip(), size, mean, std, class_names)


def images_widget(key: str) -> UploadedFile | None:
    """An upload field for a zip file of images or a NumPy archive."""
    return st.file_uploader(
        "Images",
        type=["zip", "npz"],
        max_upload_size=ARCHIVE_BYTES // uploads.MEGABYTE,
        help="A zip file with one folder of images per class, or another layout of labeled images, all of the network's image size; or a "
        "set of images written by the Export page or `python -m core export`.",
        key=f"{key}/upload images {_uploads_done()}",
    )


def kept_network(chosen: ChosenNetwork) -> str:
    """Stores the uploaded network, if any; returns the value for `model`. Raises ConfigError, DataError or ModelError if unusable."""
    if chosen.file is None:
        return chosen.model
    with uploads.place_of(_uploader()), st.spinner("Checking the network ..."):
        if not chosen.architecture and not chosen.file.name.endswith(uploads.PROGRAM):
            return session.uploads().store_network(chosen.file, chosen.file.name)
        names = [line.strip() for line in chosen.class_names.splitlines() if line.strip()]
        return session.uploads().import_network(
            chosen.file,
            chosen.file.name,
            chosen.architecture,
            GivenSpec(
                image_size=_numbers("image size", chosen.image_size, int, 2, "one or two whole numbers, such as 224 or 32 48"),
                mean=_numbers("mean", chosen.mean, float, 4, _ONE_PER_CHANNEL),
                std=_numbers("standard deviation", chosen.std, float, 4, _ONE_PER_CHANNEL),
                class_names=names or None,
            ),
        )


def _numbers(name: str, typed: str, kind: Callable[[str], Any], most: int, allowed: str) -> list[Any] | None:
    """The numbers in a field, None if it is empty. Raises ConfigError for any other text, or more than `most` of them."""
    try:
        numbers = [kind(number) for number in typed.replace(",", " ").split()]
        fits = len(numbers) <= most
    except ValueError:
        fits = False
    if not fits:
        raise ConfigError(f"{name} must be {allowed}, got {quoted(typed)}")
    return numbers or None


def kept_images(file: UploadedFile | None) -> str:
    """Stores the uploaded images; returns their folder, for `images_from`. Raises DataError if there is no file or it cannot be used."""
    if file is None:
        raise DataError(f"images must be {ALLOWED}, got no file")
    with uploads.place_of(_uploader()), st.spinner("Checking the images ..."):
        return str(session.uploads().store_images(file, file.name))


def _uploader() -> str:
    """The user who is logged in, or where nobody logs in, this session."""
    return access.user() or st.session_state.setdefault("uploader", uuid.uuid4().hex)


def forget_uploads() -> None:
    """Clears the upload fields and frees their memory. Called after a run was started with the files."""
    st.session_state["uploads done"] = _uploads_done() + 1


def _uploads_done() -> int:
    return st.session_state.get("uploads done", 0)
