"""Widgets for what a user brings: a network, a weights file, images."""

from __future__ import annotations

from dataclasses import dataclass

import streamlit as st
from streamlit.runtime.uploaded_file_manager import UploadedFile

from core.config import RunConfig, help_text, knobs, label
from core.data.archives import ALLOWED, ARCHIVE_BYTES
from core.errors import ConfigError, DataError, quoted
from core.models.registry import MODELS, GivenSpec
from dashboard import session
from dashboard.server import uploads


@dataclass(frozen=True)
class ChosenNetwork:
    """What the widgets for a network say. The fields after the file are about a file without a header of ours."""

    model: str
    file: UploadedFile | None
    architecture: str
    image_size: int | None
    mean: str
    std: str
    class_names: str


def network_widgets(default: str, key: str) -> ChosenNetwork:
    """A box of embedded and uploaded networks that also takes a name or a path, and places for a file and what has to be known of it."""
    known = {**dict.fromkeys(MODELS, "embedded"), **session.uploads().networks()}
    names = list(known) if default in known else [default, *known]
    chosen = st.selectbox(
        label(knobs(RunConfig)["model"]),
        names,
        index=names.index(default),
        format_func=lambda name: name if known.get(name, "embedded") == "embedded" else known[name],
        accept_new_options=True,
        help=f"{help_text(RunConfig, 'model')}\n\nUploaded networks are listed too; a name or path can be typed.".replace("\n", "\n\n"),
        key=f"{key}/model",
    )
    file = st.file_uploader(
        "Or upload a network",
        type=["safetensors", "pt", "pth", "pt2"],
        max_upload_size=uploads.NETWORK_BYTES // uploads.MEGABYTE,
        help="A checkpoint as `python -m core pretrain` writes it, another (safetensors, or a state dict by torch.save) whose "
        "architecture is given below, or a .pt2 program by torch.export. It is used instead of the one above, and listed from then on.",
        key=f"{key}/upload network {_uploads_done()}",
    )
    with st.expander("Metadata missing from the file"):
        st.caption("For checkpoints made elsewhere. What is left empty comes from the architecture's zoo.")
        architecture = st.text_input(
            "Architecture",
            placeholder="torchvision:resnet18",
            help="pytorchcv:NAME, torchvision:NAME or timm:NAME. Needed for a checkpoint that `pretrain` has not written.",
            key=f"{key}/architecture",
        )
        size = st.number_input("Image size (pixels)", min_value=1, max_value=1024, value=None, step=1, key=f"{key}/image size")
        channels = "Of red, green and blue in [0, 1], as in training."
        mean = st.text_input("Mean", placeholder="0.485 0.456 0.406", help=channels, key=f"{key}/mean")
        std = st.text_input("Standard deviation", placeholder="0.229 0.224 0.225", help=channels, key=f"{key}/std")
        class_names = st.text_area("Class names", help="One a line, in the order of the network's scores.", key=f"{key}/class names")
    return ChosenNetwork((chosen or "").strip(), file, architecture.strip(), size, mean, std, class_names)


def images_widget(key: str) -> UploadedFile | None:
    """A place for an archive of images."""
    return st.file_uploader(
        "Images",
        type=["zip", "npz"],
        max_upload_size=ARCHIVE_BYTES // uploads.MEGABYTE,
        help="A zip file with one folder of images (png, jpg, bmp, webp) per class, all of the network's image size; or a set of images "
        "written by the Export page or `python -m core export`.",
        key=f"{key}/upload images {_uploads_done()}",
    )


def kept_network(chosen: ChosenNetwork) -> str:
    """The network of `network_widgets` as a model's name. Raises ConfigError, DataError or ModelError for what cannot be used."""
    if chosen.file is None:
        return chosen.model
    with st.spinner("Checking the network ..."):
        if not chosen.architecture and not chosen.file.name.endswith(uploads.PROGRAM):
            return session.uploads().store_network(chosen.file, chosen.file.name)
        names = [line.strip() for line in chosen.class_names.splitlines() if line.strip()]
        return session.uploads().import_network(
            chosen.file,
            chosen.file.name,
            chosen.architecture,
            GivenSpec(
                image_size=chosen.image_size,
                mean=_three_numbers("mean", chosen.mean),
                std=_three_numbers("standard deviation", chosen.std),
                class_names=names or None,
            ),
        )


def _three_numbers(name: str, typed: str) -> list[float] | None:
    """None where nothing was typed."""
    try:
        numbers = [float(number) for number in typed.replace(",", " ").split()]
    except ValueError:
        numbers = [0.0]
    if len(numbers) not in (0, 3):
        raise ConfigError(f"{name} is {quoted(typed)}: allowed are three numbers, such as 0.485 0.456 0.406")
    return numbers or None


def kept_images(file: UploadedFile | None) -> str:
    """The images of `images_widget` as a folder for `images_from`. Raises DataError when there is no file or it cannot be used."""
    if file is None:
        raise DataError(f"no file with images was chosen: allowed is {ALLOWED}")
    with st.spinner("Checking the images ..."):
        return str(session.uploads().store_images(file, file.name))


def forget_uploads() -> None:
    """Empties the places for files, which also frees their memory. Called when a run has started with them."""
    st.session_state["uploads done"] = _uploads_done() + 1


def _uploads_done() -> int:
    return st.session_state.get("uploads done", 0)
