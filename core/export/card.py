"""A model card in Markdown, written from a finished run: what the network is, how it was made, its measurements and its limits.

The template is card.md.j2; its front matter is the YAML that model hubs read. Text from outside (names of classes and runs, paths) is
escaped: it is neither markup nor YAML, and only the last part of a path is shown.
"""

import json
import platform
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from core import layout
from core.channels import channels_title
from core.config import GenerationConfig, RunConfig, TrainingConfig, has_knob, knobs
from core.data.image_sets import ImageSet, load_image_set
from core.errors import DataError, one_line, printable
from core.export import headline, provenance
from core.export.commands import bare_name, commands
from core.export.contact_sheet import EMPTY, class_columns, contact_sheet, evenly_spaced
from core.files import atomic_folder
from core.generation.methods import METHODS
from core.models.full_precision import FullPrecisionModel, batch_norm_layers, load_model
from core.models.registry import CIFAR10_CLASSES, ModelSpec

CARD = "README.md"  # the name that model hubs look for
PACKAGES = ("torch", "torchvision", "pytorchcv", "numpy", "safetensors")
COLUMNS, ROWS = 10, 6  # of a contact sheet: classes, and images of each
SMALLEST = 64  # pixels: smaller images are enlarged by a whole number
GAP = 2  # pixels between images
NAMES_SHOWN = 20  # of classes: ImageNet has a thousand
CHANGES_SHOWN = 50
_MEASURED_ON = {"real": "real", "held_out": "synthetic"}  # how close networks are to full precision: key of a result -> word
LAYERS_SHOWN = 3  # with the largest error
# stated in sentences elsewhere in the card
_STATED_ELSEWHERE = frozenset({"images", "weight_bits", "activation_bits", "steps", "training_lr", "layer_bits"})
_ESCAPED = {character: f"\\{character}" for character in string.punctuation if character not in "-,'\""}
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_PLAIN = str.maketrans({**_ESCAPED, **_ENTITIES})


@dataclass(frozen=True)
class MethodImages:
    """The images of one method, or a given set, and the results of the run with them."""

    name: str
    manifest: Mapping[str, Any]
    images: int
    figures: Mapping[str, Any]  # of the run's result: "accuracy"; "generation" and "diversity" if there are any
    picture: str = ""  # file beside the card
    pictured: tuple[int, ...] = ()  # the class of each of its columns

    @property
    def title(self) -> str:
        return METHODS[self.name].title if self.name in METHODS else f"{self.name} images"


def write_card(folder: Path, config: RunConfig, name: str, out: Path) -> Path:
    """Makes the folder `out` with README.md, the model card of a finished run, and a picture with some images of each method.

    folder: of the run, from `RunStore.run_folder`. config, name: of the run. Returns the path of the card. Writes all or nothing.
    Images that were given to the run and are gone are left out. Raises DataError if the run has no result or no quantized network, or
    `out` is not a new or empty folder; ModelError if the full-precision network no longer exists.
    """
    result = _result(folder)
    model = load_model(config.model, "cpu")
    images = folder / layout.IMAGES
    given = layout.user_image_sets(Path(config.images_from), config.methods) if config.images_from else {}
    with atomic_folder(out) as temporary:
        methods = []
        for number, (method, figures) in enumerate(layout.methods_of(result).items(), 1):
            path = given.get(method, images / method)
            if config.images_from and not path.exists():
                methods.append(MethodImages(method, {}, 0, figures))
                continue
            image_set = load_image_set(path, model.spec)
            # a given set may have any name
            picture = f"{method}.png" if method in METHODS else f"images-{number}.png"
            pictured = evenly_spaced(np.unique(image_set.labels.numpy()), COLUMNS).tolist()
            sheet(image_set, pictured).save(temporary / picture, format="PNG")
            methods.append(MethodImages(method, image_set.manifest, len(image_set), figures, picture, tuple(pictured)))
        (temporary / CARD).write_text(model_card(model, config, name, result["full_precision"], methods), encoding="utf-8")
    return out / CARD


def _result(folder: Path) -> dict[str, Any]:
    try:
        result = json.loads((folder / layout.RESULT).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{folder.name} has no {layout.RESULT}: the run must be complete") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{folder / layout.RESULT} must be the result of a run, but cannot be read ({error})") from error
    if "full_precision" not in result:
        raise DataError(f"{folder.name} has no quantized network: the run must have at least one bit width")
    return result


def sheet(image_set: ImageSet, classes: Sequence[int], rows: int = ROWS) -> Image.Image:
    """The first `rows` images of each of these classes, one class per column; white if a class has fewer."""
    scale = max(1, SMALLEST // min(image_set.images.shape[2:]))
    cells = np.array(class_columns(image_set.labels.numpy(), classes, rows), dtype=np.int64)
    shown = np.flatnonzero(cells != EMPTY)
    images = image_set.images[cells[shown]].numpy()
    cells[shown] = np.arange(len(shown))
    pixels = Image.fromarray(contact_sheet(images, max(1, len(classes)), cells.tolist(), GAP, scale))
    return Image.alpha_composite(Image.new("RGBA", pixels.size, "white"), pixels).convert("RGB")


def plain(text: object) -> str:
    """Text in one line, escaped so that Markdown and HTML show it unchanged."""
    return one_line(" ".join(str(text).split())).translate(_PLAIN)


def model_card(
    model: FullPrecisionModel, config: RunConfig, name: str, full_precision: float | None, methods: Sequence[MethodImages]
) -> str:
    """The card as Markdown with a front matter. name: of the run. full_precision: top-1 in percent; None without evaluation images."""
    spec = model.spec
    widths = [config.training_for(bits).width for bits in config.bits]
    lines = [printable(line) for line in commands(config)]
    has_real = "real" in config.methods and not config.images_from
    fence = "```"
    while any(fence in line for line in lines):
        fence += "`"
    return _template().render(
        front_matter={
            "library_name": "pytorch",
            "pipeline_tag": "image-classification",
            "model_name": f"{spec.name} {' '.join(widths)}",
        },
        tags=["image-classification", "quantization", *([] if has_real else ["data-free-quantization"]), spec.architecture],
        has_real=has_real,
        spec=spec,
        config=config,
        name=name,
        headline=headline.summary(_networks(config, methods), spec.name),
        widths=widths,
        papers=provenance.papers(config),
        network=_network(model, full_precision),
        is_cifar10=spec.classes == CIFAR10_CLASSES,
        fence=Markup(fence),
        commands=[Markup(line) for line in lines],
        versions=f"{platform.python_version()}, {provenance.versions(PACKAGES)}",
        **_results(config, full_precision, methods),
        **_images(model, config, methods),
        **_training(config),
    )


@cache
def _template() -> Any:
    """Values are escaped by `plain` unless they are Markup, which stands for Markdown here."""
    environment = Environment(
        # HTML escaping never applies, because `finalize` returns Markup; autoescape makes macros return it, too
        autoescape=True,
        finalize=lambda value: value if isinstance(value, Markup) else Markup(plain("" if value is None else value)),
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    # a JSON text is a YAML text once it has no invisible characters
    environment.filters["yaml"] = lambda text: Markup(json.dumps(one_line(text), ensure_ascii=False))
    environment.filters["fixed"] = _fixed
    environment.filters["thousands"] = _thousands
    return environment.get_template("card.md.j2")


def _fixed(value: float, digits: int) -> Markup:
    return Markup(f"{value:.{digits}f}")


def _thousands(value: float) -> Markup:
    return Markup(f"{value:,.0f}")


def _networks(config: RunConfig, methods: Sequence[MethodImages]) -> list[headline.MadeNetwork]:
    """The quantized networks of the run, with their outcomes."""
    return [
        headline.MadeNetwork(method.name, bits, config.training_for(bits).width, method.figures["accuracy"][str(bits)])
        for method in methods
        for bits in config.bits
    ]


def _network(model: FullPrecisionModel, full_precision: float | None) -> list[tuple[str, Any]]:
    spec = model.spec
    more = f" and {len(spec.classes) - NAMES_SHOWN:,} more" if len(spec.classes) > NAMES_SHOWN else ""
    return [
        ("architecture", spec.architecture),
        ("parameters", _thousands(sum(parameter.numel() for parameter in model.network.parameters()))),
        ("BatchNorm layers", len(batch_norm_layers(model.network))),
        ("input", f"{_input(spec)} pixels in [0, 1], minus mean {_one_by_one(spec.mean)}, divided by {_one_by_one(spec.std)}"),
        ("classes", f"{len(spec.classes):,}: {', '.join(spec.classes[:NAMES_SHOWN])}{more}"),
        ("trained on", spec.trained_on),
        ("top-1 in full precision", "not measured" if full_precision is None else Markup(f"{full_precision:.2f} %")),
    ]


def _input(spec: ModelSpec) -> str:
    height, width = spec.size
    return f"{channels_title(spec.channels)}, {height} x {width}{'' if height == width else ' (height x width)'}"


def _one_by_one(values: Sequence[float]) -> str:
    return f"({', '.join(map(str, values))})"


def _results(config: RunConfig, full_precision: float | None, methods: Sequence[MethodImages]) -> dict[str, Any]:
    outcomes = [(method, bits, method.figures["accuracy"][str(bits)]) for method in methods for bits in config.bits]
    compared = [
        (method.title, config.training_for(bits).width, network, kind, outcome[kind][network])
        for kind in _MEASURED_ON
        for method, bits, outcome in outcomes
        for network in ("calibrated", "trained")
        if network in outcome.get(kind, {})
    ]
    return {
        "full_precision": full_precision,
        "evaluated_on": None if full_precision is None else provenance.evaluated_on(config, outcomes[0][2]["evaluated_on"]),
        "measured_on": {_MEASURED_ON[kind]: _images_of(config, kind, figures) for *_, kind, figures in compared},
        "closeness": [
            (
                title,
                width,
                network,
                _MEASURED_ON[kind],
                Markup(f"{_fixed(figures['agreement'], 2)} ± {_fixed(figures['standard_error'], 2)}"),
                _fixed(figures["kl"], 4),
                _known(figures, "score_sqnr", ".2f"),
            )
            for title, width, network, kind, figures in compared
        ],
        "layers": [
            _layers(method.title, config.training_for(bits).width, outcome["layers"])
            for method, bits, outcome in outcomes
            if outcome.get("layers", {}).get("sqnr")
        ],
        "kept": [(method.title, config.training_for(bits).width, outcome.get("kept")) for method, bits, outcome in outcomes],
        "results": []
        if full_precision is None
        else [
            (
                method.title,
                config.training_for(bits).width,
                _fixed(outcome["calibrated"], 2),
                _fixed(outcome.get("trained", outcome["quantized"]), 2) if outcome["steps"] else None,
                outcome.get("kept", "trained" if outcome["steps"] else "calibrated"),
                _fixed(outcome["standard_error"], 2),
                _fixed(full_precision - outcome["quantized"], 2),
            )
            for method, bits, outcome in outcomes
        ],
        "notes": list(dict.fromkeys(outcome["note"] for _, _, outcome in outcomes if outcome["note"])),
    }


def _images_of(config: RunConfig, kind: str, figures: Mapping[str, Any]) -> str:
    """The images that figures of "real" or "held_out" were measured on; those of earlier versions have only the number of the latter."""
    if kind == "real":
        return provenance.evaluated_on(config, figures["measured_on"])
    return f"{figures['images']:,} held-out synthetic images, which none of them was calibrated or trained on"


def _layers(title: str, width: str, layers: Mapping[str, Any]) -> tuple[Any, ...]:
    """A row on the layers of a network: the median ratio and the smallest ones. Layers without an error have no ratio."""
    known = sorted((ratio, name) for name, ratio in layers["sqnr"].items() if ratio is not None)
    if not known:
        return (title, width, layers["measured_on"], "no error", "")
    worst = ", ".join(f"{name} {ratio:.1f}" for ratio, name in known[:LAYERS_SHOWN])
    return (title, width, layers["measured_on"], Markup(f"{median(ratio for ratio, _ in known):.1f}"), worst)


def _kind(method: str, config: RunConfig) -> str:
    """How the images were made, as the kind of a method, or its name where its images are made as by no other; "joint" for a generator
    that learned together with the student."""
    if method not in METHODS:
        return "pixels"
    if method == "genie" or METHODS[method].is_reference:
        return method
    return "joint" if METHODS[method].is_joint(config.training.protocol) else METHODS[method].kind


def _images(model: FullPrecisionModel, config: RunConfig, methods: Sequence[MethodImages]) -> dict[str, Any]:
    generated = [(method, method.manifest["summary"]) for method in methods if "summary" in method.manifest]
    measured = [(method, method.figures["diversity"]) for method in methods if "diversity" in method.figures]
    return {
        "images": sum(method.images for method in methods),
        "kinds": list(dict.fromkeys(_kind(method.name, config) for method, _ in generated)),
        "generated": [_generated(method, summary) for method, summary in generated],
        "generation_knobs": _knobs(config.generation, config.methods),
        "changed": [_changes(method) for method in methods if method.manifest.get("changes")],
        "pictures": [
            {
                "title": method.title,
                "picture": Markup(method.picture),
                "classes": ", ".join(model.spec.classes[label] for label in method.pictured),
            }
            for method in methods
            if method.picture
        ],
        "diversity": measured
        and {
            "encoder": bare_name(measured[0][1]["encoder"]),
            "trained_on": measured[0][1]["encoder_trained_on"],
            "rows": [
                (method.title, _fixed(figures["mean_similarity"], 3), _within_class(figures["within_class_similarity"]))
                for method, figures in measured
            ],
        },
    }


def _generated(method: MethodImages, summary: Mapping[str, Any]) -> tuple[Any, ...]:
    return (
        method.title,
        _known(summary, "images", ",.0f"),
        _known(method.manifest.get("config", {}), "iterations", ",.0f"),
        Markup(f"{_known(summary, 'bns_loss_first', '.1f')} to {_known(summary, 'bns_loss_last', '.1f')}"),
        Markup(f"{_known(summary, 'teacher_agreement', '.1f')} %"),
        _known(summary, "seconds", ",.0f"),
    )


def _known(figures: Mapping[str, Any], name: str, form: str) -> Markup:
    """A number, or a question mark if there is none. form: of its digits."""
    return Markup(format(figures[name], form) if figures.get(name) is not None else "?")


def _within_class(similarity: float | None) -> str:
    return "no class has two images" if similarity is None else _fixed(similarity, 3)


def _changes(method: MethodImages) -> dict[str, Any]:
    changes = method.manifest["changes"]
    return {
        "title": method.title,
        "changes": [(change["step"], change["name"], Markup(f"{change['value']:g}")) for change in changes[:CHANGES_SHOWN]],
        "more": max(0, len(changes) - CHANGES_SHOWN),
    }


def _knobs(config: GenerationConfig | TrainingConfig, methods: Sequence[str] = ()) -> list[tuple[Any, Any]]:
    """Title and value of the knobs that these methods have; empty: all knobs."""
    rows = []
    for name, knob in knobs(type(config)).items():
        if name in _STATED_ELSEWHERE or (methods and not any(has_knob(knob, method) for method in methods)):
            continue
        symbol, value = knob.metadata["symbol"], getattr(config, name)
        value = bare_name(value) if isinstance(value, str) else value
        title = f"{name} ({symbol})" if symbol not in ("", name) else name
        rows.append((title, Markup(f"{value:g}") if type(value) is float else value))
    return rows


def _training(config: RunConfig) -> dict[str, Any]:
    widths = [config.training_for(bits) for bits in config.bits]
    return {
        "steps": [(one.width, _thousands(one.steps), Markup(f"{one.training_lr:g}")) for one in widths],
        "training_knobs": _knobs(config.training, config.methods),
        "layer_bits": ", ".join(f"{name} {bits}" for name, bits in config.training.layer_bits),
    }
