"""The forms that start a run: they build a RunConfig from widgets."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import streamlit as st

from core.config import (
    BIT_WIDTHS,
    PRESETS,
    EvaluationConfig,
    GenerationConfig,
    MachineConfig,
    RunConfig,
    TrainingConfig,
    find_knob,
    has_knob,
    knobs,
    label,
)
from core.data.real_images import check_real_images
from core.generation.methods import METHODS
from core.layout import USER_IMAGES
from core.runs.cluster.connection import ADDRESS_VARIABLE, free
from core.runs.early_checks import check_classes, check_data, check_encoder, check_images, check_origin
from core.runs.executors import CLUSTER_EXECUTOR
from dashboard.forms.knobs import help_of, knob_grid, number_arguments
from dashboard.forms.refusals import Refusals
from dashboard.forms.sources import ChosenNetwork, images_widget, kept_images, kept_network, network_widgets
from dashboard.names import method_name
from dashboard.text import one_line_text, plain

AS_RUN = "as a run"
_ON_THIS_MACHINE, _ON_CLUSTER = "this machine", "Ray cluster"
_DATA, _ORIGIN = "the evaluation images", "the network of the images"  # fields, in sentences
# knobs with a value for every bit width -> the field of RunConfig that has these values
_BY_BITS = {"steps": "steps_by_bits", "training_lr": "lr_by_bits"}


def _in_form(config_class: type, *without: str, methods: Collection[str] = ()) -> list[str]:
    """The knobs of a section that a form shows under "All settings": without those that only methods other than these have."""
    return [
        name
        for name, knob in knobs(config_class).items()
        if knob.metadata["in_form"]
        and name not in without
        and (not knob.metadata["of"] or any(has_knob(knob, method) for method in methods))
    ]


def preset_choice(key: str) -> str:
    """A selection box of the presets; returns the name of the chosen one."""
    return st.selectbox("Preset", list(PRESETS), format_func=_preset_name, key=key)


def preset_instead(name: str, key: str) -> str | None:
    """A selection box of the run's own settings (selected at first) and the presets. Returns a preset's name, or None for the run's."""
    names = {AS_RUN: f"as {one_line_text(name)}"}
    chosen = st.selectbox("Preset", [AS_RUN, *PRESETS], format_func=lambda preset: names.get(preset) or _preset_name(preset), key=key)
    return None if chosen == AS_RUN else chosen


def _preset_name(name: str) -> str:
    names = {
        "quick": "quick: minutes on a CPU",
        "instant": "instant: calibration without training, a minute on a CPU",
        "imagenet": "imagenet: 224-pixel networks, an hour on a CPU",
        "paper": "paper: the paper's settings, for a GPU",
    }
    of_authors = f"{name}: the settings of its authors' code, for a GPU"
    return of_authors if name in METHODS else names.get(name, name)


def run_form(start: RunConfig, key: str, live: Mapping[str, Any]) -> RunConfig | None:
    """The form of a whole run, initialized with `start`. Returns the config after Start was pressed, else None.

    Settings without a widget keep their values in `start`. live: values of the knobs that have sliders. Raises ConfigError when the knobs
    do not fit together, DataError when the uploaded network cannot be stored now; a refused value is shown beside its field.
    """
    refusals = Refusals(key)
    given = bool(start.images_from)  # no generation; the methods are the names of the image folders
    if given:
        st.caption(f"Uses the images in {plain(start.images_from)}. No images are generated.")
        refusals.field("the images", start.images_from, lambda: check_images(start.images_from))
    methods, bits = _choose_methods(start, key)
    *generation_tabs, training_tab, machine_tab = st.tabs([*([] if given else ["Generation"]), "Quantization", "Network and machine"])
    values: dict[str, Any] = dict(live)
    for tab in generation_tabs:
        with tab:
            data = st.session_state.get(f"{key}/machine/data", start.evaluation.data)
            below = {"real_images": partial(_check_real_images, refusals, data)}
            values |= knob_grid(start, _in_form(GenerationConfig, methods=methods), f"{key}/generation", below=below)
    with training_tab:
        by_bits, run_by_bits = _by_bits_widgets(start, key)
        values |= by_bits | knob_grid(start, _in_form(TrainingConfig, methods=() if given else methods), f"{key}/training")
    with machine_tab:
        network = network_widgets(start.model, f"{key}/machine", refusals)
        names = [*_in_form(MachineConfig), *_in_form(EvaluationConfig)]
        values |= knob_grid(start, names, f"{key}/machine", below=evaluation_checks(refusals, network.value, bits))
    choose_executor(refusals, key)
    pressed = refusals.button("Start", "start")
    if not pressed:
        return None
    config = replace(start, methods=tuple(methods), bits=tuple(bits), **run_by_bits).with_knobs(values)
    model = kept_network(network, refusals)
    _check_classes(refusals, values["data"], network.value, model, bits)
    return config.with_knobs({"model": model})


def chosen_executor(key: str) -> str:
    """Where a run from `run_form` with this key is to be computed: a name in EXECUTORS; empty: where the server computes runs."""
    return CLUSTER_EXECUTOR if st.session_state.get(f"{key}/where") == _ON_CLUSTER else ""


def choose_executor(refusals: Refusals, key: str) -> None:
    """A choice between this machine and a Ray cluster, with what is free there. Only where RAY_ADDRESS names a cluster."""
    address = os.environ.get(ADDRESS_VARIABLE, "")
    if not address:
        return
    chosen = st.segmented_control(
        "Where to compute",
        [_ON_THIS_MACHINE, _ON_CLUSTER],
        default=_ON_THIS_MACHINE,
        required=True,
        help="The Ray cluster is the one that RAY_ADDRESS names.",
        key=f"{key}/where",
    )
    if chosen == _ON_CLUSTER:
        refusals.field("the cluster", address, lambda: st.caption(free()))


def _check_real_images(refusals: Refusals, data: str, folder: str) -> None:
    """Shows below the field of the folder why it is refused. data: the evaluation images."""
    refusals.field("the folder of real images", folder, lambda: check_real_images(folder, data))


def chosen_methods(start: RunConfig, key: str) -> list[str]:
    """The methods that are chosen in `run_form` with this key, for what is drawn above it."""
    return list(st.session_state.get(f"{key}/methods", start.methods))


def _choose_methods(start: RunConfig, key: str) -> tuple[list[str], list[int]]:
    """Widgets for the methods and bit widths, which users change most often."""
    if start.images_from:
        return list(start.methods), bits_widget(start.bits, f"{key}/bits")
    left, right = st.columns(2)
    with left:
        methods = st.multiselect(
            "Methods",
            list(METHODS),
            default=list(start.methods),
            format_func=method_name,
            help="Each method makes its own images; those that start from noise share noise and labels. "
            "Several methods are compared side by side.",
            key=f"{key}/methods",
        )
    with right:
        bits = bits_widget(start.bits, f"{key}/bits")
    return methods, bits


def bits_widget(default: Sequence[int], key: str) -> list[int]:
    """A box of the bit widths to quantize to; returns the chosen ones."""
    return st.multiselect(
        "Bit widths",
        list(BIT_WIDTHS),
        default=list(default),
        help="Bit widths of weights and activations. Leave empty to stop after the images are generated. Paper: 3, 4, 5.",
        key=key,
    )


def encoder_widget(start: RunConfig, key: str, refusals: Refusals) -> str:
    """A field for the name of the CLIP encoder; empty for none."""
    return knob_grid(start, ["encoder"], key, columns=1, below=evaluation_checks(refusals))["encoder"]


def evaluation_checks(refusals: Refusals, network: Hashable = "", bits: Sequence[int] = ()) -> dict[str, Callable[[str], None]]:
    """For `knob_grid`: shows below the fields of the evaluation why their values are refused. Without bits, nothing is evaluated."""
    checks: dict[str, Callable[[str], None]] = {
        "encoder": lambda encoder: refusals.field("the encoder", encoder, lambda: check_encoder(encoder))
    }
    if bits:
        checks["data"] = lambda data: refusals.field(_DATA, (data, network), lambda: check_data(data))
    return checks


def _check_classes(refusals: Refusals, data: str, network: Hashable, model: str, bits: Sequence[int]) -> None:
    """Refuses evaluation images of other classes than those of the network, now that it is stored under the name `model`."""
    if bits:
        with refusals.late(_DATA, (data, network)):
            check_classes(data, model)


def _by_bits_widgets(start: RunConfig, key: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Number fields for training steps and step size. A value applies to every bit width; an empty field keeps the values of `start`.

    Returns the knobs that were filled in, and the fields of the run with the values by bit width: empty for a knob that was filled in.
    """
    values: dict[str, Any] = {}
    run: dict[str, Any] = {}
    for place, (name, by_bits) in zip(st.columns(len(_BY_BITS)), _BY_BITS.items(), strict=True):
        _, knob = find_knob(name)
        widths = [bits for bits in start.bits if bits in getattr(start, by_bits)]
        own = ", ".join(f"{getattr(start.training_for(bits), name):g} at {bits} bits" for bits in widths)
        if len(widths) < len(start.bits) or not widths:
            own += f"{', else ' if own else ''}{start.value(name):g}"
        with place:
            value = st.number_input(
                label(knob),
                value=None,
                placeholder=own,
                key=f"{key}/{name}",
                help=f"{help_of(TrainingConfig, name)}\n\nLeave empty to use {own}. Fewer bits need more.",
                **number_arguments(knob),
            )
        run[by_bits] = getattr(start, by_bits)
        if value is not None:
            values[name], run[by_bits] = value, {}
    return values, run


def quantization_form(start: RunConfig, key: str, own_images: bool = False) -> tuple[RunConfig, bool, str]:
    """The form that quantizes with existing images. Returns the config, whether the button was pressed, and the name of the uploaded file.

    own_images: adds upload fields for images and a network. Both are stored when the button is pressed, the config then refers to them,
    and the name is that of the image file; otherwise it is empty. Raises ConfigError when the knobs do not fit together, DataError when
    a file cannot be stored now; a refused value is shown beside its field.
    """
    refusals, network = Refusals(key), ChosenNetwork(start.model)
    if own_images:
        left, right = st.columns(2)
        with left:
            images = images_widget(key, refusals)
        with right:
            network = network_widgets(start.model, key, refusals)
        refusals.field(_ORIGIN, (images and images.file_id, network.value))
    bits = bits_widget(start.bits, f"{key}/bits")
    with st.expander("All settings", key=f"{key}/all settings"):
        values, run_by_bits = _by_bits_widgets(start, key)
        names = [*_in_form(TrainingConfig), *_in_form(EvaluationConfig, "encoder")]
        checks = evaluation_checks(refusals, network.value, bits)
        values |= knob_grid(start, names, f"{key}/training", below=checks)
        values |= knob_grid(start, _in_form(MachineConfig, "compile"), f"{key}/machine")
    pressed = refusals.button("Quantize these", "quantize own") if own_images else refusals.button("Quantize", "quantize")
    name = ""
    if pressed:
        model = kept_network(network, refusals)
        _check_classes(refusals, values["data"], network.value, model, bits)
        if own_images and images is not None:
            folder = kept_images(images, refusals)
            with refusals.late(_ORIGIN, (images.file_id, network.value)):
                check_origin(folder, model)
            start = with_own_images(start, folder, model)
            name = images.name
    return replace(start, bits=tuple(bits), **run_by_bits).with_knobs(values), pressed, name


def with_own_images(start: RunConfig, images_from: str, model: str) -> RunConfig:
    """`start` with the network and the uploaded images in place of its own."""
    return replace(start, model=model, methods=(USER_IMAGES,), images_from=images_from)
