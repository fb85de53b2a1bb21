"""Upload fields for networks and images, and the stored form of what was uploaded."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import streamlit as st
from streamlit.runtime.uploaded_file_manager import UploadedFile

from core.config import RunConfig, help_text, knobs, label
from core.data.archives import ALLOWED, ARCHIVE_BYTES
from core.errors import ConfigError, quoted
from core.models.architecture_index import load_index
from core.models.registry import MODELS, GivenSpec
from core.runs.early_checks import check_model
from dashboard import session
from dashboard.forms.refusals import Refusals
from dashboard.server import access, uploads

BY_NAME, UPLOAD = "By name or path", "Upload a file"


@dataclass(frozen=True)
class NumbersField:
    """A text field for up to `most` numbers. name: in messages. allowed: in words."""

    label: str
    name: str
    example: str
    help: str
    kind: Callable[[str], Any]
    most: int
    allowed: str

    def read(self, typed: str) -> list[Any] | None:
        """The numbers in the text, None if it is empty. Raises ConfigError for any other text, or more than `most` of them."""
        try:
            numbers = [self.kind(number) for number in typed.replace(",", " ").split()]
            fits = len(numbers) <= self.most
        except ValueError:
            fits = False
        if not fits:
            raise ConfigError(f"{self.name} must be {self.allowed}, got {quoted(typed)}")
        return numbers or None

    def draw(self, key: str, refusals: Refusals, value: str = "") -> str:
        """Draws the field, and below it why its text is refused; returns the text."""
        typed = st.text_input(self.label, value=value, placeholder=self.example, help=self.help, key=f"{key}/{self.name}")
        refusals.field(f"the {self.name}", typed, lambda: self.read(typed))
        return typed


_ONE_PER_CHANNEL = "one number for each channel, such as 0.485 0.456 0.406"
_OF_CHANNELS = "Of each channel in [0, 1], such as red, green and blue, as in the training of the network."
# what the file of a network does not tell: field of ChosenNetwork and GivenSpec -> its text field
FIELDS: Mapping[str, NumbersField] = MappingProxyType(
    {
        "image_size": NumbersField(
            "Image size (pixels)",
            "image size",
            "224",
            "One number, or height and width.",
            int,
            2,
            "one or two whole numbers, such as 224 or 32 48",
        ),
        "mean": NumbersField("Mean", "mean", "0.485 0.456 0.406", _OF_CHANNELS, float, 4, _ONE_PER_CHANNEL),
        "std": NumbersField("Standard deviation", "standard deviation", "0.229 0.224 0.225", _OF_CHANNELS, float, 4, _ONE_PER_CHANNEL),
    }
)


@dataclass(frozen=True)
class ChosenNetwork:
    """Values of the widgets for a network: a name or path, or a file. Those after `file` describe one that `pretrain` has not written."""

    model: str
    file: UploadedFile | None = None
    architecture: str = ""
    image_size: str = ""
    mean: str = ""
    std: str = ""
    class_names: str = ""

    @property
    def value(self) -> Hashable:
        """What the network is read from, to compare."""
        name = self.file.file_id if self.file else self.model
        return (name, self.architecture, self.image_size, self.mean, self.std, self.class_names)

    @property
    def given(self) -> GivenSpec:
        """What the user states about the file. Raises ConfigError for text that is not what its field needs."""
        names = [line.strip() for line in self.class_names.splitlines() if line.strip()]
        numbers = {name: field.read(getattr(self, name)) for name, field in FIELDS.items()}
        return GivenSpec(image_size=numbers["image_size"], mean=numbers["mean"], std=numbers["std"], class_names=names or None)


def network_widgets(default: str, key: str, refusals: Refusals) -> ChosenNetwork:
    """The network by its name or path, or a file to upload: one or the other, so that no other network than the one in sight is used."""
    source = st.radio(label(knobs(RunConfig)["model"]), [BY_NAME, UPLOAD], horizontal=True, key=f"{key}/network source {_uploads_done()}")
    return _named_network(default, key, refusals) if source == BY_NAME else _uploaded_network(key, refusals)


def _named_network(default: str, key: str, refusals: Refusals) -> ChosenNetwork:
    """A box of embedded and uploaded networks and the classifiers of the zoos, which accepts any name or path."""
    known = {**dict.fromkeys(MODELS, "embedded"), **session.uploads().networks()}
    names = list(dict.fromkeys([*([] if default in known else [default]), *known, *load_index().architectures]))
    chosen = st.selectbox(
        BY_NAME,
        names,
        index=names.index(default),
        format_func=lambda name: name if known.get(name, "embedded") == "embedded" else known[name],
        accept_new_options=True,
        help=f"{help_text(RunConfig, 'model')}\n\nType to search. Any other name or path can be typed as well.".replace("\n", "\n\n"),
        key=f"{key}/model",
    )
    network = ChosenNetwork((chosen or "").strip())
    refusals.field("the network", network.model, lambda: check_model(network.model))
    return network


def network_file(key: str, label_visibility: Literal["visible", "collapsed"] = "visible") -> UploadedFile | None:
    """An upload field for a network."""
    return st.file_uploader(
        "Network file",
        # all types, because one that the browser refused would be unknown here
        max_upload_size=uploads.NETWORK_BYTES // uploads.MEGABYTE,
        help="A checkpoint written by `python -m core pretrain`; another checkpoint (safetensors, or a state dict written by torch.save); "
        "or a .pt2 program written by torch.export. It is listed under its name from then on.",
        label_visibility=label_visibility,
        key=f"{key}/upload network {_uploads_done()}",
    )


def _uploaded_network(key: str, refusals: Refusals) -> ChosenNetwork:
    """An upload field, and fields for what the file does not tell."""
    file = network_file(key)
    place = st.container()
    with st.expander("Metadata missing from the file", key=f"{key}/metadata"):
        st.caption("For checkpoints made elsewhere. Empty fields take the values of the model zoo of the architecture.")
        architecture = st.text_input(
            "Architecture",
            placeholder="torchvision:resnet18",
            help="pytorchcv:NAME, torchvision:NAME or timm:NAME. Required for a checkpoint that `pretrain` has not written.",
            key=f"{key}/architecture",
        ).strip()
        size, mean, std = (field.draw(key, refusals) for field in FIELDS.values())
        class_names = st.text_area("Class names", help="One per line, in the order of the network's outputs.", key=f"{key}/class names")
    network = ChosenNetwork("", file, architecture, size, mean, std, class_names)
    with place:
        if file is None:
            refusals.missing("the network", "Upload a network to start with it.")
        else:
            refusals.field("the network", network.value, lambda: uploads.check_network(file, file.name, architecture))
    return network


def images_widget(key: str, refusals: Refusals) -> UploadedFile | None:
    """An upload field for a zip file of images or a NumPy archive."""
    file = st.file_uploader(
        "Images",
        max_upload_size=ARCHIVE_BYTES // uploads.MEGABYTE,
        help="A zip file with one folder of images per class, or another layout of labeled images, all of the network's image size; or a "
        "set of images written by the Export page or `python -m core export`.",
        key=f"{key}/upload images {_uploads_done()}",
    )
    if file is None:
        # without the marks of code, whose color is too pale in a caption
        refusals.missing("the images", f"Upload images to start: {ALLOWED.replace('`', '')}.")
    else:
        refusals.field("the images", file.file_id, lambda: uploads.check_images(file.name))
    return file


def kept_network(chosen: ChosenNetwork, refusals: Refusals) -> str:
    """Stores the uploaded network, if any; returns the value for `model`. Raises DataError if nothing can be stored now."""
    file = chosen.file
    if file is None:
        return chosen.model
    with uploads.place_of(uploader()), st.spinner("Checking the network ..."), refusals.late("the network", chosen.value):
        if not chosen.architecture and not uploads.is_program(file.name):
            return session.uploads().store_network(file, file.name)
        return session.uploads().import_network(file, file.name, chosen.architecture, chosen.given)


def kept_images(file: UploadedFile, refusals: Refusals) -> str:
    """Stores the uploaded images; returns their folder, for `images_from`. Raises DataError if nothing can be stored now."""
    with uploads.place_of(uploader()), st.spinner("Checking the images ..."), refusals.late("the images", file.file_id):
        return str(session.uploads().store_images(file, file.name))


def uploader() -> str:
    """The user who is logged in, or where nobody logs in, this session."""
    return access.user() or st.session_state.setdefault("uploader", uuid.uuid4().hex)


def forget_uploads() -> None:
    """Clears the upload fields and frees their memory. Called after a run was started with the files."""
    st.session_state["uploads done"] = _uploads_done() + 1


def _uploads_done() -> int:
    return st.session_state.get("uploads done", 0)
