"""Widgets for knobs, and from widgets to a config. Ranges, help and defaults come from core.config; nothing is checked twice."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import streamlit as st
from streamlit.runtime.uploaded_file_manager import UploadedFile

from core.config import (
    BIT_WIDTHS,
    LIVE_KNOBS,
    OPTIMIZERS,
    PRESETS,
    GenerationConfig,
    QuantizationConfig,
    RunConfig,
    help_text,
    knobs,
)
from core.data.archives import ALLOWED, ARCHIVE_BYTES
from core.errors import ConfigError, DataError, quoted
from core.models.registry import MODELS, GivenSpec
from dashboard import session
from dashboard.server import uploads
from dashboard.text import one_line_text, plain

AS_RUN = "as a run"

_GENERATION = (
    "images", "iterations", "batch_size", "snapshots", "burn_in", "half_resolution", "noise", "schedule", "max_shift", "flip", "seed",
    "compile",
)  # fmt: skip
_MACHINE = ("device", "threads")
_QUANTIZATION = (
    "range", "batch_size", "training_optimizer", "alpha_ce", "alpha_kd", "alpha_feature", "temperature", "averaging", "crop_padding",
    "training_flip", "calibration_images", "evaluations", "first_last_8bit", "data", "quantization_seed",
)  # fmt: skip
_LABELS = {
    "first_last_8bit": "First and last layer at 8 bits",
    "evaluations": "Measurements on the way",
    "training_lr": "Training step size",
    "data": "Evaluation images",
    "device": "Device",
    "max_shift": "Random shift (pixels)",
    "flip": "Random flip",
    "half_resolution": "Half size first (part)",
    "training_flip": "Random flip",
    "crop_padding": "Random crop (pixels)",
    "quantization_seed": "Seed",
    "lr": "step size of Adam",
    "threads": "CPU threads",
    "alpha_tv": "α_TV smoothness",
    "alpha_l2": "α_l2 size",
    "beta": "β labels",
    "epsilon": "ε step of MI-FGSM",
    "mu": "μ momentum",
    "alpha_ce": "α_CE labels",
    "alpha_kd": "α_KD teacher",
    "alpha_feature": "α_F features",
}


def label(name: str) -> str:
    """How a knob is called on the page."""
    return _LABELS.get(name, name.replace("_", " ").capitalize())


def help_of(config_class: type, name: str) -> str:
    """All that is known of a knob, for the question mark beside it: a paragraph for each line."""
    return help_text(config_class, name).replace("\n", "\n\n")


def knob_widget(config_class: type, name: str, value: Any, key: str) -> Any:
    """The widget that fits a knob; returns its value."""
    knob = knobs(config_class)[name]
    meta, help, kind = knob.metadata, help_of(config_class, name), type(knob.default)
    if meta["choices"] is not None:
        choices = list(meta["choices"])
        return st.selectbox(label(name), choices, index=choices.index(value), help=help, key=key)
    if kind is bool:
        return st.checkbox(label(name), value=value, help=help, key=key)
    if kind is int:
        return st.number_input(
            label(name), min_value=int(meta["minimum"]), max_value=int(meta["maximum"]), value=int(value), step=1, help=help, key=key
        )
    if kind is float:
        return st.number_input(
            label(name), min_value=float(meta["minimum"]), max_value=float(meta["maximum"]), value=float(value),
            step=meta["step"] or 0.1, format="%g", help=help, key=key,
        )  # fmt: skip
    return st.text_input(label(name), value=value, help=help, key=key).strip()


def knob_grid(config_class: type, names: Sequence[str], start: Any, key: str, columns: int = 3) -> dict[str, Any]:
    """Widgets for several knobs in columns; `start` is the config whose values they begin with."""
    values = {}
    places = st.columns(columns)
    for index, name in enumerate(names):
        with places[index % columns]:
            values[name] = knob_widget(config_class, name, getattr(start, name), f"{key}/{name}")
    return values


def preset_choice(key: str) -> str:
    """Which preset a form begins with."""
    return st.selectbox("Preset", list(PRESETS), format_func=_preset_name, key=key)


def preset_instead(name: str, key: str) -> str | None:
    """Which preset a form begins with instead of the settings of the run of that name; None as long as it begins with those."""
    names = {AS_RUN: f"as {one_line_text(name)}"}
    chosen = st.selectbox("Preset", [AS_RUN, *PRESETS], format_func=lambda preset: names.get(preset) or _preset_name(preset), key=key)
    return None if chosen == AS_RUN else chosen


def _preset_name(name: str) -> str:
    names = {
        "quick": "quick: minutes on a CPU",
        "imagenet": "imagenet: networks of 224 pixels, an hour on a CPU",
        "paper": "paper: its settings, for a GPU",
    }
    return names.get(name, name)


def run_form(start: RunConfig, key: str, live: Mapping[str, Any]) -> RunConfig | None:
    """The form of a whole run, beginning with `start`. The config when Start was pressed, else None.

    Whatever has no widget stays as it is in `start`. live: values of the knobs that have sliders. Raises ConfigError when the knobs do not
    fit together, DataError or ModelError for an uploaded network that cannot be used.
    """
    given = bool(start.images_from)  # then nothing is generated, and the methods are the folders of the images
    with st.form(f"run form {key}", border=False):
        if given:
            st.caption(f"Uses the images in {plain(start.images_from)}, so nothing is generated.")
        optimizers, bits = _choose_methods(start, key)
        with st.expander("All settings"):
            *generation_tabs, quantization_tab, machine_tab = st.tabs(
                [*([] if given else ["Generation"]), "Quantization", "Network and machine"]
            )
            generation: dict[str, Any] = {}
            for tab in generation_tabs:
                with tab:
                    generation = knob_grid(GenerationConfig, _GENERATION, start.generation, f"{key}/generation")
            with quantization_tab:
                by_bits, run_by_bits = _by_bits_widgets(start, key)
                quantization = knob_grid(QuantizationConfig, _QUANTIZATION, start.quantization, f"{key}/quantization")
            with machine_tab:
                network = network_widgets(start.generation.model, f"{key}/machine")
                machine = knob_grid(GenerationConfig, _MACHINE, start.generation, f"{key}/machine")
                encoder = encoder_widget(start.encoder, f"{key}/encoder")
        pressed = st.form_submit_button("Start", type="primary", icon=":material/play_arrow:", key="start")
    if not pressed:
        return None
    model = kept_network(network)
    return replace(
        start,
        generation=replace(start.generation, **generation, **machine, **live, model=model),
        # the whole run has one device and one number of threads, the generation's
        quantization=replace(start.quantization, **quantization, **by_bits, model=model),
        optimizers=tuple(optimizers),
        bits=tuple(bits),
        encoder=encoder,
        **run_by_bits,
    )


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
        label("model"),
        names,
        index=names.index(default),
        format_func=lambda name: name if known.get(name, "embedded") == "embedded" else known[name],
        accept_new_options=True,
        help=f"{help_of(GenerationConfig, 'model')}\n\nNetworks that were uploaded are listed too; a name or path can be typed.",
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
    with st.expander("What the file does not say"):
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
        type=["zip", "tar", "gz", "tgz", "npz"],
        max_upload_size=ARCHIVE_BYTES // uploads.MEGABYTE,
        help="A zip or tar.gz file with one folder of images (png, jpg, bmp, webp) a class, all of the network's size; or a set of images "
        "made by this program, as the page Export or `python -m core export` writes it.",
        key=f"{key}/upload images {_uploads_done()}",
    )


def kept_network(chosen: ChosenNetwork) -> str:
    """The network of `network_widgets` as a model's name. Raises ConfigError, DataError or ModelError for what cannot be used."""
    if chosen.file is None:
        return chosen.model
    with st.spinner("Checking the network ..."):
        if not chosen.architecture and not chosen.file.name.endswith(uploads.PROGRAM):
            return session.uploads().keep_network(chosen.file, chosen.file.name)
        names = [line.strip() for line in chosen.class_names.splitlines() if line.strip()]
        return session.uploads().keep_checkpoint(
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
        return str(session.uploads().keep_images(file, file.name))


def forget_uploads() -> None:
    """Empties the places for files, which also frees their memory. Called when a run has started with them."""
    st.session_state["uploads done"] = _uploads_done() + 1


def _uploads_done() -> int:
    return st.session_state.get("uploads done", 0)


def _choose_methods(start: RunConfig, key: str) -> tuple[list[str], list[int]]:
    """Optimizers and bit widths, which most people touch first."""
    if start.images_from:
        return list(start.optimizers), bits_widget(start.bits, f"{key}/bits")
    left, right = st.columns(2)
    with left:
        optimizers = st.multiselect(
            "Optimizers",
            list(OPTIMIZERS),
            default=list(start.optimizers),
            help="Each makes its own images from the same noise and labels; both together can be compared side by side.",
            key=f"{key}/optimizers",
        )
    with right:
        bits = bits_widget(start.bits, f"{key}/bits")
    return optimizers, bits


def bits_widget(default: Sequence[int], key: str) -> list[int]:
    """Bit widths to quantize to."""
    return st.multiselect(
        "Then quantize to (bits)",
        list(BIT_WIDTHS),
        default=list(default),
        help="Weights and activations alike; none stops after the images. Paper: 3, 4, 5.",
        key=key,
    )


def encoder_widget(default: str, key: str) -> str:
    """Name of the CLIP encoder, empty for none."""
    return st.text_input(
        "CLIP encoder for diversity",
        value=default,
        help="embedded works without a network; ARCH:PRETRAINED as open_clip lists them, such as ViT-B-32:laion2b_s34b_b79k, "
        "is downloaded on first use; empty: no diversity.",
        key=key,
    ).strip()


def _by_bits_widgets(start: RunConfig, key: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Steps and step size for every bit width, or empty for those of `start`: what to change in the quantization, and in the run."""
    quantization: dict[str, Any] = {}
    run: dict[str, Any] = {}
    knob_arguments: dict[str, dict[str, Any]] = {
        "steps": {"min_value": 0, "max_value": 1_000_000, "step": 50},
        "training_lr": {"min_value": 0.0, "max_value": 1.0, "step": 1e-4, "format": "%g"},
    }
    for place, (name, arguments), by_bits in zip(st.columns(2), knob_arguments.items(), ("steps_by_bits", "lr_by_bits")):
        widths = [bits for bits in start.bits if bits in getattr(start, by_bits)]
        own = ", ".join(f"{getattr(start.quantization_for(bits), name):g} at {bits} bits" for bits in widths)
        if len(widths) < len(start.bits) or not widths:
            own += f"{', else ' if own else ''}{getattr(start.quantization, name):g}"
        with place:
            value = st.number_input(
                "Training steps" if name == "steps" else label(name), value=None, placeholder=own, key=f"{key}/{name}",
                help=f"{help_of(QuantizationConfig, name)}\n\nEmpty: as it says there ({own}); fewer bits need more.", **arguments,
            )  # fmt: skip
        run[by_bits] = getattr(start, by_bits)
        if value is not None:
            quantization[name], run[by_bits] = value, {}
    return quantization, run


def quantization_form(start: RunConfig, key: str, own_images: bool = False) -> tuple[RunConfig, bool, str]:
    """Bit widths and quantization knobs for images that exist already: the config, whether Start was pressed, and the name of a file.

    own_images: with places for an archive of images and a network, which are kept when Start is pressed; then the config says where
    they are, and the name is the archive's. Raises ConfigError, DataError or ModelError for what cannot be used.
    """
    with st.form(f"quantization form {key}", border=False):
        if own_images:
            left, right = st.columns(2)
            with left:
                images = images_widget(key)
            with right:
                network = network_widgets(start.generation.model, key)
        bits = bits_widget(start.bits, f"{key}/bits")
        with st.expander("All settings"):
            by_bits, run_by_bits = _by_bits_widgets(start, key)
            values = knob_grid(QuantizationConfig, _QUANTIZATION, start.quantization, f"{key}/quantization")
            # the whole run has one device and one number of threads, the generation's
            machine = knob_grid(GenerationConfig, ("device", "threads"), start.generation, f"{key}/machine")
        button = "Quantize these" if own_images else "Quantize"
        pressed = st.form_submit_button(
            button, type="primary", icon=":material/play_arrow:", key="quantize own" if own_images else "quantize"
        )
    name = ""
    if own_images and pressed:
        start = with_own_images(start, kept_images(images), kept_network(network))
        name = images.name if images else ""
    config = replace(
        start,
        generation=replace(start.generation, **machine),
        quantization=replace(start.quantization, **values, **by_bits),
        bits=tuple(bits),
        **run_by_bits,
    )
    return config, pressed, name


def with_own_images(start: RunConfig, images_from: str, model: str) -> RunConfig:
    """The config for uploaded images and a network, which may be another than that of `start`."""
    return replace(
        start,
        generation=replace(start.generation, model=model),
        quantization=replace(start.quantization, model=model),
        optimizers=(uploads.USER_IMAGES,),
        images_from=images_from,
    )


# Weights act over orders of magnitude, so their sliders are logarithmic, with zero at the left end.
_LADDERS: dict[str, list[float]] = {
    "alpha_tv": [0.0, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0],
    "alpha_l2": [0.0, 3e-8, 3e-7, 3e-6, 3e-5, 3e-4, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0],
    "beta": [0.0, 0.03, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0],
}
_SLIDER_WIDTH = 165  # pixels: two beside each other on a phone
_LIVE_MAXIMUM = {"epsilon": 0.5, "mu": 1.5, "lr": 0.5}


def live_sliders(
    values: Mapping[str, float], key: str, on_change: Any = None, marks: Mapping[str, str] | None = None, disabled: Collection[str] = ()
) -> dict[str, float]:
    """The six sliders; `on_change(name, widget key)` is called when a person moves one. Returns their values.

    marks: what to add to the label of a knob. disabled: knobs that cannot be moved now.
    """
    result = {}
    with st.container(horizontal=True, vertical_alignment="bottom"):
        for name in LIVE_KNOBS:
            widget_key, value = f"{key}/{name}", float(values[name])
            meta = knobs(GenerationConfig)[name].metadata
            arguments: dict[str, Any] = {
                "label": f"{label(name)} {(marks or {}).get(name, '')}".strip(),
                "value": value,
                "key": widget_key,
                "help": help_of(GenerationConfig, name),
                "on_change": on_change,
                "args": (name, widget_key) if on_change else None,
                "disabled": name in disabled,
                "width": _SLIDER_WIDTH,
            }
            if name in _LADDERS:
                options = sorted({*_LADDERS[name], value})
                result[name] = st.select_slider(options=options, format_func=lambda v: f"{v:g}", **arguments)
            else:
                top = max(_LIVE_MAXIMUM[name], value)
                result[name] = st.slider(min_value=0.0, max_value=top, step=meta["step"], format="%.3g", **arguments)
    return result
