"""A run as one HTML file that opens anywhere, without a server or network access: settings, images, charts, tables, provenance.

The template is report.html.j2. It escapes every value, and its Content-Security-Policy forbids loading or running anything but its own
three scripts, which it names by hash: plotly.js, the buttons of `download_buttons.js`, and `report_charts.js`. No streamlit in here.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

from core import layout
from core.config import PRESETS, RunConfig, nearest_preset
from core.data.some_images import SomeImages
from core.errors import printable
from core.export import headline, provenance
from core.export.commands import bare_name, commands
from core.export.contact_sheet import class_columns, contact_sheet, evenly_spaced
from core.generation.methods import in_order
from core.models.registry import own_name
from core.runs.records import Record
from core.runs.run import Run
from core.runs.store import RunStore
from dashboard.charts import accuracy as accuracy_charts
from dashboard.charts import diversity as diversity_charts
from dashboard.charts import files as chart_files
from dashboard.charts import generation as generation_charts
from dashboard.charts import training as training_charts
from dashboard.charts.style import Figure, json_of
from dashboard.downloads import facts
from dashboard.images.contact_sheet import COLUMNS, MOST_COLUMNS_OF_CLASSES, data_uri
from dashboard.names import method_name
from dashboard.tables import results
from dashboard.tables.run_list import minutes, width_of
from dashboard.tables.terms import loss_terms
from dashboard.text import one_line_text

_HERE = Path(__file__).parent
_PICTURES = 64  # images of each method, if there are more than ten classes
_ROWS = 8  # images of each class, if there are at most ten


def report(store: RunStore, run: Run, classes: Sequence[str]) -> str:
    """The run in its current state, finished or not, as HTML.

    classes: names of the network's classes, by label; empty if they are unknown.
    """
    known, changes = store.results(run.id), store.changes(run.id)
    generation = store.records(run.id, "generation")
    scripts = {
        "plotly": Markup(_plotly()),
        "download_buttons": Markup(chart_files.script()),
        "charts": Markup((_HERE / "report_charts.js").read_text(encoding="utf-8")),
    }
    return _template().render(
        title=run.name,
        hashes=Markup(" ".join(_hash(script) for script in scripts.values())),
        scripts=scripts,
        run=run,
        head=_head(run, known),
        evaluated_on=provenance.evaluated_on(run.config, known["full_precision"]["evaluated_on"]) if "full_precision" in known else "",
        settings=_settings(run.config),
        changes=[
            {"step": one["step"], "images by": method_name(one["method"]), "knob": one["name"], "value": one["value"]} for one in changes
        ],
        sheets=_sheets(store.images_folder(run), classes),
        generation=_generation(generation, run.config, known, changes),
        training=_training(store.records(run.id, "training")),
        accuracy=_accuracy(known, run.config),
        layers=_layers(known),
        diversity=_diversity(known, classes),
        provenance={
            "facts": [{"": title, "value": str(value)} for title, value in facts.facts(run, known)],
            "commands": [escape(printable(line)) for line in commands(run.config)],  # whole: half a command cannot be run
            "papers": provenance.papers(run.config),
        },
    )


def report_now(store: RunStore, run_id: str, classes: Callable[[Run, Iterable[int]], Sequence[str]]) -> str:
    """`report` of the run as it is when this is called. classes: called with the run and no labels, returns the names of its classes."""
    run = store.run(run_id)
    return report(store, run, classes(run, ()))


def file_name(run: Run) -> str:
    return f"{chart_files.file_name(run.name)}-report.html"


@cache
def _template() -> Any:
    """Autoescaped; each value is shown in one line without control characters, unless it is Markup."""
    environment = Environment(
        autoescape=True,
        loader=FileSystemLoader(_HERE),
        finalize=lambda value: value if isinstance(value, Markup) else one_line_text(value),
        undefined=StrictUndefined,
    )
    environment.filters["cell"] = _cell
    return environment.get_template("report.html.j2")


@cache
def _plotly() -> str:
    """plotly.js, without text that would end its script element."""
    return get_plotlyjs().replace("</script", "<\\/script")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _cell(value: object) -> str:
    """A value in a table."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _chart(figure: Figure, name: str) -> dict[str, Any]:
    """Height and JSON of a figure. name: of the files that its buttons make."""
    text = json_of(figure, config={**chart_files.config(name), "responsive": True})
    # a `<` would be the only way out of the script element
    return {"height": int(figure["layout"].get("height", 450)), "json": Markup(text.replace("<", "\\u003c"))}


def _head(run: Run, known: Mapping[str, Any]) -> dict[str, Any]:
    """State, dates, and the main figures."""
    lines = [str(run.state), f"started {facts.date(run.started or run.created)}"]
    if run.ended and run.started:
        lines.append(f"took {minutes(run, known)} minutes")
    if run.user:
        lines.append(f"by {run.user}")
    figures = []
    full_precision = known.get("full_precision")
    if full_precision:
        figures.append(("full precision", f"{full_precision['top1']:.2f} %", f"± {full_precision['standard_error']:.2f}"))
    for row in results.accuracies(known):
        if row.get("quantized") is not None:
            title = f"{width_of(row)}, {method_name(row['method'])}"
            figures.append((title, f"{row['quantized']:.2f} %", f"± {row['standard_error']:.2f}"))
        elif row.get("kept"):
            words, agreement, error = results.agreement_of(row)
            if agreement is not None:
                title = f"agreement of {width_of(row)}, {method_name(row['method'])}, on {words} images"
                figures.append((title, f"{agreement:.2f} %", f"± {error:.2f}"))
    networks = headline.made_networks(known) if run.state.is_finished() else []
    return {"facts": lines, "figures": figures, "headline": headline.summary(networks, own_name(run.config.model))}


def _settings(config: RunConfig) -> dict[str, Any]:
    """Differences from the nearest preset, and all settings."""
    nearest, _ = nearest_preset(config)
    own, theirs = facts.settings(config), facts.settings(PRESETS[nearest])
    different = [
        {
            "section": section,
            "knob": facts.title(name),
            "this run": _cell(value),
            f"preset {nearest}": _cell(theirs.get((section, name))),
        }
        for (section, name), value in own.items()
        if theirs.get((section, name)) != value
    ]
    every = [{"section": section, "knob": facts.title(name), "value": _cell(value)} for (section, name), value in own.items()]
    return {"preset": nearest, "different": different, "all": every}


def _sheets(folder: Path, classes: Sequence[str]) -> list[dict[str, Any]]:
    """A contact sheet of each complete image set."""
    return [
        {"title": method_name(method), **sheet}
        for method in in_order(layout.image_methods(folder))
        if (sheet := _sheet(SomeImages(folder / method), classes))
    ]


def _sheet(images: SomeImages, classes: Sequence[str]) -> dict[str, Any]:
    """One class per column if there are at most ten, else images spread over the set; empty for a set that cannot be read."""
    read, labels = None, images.labels()
    if labels is None:  # in shards
        read = images.read(images.spread(_ROWS * MOST_COLUMNS_OF_CLASSES))
        labels = np.zeros(0, dtype=np.int64) if read is None else read[1]
    by_class = int(labels.max(initial=0)) < len(classes) <= MOST_COLUMNS_OF_CLASSES
    if by_class:
        chosen = np.concatenate([evenly_spaced(np.flatnonzero(labels == label), _ROWS) for label in range(len(classes))])
    else:
        chosen = evenly_spaced(np.arange(len(labels)), _PICTURES)
    # only these: a set of photograph-sized images does not fit the memory of a server
    found = images.read(chosen.tolist()) if read is None else (read[0][chosen], labels[chosen])
    if found is None:
        return {}
    some = found[0]
    if by_class:
        rows = max(1, min(_ROWS, len(chosen) // len(classes)))
        sheet = contact_sheet(some, len(classes), class_columns(labels[chosen], range(len(classes)), rows))
    else:
        sheet = contact_sheet(some, COLUMNS)
    caption = f"{len(chosen):,} of {images.total:,} images, spread over the set"
    return {
        "caption": caption,
        "picture": Markup(data_uri(sheet)),
        "classes": [one_line_text(name, 60) for name in classes] if by_class else [],
    }


def _generation(
    records: list[Record], config: RunConfig, known: Mapping[str, Any], changes: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    if not records:
        return []
    charts = [_chart(generation_charts.loss_figure(records, changes, loss_terms(known)), "loss")]
    layers, count = known.get("layers", ()), len(records[0].data["layers"])
    names = layers if len(layers) == count else [f"layer {index + 1}" for index in range(count)]
    methods = [method for method in config.methods if any(record.series == method for record in records)]
    if methods:
        charts.append(_chart(generation_charts.layer_heatmaps(records, methods, names, changes), "L_BNS by layer"))
    return charts


def _training(records: list[Record]) -> list[dict[str, Any]]:
    if not records:
        return []
    return [_chart(training_charts.training_figure(records, part), f"training {part}") for part in training_charts.PARTS]


def _accuracy(known: Mapping[str, Any], config: RunConfig) -> dict[str, Any] | None:
    rows = results.accuracies(known)
    if not rows:
        return None
    full_precision = known.get("full_precision", {}).get("top1")
    figure = accuracy_charts.accuracy_figure(rows, full_precision, *results.paper_accuracies(config.model))
    return {
        "chart": _chart(figure, "accuracy"),
        "rows": results.accuracy_table(rows, full_precision),
        "measured": results.has_accuracy(rows),
        "agreement": [
            {"words": words, "images": provenance.evaluated_on(config, images)} for words, images in results.measured_on(rows).items()
        ],
        "notes": list(dict.fromkeys(row["note"] for row in rows if row.get("note"))),
    }


def _layers(known: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The error of every layer of each network: a chart, and on which images it was measured."""
    found = []
    for name in sorted(name for name in known if name.startswith("layers/") and known[name]["layers"]):
        _, method, width = name.split("/")
        rows = known[name]["layers"]
        worst = min(rows, key=lambda layer: math.inf if layer["sqnr"] is None else layer["sqnr"])
        chart = _chart(training_charts.error_figure(rows, method, worst["name"]), f"layers {method} {width}")
        found.append(
            {
                "title": f"{method_name(method)} {width}",
                "worst": worst["name"],
                "measured_on": results.layers_measured_on(known[name]),
                "chart": chart,
            }
        )
    return found


def _diversity(known: Mapping[str, Any], classes: Sequence[str]) -> dict[str, Any] | None:
    measured = results.diversities(known)
    if not measured:
        return None
    rows = [
        {
            "images by": method_name(method),
            "mean similarity of all pairs": figures["mean_similarity"],
            "within a class": figures["within_class_similarity"],
            "images": figures.get("images"),
        }
        for method, figures in measured.items()
    ]
    first = next(iter(measured.values()))
    low = min(value for figures in measured.values() for row in figures["matrix"]["cosine"] for value in row)
    most = max(max(figures["matrix"]["labels"], default=-1) for figures in measured.values())
    names = [*classes, *(f"class {index}" for index in range(len(classes), most + 1))]
    return {
        "encoder": bare_name(first["encoder"]),
        "trained_on": first["encoder_trained_on"],
        "rows": rows,
        "histogram": _chart(diversity_charts.histogram_figure(measured, results.references(known)), "similarities"),
        "matrices": [
            _chart(diversity_charts.matrix_figure(method, figures["matrix"], names, low), f"similarity matrix {method}")
            for method, figures in measured.items()
        ],
    }
