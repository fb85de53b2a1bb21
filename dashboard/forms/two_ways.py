"""The shortest ways to a run, side by side: the embedded network with one click, and a network of the user from its file alone."""

from __future__ import annotations

from dataclasses import replace

import streamlit as st
from streamlit.runtime.uploaded_file_manager import UploadedFile

from core.config import BIT_WIDTHS, PRESETS, RunConfig, preset_for
from core.config.times import budget_of
from core.errors import CoreError, ModelError
from core.models.apart import is_program
from core.models.identification import NO_ARCHITECTURE, Candidate, Identified
from core.models.other_formats import EXPORT_LINES
from core.models.zoos.zoo import numbered_classes
from core.runs.early_checks import check_architecture
from dashboard import session, text
from dashboard.components import problems
from dashboard.forms import sources
from dashboard.forms.refusals import Refusals
from dashboard.names import method_name
from dashboard.server import uploads

_METHODS = ("mi-fgsm",)  # one is enough to get a network; several are compared in the form of all settings
_BITS = (4,)
_TIMES = ("5 minutes", "30 minutes", "8 hours")
_ABOUT_TIME = (
    "The speed of this machine decides how many images, iterations and training steps fit. More time makes a better network. You can also "
    "type a time, such as 90s or 1h30m."
)
_ABOUT_BITS = "Bit widths of weights and activations. Fewer bits are smaller and lose more; several are compared."
_NETWORK = "the network"  # field, in sentences
_IDENTIFIED = "identified network"  # in the session: the id of the last file, and what it is


def two_ways() -> None:
    """Draws both; starts a run and shows it after one of their buttons was pressed."""
    left, right = st.columns(2)
    with left, st.container(border=True, height="stretch"):
        st.header("Try it", divider=False, anchor=False)
        _try_it()
    with right, st.container(border=True, height="stretch"):
        st.header("Your network", divider=False, anchor=False)
        with problems.shown():
            _own_network()


def _try_it() -> None:
    quick = PRESETS["quick"]
    st.markdown(
        f"The embedded ResNet-20, trained on CIFAR-10. {' and '.join(map(method_name, quick.methods))} generate "
        f"{quick.generation.images:,} images each, side by side. Networks of {', '.join(map(str, quick.bits[:-1]))} and {quick.bits[-1]} "
        "bits are then trained on them and evaluated on real images. It takes minutes on a CPU."
    )
    if st.button("Start", type="primary", icon=":material/play_arrow:", key="try"):
        with problems.shown():
            session.start(quick)
            st.rerun()


def _own_network() -> None:
    """The file, what was found in it, what it does not tell, the bit widths, and the button."""
    refusals, key = Refusals("own network"), "own network"
    file = sources.network_file(key, label_visibility="collapsed")
    network = sources.ChosenNetwork("", file)
    size = 0
    if file is None:
        endings = f"{', '.join(uploads.NETWORK_ENDINGS[:-1])} or {uploads.NETWORK_ENDINGS[-1]}"
        refusals.missing(_NETWORK, f"Drop the {endings} file of a classifier with BatchNorm here. No image of yours is needed.")
    elif (found := _found(file, refusals)) is not None:
        network, size = _described(file, found, f"{key}/{file.file_id}", refusals)
    left, right = st.columns(2)
    with left:
        time = st.selectbox("How long may it take", _TIMES, accept_new_options=True, key=f"{key}/time", help=_ABOUT_TIME) or ""
        refusals.field("the time", time, lambda: budget_of(time))
    with right:
        bits = st.multiselect("Bits", list(BIT_WIDTHS), default=list(_BITS), key=f"{key}/bits", help=_ABOUT_BITS)
    if not bits:
        refusals.missing("the bits", "Choose at least one bit width.")
    if refusals.button("Start", "start own"):
        config = own_config(size, bits, budget_of(time))
        session.start(replace(config, model=sources.kept_network(network, refusals)))
        sources.forget_uploads()
        st.rerun()


def own_config(size: int, bits: list[int], minutes: float) -> RunConfig:
    """The settings for a network of the user. size: longer side of its images in pixels. minutes: that the run may take."""
    return replace(preset_for((size, size)), methods=_METHODS, bits=tuple(bits)).with_knobs({"encoder": "", "budget": minutes})


def _found(file: UploadedFile, refusals: Refusals) -> Identified | None:
    """What the file is, found once; None if it is refused."""
    known, result = st.session_state.get(_IDENTIFIED, ("", None))
    if known != file.file_id:
        result = _identify(file)
        st.session_state[_IDENTIFIED] = (file.file_id, result)

    def check() -> None:
        if isinstance(result, CoreError):
            raise result

    refusals.field(_NETWORK, file.file_id, check)
    return result if isinstance(result, Identified) else None


def _identify(file: UploadedFile) -> Identified | CoreError:
    try:
        uploads.check_file(file, file.name)
        with uploads.place_of(sources.uploader()), st.spinner("Looking into the file ..."):
            return session.uploads().identify_network(file, file.name)
    except CoreError as error:
        return error


def _described(file: UploadedFile, found: Identified, key: str, refusals: Refusals) -> tuple[sources.ChosenNetwork, int]:
    """What was found, in a line, and fields for what may differ, with the values of the source. Returns the network, and the longer side
    of its images in pixels.
    """
    by_name = {one.architecture: one for one in found.candidates}
    titles = {name: _title(one) for name, one in by_name.items()}
    chosen: str | None = next(iter(by_name), "")
    line = st.container()
    if len(by_name) > 1 or not (chosen in by_name and by_name[chosen].whole):
        chosen = st.selectbox(
            "Architecture",
            list(by_name),
            index=0 if by_name else None,
            format_func=lambda name: text.one_line_text(titles.get(name, name)),
            accept_new_options=True,
            placeholder="timm:resnet18",
            key=f"{key}/architecture",
            help="Those that fit the file, best first. You can also type ZOO:NAME, a network of timm, torchvision or pytorchcv.",
        )
    candidate = by_name.get(chosen or "")
    if candidate is not None and candidate.architecture == NO_ARCHITECTURE and not is_program(file.name):
        network, size = sources.ChosenNetwork(""), _longer(candidate)  # written by `pretrain`: it has everything
    else:
        network, size = _values(f"{key}/{chosen}", candidate, refusals)
    network = replace(network, file=file, architecture=chosen or "")
    if candidate is not None and not candidate.named and not network.class_names.strip():
        # as many classes as the zoo's own weights have, by chance: with the zoo's names, images of these would measure the network
        network = replace(network, class_names="\n".join(numbered_classes(candidate.classes)))
    with line:
        st.markdown(":material/search: " + text.plain(_in_words(candidate) if candidate else "No architecture found."))
        refusals.field(_NETWORK, network.value, lambda: _check_fit(file.name, chosen or "", candidate))
    return network, size


def _values(key: str, candidate: Candidate | None, refusals: Refusals) -> tuple[sources.ChosenNetwork, int]:
    """Fields for image size, mean, standard deviation and class names: in sight where they are unknown, else folded, with the known values.

    Returns a network with what the user states, and the longer side of the images in pixels, 0 if unknown.
    """
    known = {name: _numbers(getattr(candidate, name, None) or ()) for name in sources.FIELDS}
    typed = {}
    for name in [name for name, value in known.items() if candidate is not None and not value]:
        field = sources.FIELDS[name]
        typed[name] = field.draw(key, refusals)
        if not typed[name].strip():
            refusals.missing(f"the {field.name}", "The file does not tell; take the value of its training.")
    with st.expander("Input and class names", key=f"{key}/input and class names"):
        for name in [name for name in known if name not in typed]:
            typed[name] = sources.FIELDS[name].draw(key, refusals, known[name])
        class_names = st.text_area("Class names", help="One per line, in the order of the network's outputs.", key=f"{key}/class names")
    sides = [int(side) for side in typed["image_size"].replace(",", " ").split() if side.isdecimal()]
    if candidate is not None and candidate.architecture != NO_ARCHITECTURE:
        # what nobody changed is left to the zoo, which also knows how images are resized
        typed = {name: "" if value == known[name] else value for name, value in typed.items()}
    network = sources.ChosenNetwork("", image_size=typed["image_size"], mean=typed["mean"], std=typed["std"], class_names=class_names)
    return network, max(sides, default=0)


def _check_fit(file: str, architecture: str, candidate: Candidate | None) -> None:
    """Raises ModelError for an architecture that does not fit wholly; one that was typed is compared when the run is started."""
    if not architecture and candidate is None:
        raise ModelError(f"architecture of {file!r} must be timm:NAME, torchvision:NAME or pytorchcv:NAME, and none was found that fits it")
    if candidate is not None and not candidate.whole:
        raise ModelError(
            f"{file!r} must have the tensors of {candidate.title}, and {candidate.fit:.0%} of them fit: choose another architecture, or "
            "export the network, a classifier, as a .pt2 program",
            EXPORT_LINES,
        )
    if candidate is None:
        check_architecture(architecture)


def _title(candidate: Candidate) -> str:
    return candidate.title if candidate.whole else f"{candidate.title} ({candidate.fit:.0%} fits)"


def _in_words(candidate: Candidate) -> str:
    """The candidate in a line, such as "resnet18 of timm, 37 classes, 224 pixels; normalization as in weights of timm"."""
    parts = [_title(candidate), f"{candidate.classes:,} classes"]
    if candidate.image_size is not None:
        parts.append(f"{_numbers(candidate.image_size).replace(' ', ' x ')} pixels")
    return ", ".join(parts) + (f"; normalization as in {candidate.source}." if candidate.mean else ".")


def _numbers(values: int | tuple[float, ...]) -> str:
    return " ".join(f"{value:g}" for value in ((values,) if isinstance(values, int) else values))


def _longer(candidate: Candidate) -> int:
    size = candidate.image_size
    return max(size) if isinstance(size, tuple) else size or 0
