"""A model card in Markdown, written from a finished run: what the network is, how it was made, on what it was measured, what it is not.

The front matter is the YAML that model hubs read. Whatever came from outside (names of classes and runs, paths) only shows itself: it is
neither markup nor YAML, and of a path only its last part is told.
"""

import json
import platform
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from core import layout
from core.config import GenerationConfig, RunConfig, TrainingConfig, knobs
from core.data.image_sets import ImageSet, load_image_set
from core.errors import DataError, one_line
from core.export.commands import bare_name, commands
from core.files import atomic_folder
from core.models.full_precision import FullPrecisionModel, batch_norm_layers, load_model
from core.models.registry import CIFAR10_CLASSES

CARD = "README.md"  # the name under which model hubs look for it
PACKAGES = ("torch", "torchvision", "pytorchcv", "numpy", "safetensors")
COLUMNS, ROWS = 10, 6  # of a contact sheet: classes, and images of each
SMALLEST = 64  # pixels: smaller images are enlarged by a whole number, so that one can see them
NAMES_SHOWN = 20  # of classes: ImageNet has a thousand
CHANGES_SHOWN = 50
METHOD_TITLES = {"mi-fgsm": "MI-FGSM", "adam": "Adam"}
# stated in sentences elsewhere in the card
_TOLD = frozenset({"images", "weight_bits", "activation_bits", "steps", "training_lr", "layer_bits"})
_ESCAPED = {character: f"\\{character}" for character in string.punctuation if character not in "-,'\""}
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_PLAIN = str.maketrans({**_ESCAPED, **_ENTITIES})


@dataclass(frozen=True)
class MethodImages:
    """The images of one optimizer, or those that were given, and what came of them."""

    name: str
    manifest: Mapping[str, Any]
    images: int
    figures: Mapping[str, Any]  # of the run's result: "accuracy", and "generation" and "diversity" where there are any
    picture: str = ""  # file beside the card
    pictured: tuple[int, ...] = ()  # the class of each column in it


def write_card(folder: Path, config: RunConfig, name: str, out: Path) -> Path:
    """Makes the folder `out` with README.md, the model card of a finished run, and a picture of some images of each optimizer.

    folder: the run's, as `RunStore.run_folder` says; config, name: the run's. Returns the path of the card. All is written, or nothing.
    Raises DataError when the run has no result or no quantized network, or `out` is not a new or empty folder; ModelError when the
    full-precision network is not there any more.
    """
    result = _result(folder)
    model = load_model(config.model, "cpu")
    images = folder / layout.IMAGES
    places = layout.user_image_sets(Path(config.images_from), config.methods) if config.images_from else {}
    with atomic_folder(out) as temporary:
        methods = []
        for number, (method, figures) in enumerate(layout.methods_of(result).items(), 1):
            image_set = load_image_set(places.get(method, images / method), model.spec)
            # a method of given images is called whatever its folder is
            picture = f"{method}.png" if method in METHOD_TITLES else f"images-{number}.png"
            pictured = _columns(image_set.labels)
            contact_sheet(image_set, pictured).save(temporary / picture, format="PNG")
            methods.append(MethodImages(method, image_set.manifest, len(image_set), figures, picture, tuple(pictured)))
        (temporary / CARD).write_text(model_card(model, config, name, result["full_precision"], methods), encoding="utf-8")
    return out / CARD


def _result(folder: Path) -> dict[str, Any]:
    try:
        result = json.loads((folder / layout.RESULT).read_text())
    except FileNotFoundError as error:
        raise DataError(f"{folder.name} has no {layout.RESULT}: allowed is a run that is complete") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{folder / layout.RESULT} cannot be read ({error}): allowed is what a run wrote") from error
    if "full_precision" not in result:
        raise DataError(f"{folder.name} has no quantized network: allowed is a run with at least one bit width")
    return result


def contact_sheet(image_set: ImageSet, classes: Sequence[int], rows: int = ROWS) -> Image.Image:
    """The first `rows` images of each of these classes, one class a column; white where a class has fewer."""
    shape = image_set.images.shape[1:]
    scale = max(1, SMALLEST // min(shape[1:]))
    tiles = torch.full((rows, len(classes), *shape), 255, dtype=torch.uint8)
    for column, label in enumerate(classes):
        chosen = image_set.images[image_set.labels == label][:rows]
        tiles[: len(chosen), column] = chosen
    tiles = tiles.flatten(0, 1).repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)
    grid = make_grid(tiles, nrow=len(classes), padding=2, pad_value=255)
    return Image.fromarray(grid.permute(1, 2, 0).contiguous().numpy())


def _columns(labels: Tensor) -> list[int]:
    """At most COLUMNS of the classes that have images, spread evenly over them."""
    present = labels.unique()
    return present[torch.linspace(0, len(present) - 1, min(COLUMNS, len(present))).round().long()].tolist()


def model_card(model: FullPrecisionModel, config: RunConfig, name: str, full_precision: float, methods: Sequence[MethodImages]) -> str:
    """The card as Markdown with a front matter. name: the run's. full_precision: top-1 in percent."""
    spec = model.spec
    widths = [config.training_for(bits).width for bits in config.bits]
    sections = [
        _front_matter(f"{spec.name} {' '.join(widths)}", spec.architecture),
        f"# {plain(spec.name)}, quantized without its training data",
        f"{plain(spec.name)} with {' and '.join(widths)} (bits of weights and activations), made with {_source(config)}. "
        "The method is that of DFFG (Leng et al., Fast Gradient Iteration for Data-free Quantization, BMVC 2023). "
        f'This card was written from the run "{plain(name)}".',
        "## The network\n\n" + _network(model, full_precision),
        "## Results\n\n" + _results(config, full_precision, methods),
        "## The images\n\n" + _images(model, config, methods),
        "## Quantization and training\n\n" + _quantization(config),
        "## Limits\n\n" + _limits(model, config, methods),
        "## Making it again\n\n" + _again(config, methods),
        "## Licence\n\nLicence: of the original network, not stated here.",
    ]
    return "\n\n".join(sections) + "\n"


def plain(text: object) -> str:
    """Text in one line that Markdown and HTML show as it is, whatever is in it."""
    return one_line(" ".join(str(text).split())).translate(_PLAIN)


def _front_matter(title: str, architecture: str) -> str:
    tags = ["image-classification", "quantization", "data-free-quantization", architecture]
    # a JSON text is a YAML text, once nothing in it is invisible
    values = {"library_name": "pytorch", "pipeline_tag": "image-classification", "model_name": title}
    lines = [f"{key}: {_quoted(value)}" for key, value in values.items()]
    return "\n".join(["---", *lines, "tags:", *(f"- {_quoted(tag)}" for tag in tags), "---"])


def _quoted(text: str) -> str:
    return json.dumps(one_line(text), ensure_ascii=False)


def _table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Cells are Markdown; None is an empty cell."""
    cells = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join('' if cell is None else str(cell) for cell in row)} |" for row in cells)


def _method(name: str) -> str:
    return plain(METHOD_TITLES.get(name, f"{name} images"))


def _source(config: RunConfig) -> str:
    if config.images_from:
        return "images that were given to the run, whose origin it does not know"
    return "images synthesised from the statistics in its BatchNorm layers alone"


def _network(model: FullPrecisionModel, full_precision: float) -> str:
    spec = model.spec
    more = f" and {len(spec.classes) - NAMES_SHOWN:,} more" if len(spec.classes) > NAMES_SHOWN else ""
    rows = [
        ("architecture", plain(spec.architecture)),
        ("parameters", f"{sum(parameter.numel() for parameter in model.network.parameters()):,}"),
        ("BatchNorm layers", len(batch_norm_layers(model.network))),
        (
            "input",
            f"RGB, {spec.image_size} x {spec.image_size} pixels, less mean {spec.mean}, divided by {spec.std}, of values in \\[0, 1\\]",
        ),
        ("classes", f"{len(spec.classes):,}: {', '.join(plain(one) for one in spec.classes[:NAMES_SHOWN])}{more}"),
        ("trained on", plain(spec.trained_on)),
        ("top-1 in full precision", f"{full_precision:.2f} %"),
    ]
    return _table(("", plain(spec.name)), rows)


def _outcomes(config: RunConfig, methods: Sequence[MethodImages]) -> list[tuple[MethodImages, int, Mapping[str, Any]]]:
    return [(method, bits, method.figures["accuracy"][str(bits)]) for method in methods for bits in config.bits]


def _results(config: RunConfig, full_precision: float, methods: Sequence[MethodImages]) -> str:
    outcomes = _outcomes(config, methods)
    rows = [
        (
            _method(method.name),
            config.training_for(bits).width,
            f"{outcome['calibrated']:.2f}",
            f"{outcome['quantized']:.2f}" if outcome["steps"] else None,
            f"{outcome['standard_error']:.2f}",
            f"{full_precision - outcome['quantized']:.2f}",
        )
        for method, bits, outcome in outcomes
    ]
    notes = dict.fromkeys(plain(outcome["note"]) for _, _, outcome in outcomes if outcome["note"])
    return "\n\n".join(
        [
            f"Top-1 in percent on {_evaluated_on(config, outcomes[0][2]['evaluated_on'])}; in full precision {full_precision:.2f}. "
            "Reported is the last step of the training, never the best; calibrated means ranges only, no training.",
            _table(("images by", "width", "calibrated", "trained", "± standard error", "drop"), rows),
            *(f"Note: {note}." for note in notes),
        ]
    )


def _evaluated_on(config: RunConfig, description: str) -> str:
    data = config.evaluation.data
    return plain(description.replace(data, bare_name(data)))


def _images(model: FullPrecisionModel, config: RunConfig, methods: Sequence[MethodImages]) -> str:
    parts = []
    made = [(method, method.manifest["summary"]) for method in methods if "summary" in method.manifest]
    if made:
        parts.append(
            "Noise was moved by each optimizer until its statistics matched those in the BatchNorm layers (L_BNS), with labels, "
            "total variation and l2 norm beside it. No real image was used. Agreement is how often the full-precision network sees the "
            "class in an image that it was made for."
        )
        rows = [
            (
                _method(method.name),
                f"{summary['images']:,}",
                f"{method.manifest['config']['iterations']:,}",
                f"{summary['bns_loss_first']:.1f} to {summary['bns_loss_last']:.1f}",
                f"{summary['teacher_agreement']:.1f} %",
                f"{summary['seconds']:.0f}",
            )
            for method, summary in made
        ]
        parts.append(_table(("optimizer", "images", "iterations", "L_BNS, first to last iteration", "agreement", "seconds"), rows))
    else:
        parts.append(f"{sum(method.images for method in methods):,} images were given to the run, which did not make them.")
    if not config.images_from:
        parts.append("The knobs of the generation:\n\n" + _knobs(config.generation))
    parts += [_changes(method) for method in methods if method.manifest.get("changes")]
    for method in methods:
        names = ", ".join(plain(model.spec.classes[label]) for label in method.pictured)
        title = f"Some images, {_method(method.name)}"
        parts.append(f"{title}, one class a column ({names}):\n\n![{title}]({method.picture})")
    measured = [(method, method.figures["diversity"]) for method in methods if "diversity" in method.figures]
    if measured:
        encoder = measured[0][1]
        alike = [
            (_method(method.name), f"{figures['mean_similarity']:.3f}", _or_none(figures["within_class_similarity"]))
            for method, figures in measured
        ]
        parts.append(
            "Diversity is the cosine similarity of two images in a CLIP encoder, over all pairs; lower is more diverse. "
            f"The encoder is {plain(bare_name(encoder['encoder']))}, trained on {plain(encoder['encoder_trained_on'])}."
        )
        parts.append(_table(("images by", "all pairs", "within a class"), alike))
    return "\n\n".join(parts)


def _or_none(figure: float | None) -> str:
    return "no class has two" if figure is None else f"{figure:.3f}"


def _changes(method: MethodImages) -> str:
    changes = method.manifest["changes"]
    more = f"\n\nand {len(changes) - CHANGES_SHOWN} more." if len(changes) > CHANGES_SHOWN else ""
    rows = [(change["step"], plain(change["name"]), f"{change['value']:g}") for change in changes[:CHANGES_SHOWN]]
    return f"Knobs that a person turned while {_method(method.name)} was at work:\n\n" + _table(("step", "knob", "value"), rows) + more


def _knobs(config: GenerationConfig | TrainingConfig) -> str:
    rows = []
    for name, knob in knobs(type(config)).items():
        value = getattr(config, name)
        if name not in _TOLD:
            symbol = knob.metadata["symbol"]
            title = f"{plain(name)} ({plain(symbol)})" if symbol not in ("", name) else plain(name)
            rows.append((title, f"{value:g}" if type(value) is float else plain(value)))
    return _table(("knob", "value"), rows)


def _quantization(config: RunConfig) -> str:
    widths = [config.training_for(bits) for bits in config.bits]
    steps = _table(("width", "steps", "step size"), [(one.width, f"{one.steps:,}", f"{one.training_lr:g}") for one in widths])
    own = ", ".join(f"{plain(name)} {bits}" for name, bits in config.training.layer_bits)
    ends = "The first and the last layer have 8 bits." if config.training.first_last_8bit else ""
    ends += f" Layers with bits of their own: {own}." if own else ""
    ends = ends.strip() or "All layers have the same width."
    return "\n\n".join(
        [
            "Ranges are found by calibration. In training weights and activations are rounded in the forward pass, and gradients pass "
            f"straight through; the teacher is the full-precision network. {ends}",
            steps,
            "The knobs of the training, the weights of its losses among them (α):\n\n" + _knobs(config.training),
        ]
    )


def _limits(model: FullPrecisionModel, config: RunConfig, methods: Sequence[MethodImages]) -> str:
    evaluated_on = _evaluated_on(config, _outcomes(config, methods)[0][2]["evaluated_on"])
    limits = [
        f"Accuracy is known for {evaluated_on} and for nothing else: not for other images, cameras, crops or classes.",
        "Robustness, calibration of the scores and fairness were not measured.",
        "What the full-precision network gets wrong, and why, this one inherits.",
        "The same settings with another number of threads, machine or seed end some tenths of a point apart.",
    ]
    if config.images_from:
        limits.insert(0, "The training images were given: this card cannot say whether they are synthetic, or whose they are.")
    else:
        limits.insert(
            0,
            "No real image was seen in making the images or in training. Synthetic images can still bear traces of what the original "
            "network was trained on.",
        )
    if model.spec.classes == CIFAR10_CLASSES:
        limits.append(
            "The settings of the preset quick were chosen on the last 8,000 CIFAR-10 test images: with these settings, accuracy on all "
            "10,000 is not of unseen images."
        )
    return "\n".join(f"- {limit}" for limit in limits)


def _again(config: RunConfig, methods: Sequence[MethodImages]) -> str:
    lines = [one_line(line) for line in commands(config)]
    fence = "```"
    while any(fence in line for line in lines):
        fence += "`"
    turned = any(method.manifest.get("changes") for method in methods)
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    return "\n\n".join(
        [
            f"{fence}\n" + "\n".join(lines) + f"\n{fence}",
            "Files and folders are named without where they lay."
            + (" The knobs that were turned live are not part of the commands; with them alone the images differ." if turned else ""),
            f"Seeds: {config.machine.seed} for the images, {config.seed_of_training} for the training. The same bits come "
            "of the same seeds on the same machine with the same number of threads.",
            f"Versions when this card was written: Python {platform.python_version()}, {versions}.",
        ]
    )
