"""A run as one HTML file that opens anywhere, without a server and without a network: settings, pictures, charts, tables, provenance.

No streamlit in here. All that comes from outside is escaped, and the file forbids itself to run or load anything but its own three
scripts (plotly.js, the buttons of `download_buttons.js`, and the drawing of the charts), whose hashes it names.
"""

from __future__ import annotations

import base64
import hashlib
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from html import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.io.json import to_json_plotly
from plotly.offline import get_plotlyjs
from safetensors import safe_open

from core import layout
from core.config import PRESETS, SECTIONS, RunConfig, every_knob
from core.export.commands import bare_name, commands
from core.runs.records import Record
from core.runs.run import Run
from core.runs.store import RunStore
from dashboard.charts import accuracy as accuracy_charts
from dashboard.charts import diversity as diversity_charts
from dashboard.charts import files as chart_files
from dashboard.charts import generation as generation_charts
from dashboard.charts import training as training_charts
from dashboard.images import contact_sheet
from dashboard.names import method_name
from dashboard.tables import results
from dashboard.text import shown

_HERE = Path(__file__).parent
_PACKAGES = ("torch", "torchvision", "pytorchcv", "open-clip-torch", "numpy", "plotly")
_PICTURES = 64  # of each optimizer, where there are more than ten classes
_ROWS = 8  # images of each class, where there are at most ten


def report(store: RunStore, run: Run, classes: Sequence[str]) -> str:
    """The run as it is now, finished or not.

    classes: names, by label, of the network's classes; empty where they are not known.
    """
    known, changes = store.results(run.id), store.changes(run.id)
    sections = [
        _head(run, known),
        _settings(run.config),
        _changes(changes),
        _pictures(store, run, classes),
        _generation(store.records(run.id, "generation"), run.config, known.get("layers", ()), changes),
        _training(store.records(run.id, "training")),
        _accuracy(known, run.config),
        _diversity(known, classes),
        _provenance(run, known, bool(changes)),
    ]
    scripts = {
        "plotly": _plotly(),
        "take_along": chart_files.script(),
        "charts": (_HERE / "report_charts.js").read_text(encoding="utf-8"),
    }
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in scripts.values())
    template = Template((_HERE / "report.html").read_text(encoding="utf-8"))
    return template.substitute(title=_text(run.name), body="\n".join(filter(None, sections)), hashes=hashes, **scripts)


def report_now(store: RunStore, run_id: str, classes: Callable[[str, Iterable[int]], Sequence[str]]) -> str:
    """`report` of the run as it is when this is called. classes: from a network's name and no labels to the names of its classes."""
    run = store.run(run_id)
    return report(store, run, classes(run.config.model, ()))


def file_name(run: Run) -> str:
    return f"{chart_files.file_name(run.name)}-report.html"


@cache
def _plotly() -> str:
    """plotly.js, with nothing in it that would end its element."""
    return get_plotlyjs().replace("</script", "<\\/script")


def _text(value: object) -> str:
    return escape(shown(value))


def _chart(figure: go.Figure, name: str) -> str:
    """A place for a chart, and its data and layout after it. name: of its files."""
    values = figure.to_dict()
    values["layout"].pop("template", None)  # the page brings its own colours
    values = {"data": values["data"], "layout": values["layout"], "config": {**chart_files.config(name), "responsive": True}}
    # a `<` would be the only way out of the element
    text = to_json_plotly(values).replace("<", "\\u003c")
    height = int(figure.layout.height or 450)
    return f'<div class="chart" style="height:{height}px"></div><script type="application/json">{text}</script>'


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The keys of the first row are the titles; numbers stand at the right."""
    if not rows:
        return ""
    head = "".join(f'<th{_side(rows[0][title])} scope="col">{_text(title)}</th>' for title in rows[0])
    lines = ("".join(f"<td{_side(value)}>{_text(_cell(value))}</td>" for value in row.values()) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _side(value: object) -> str:
    return ' class="number"' if _is_number(value) else ""


def _cell(value: object) -> str:
    """A value for a person to read."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _time(seconds: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if seconds else "–"


def _head(run: Run, known: Mapping[str, Any]) -> str:
    """Name, state, dates, and the figures that one looks for first."""
    facts = [f"{run.state}", f"started {_time(run.started or run.created)}"]
    if run.ended and run.started:
        facts.append(f"took {(run.ended - run.started) / 60:.1f} minutes")
    if run.user:
        facts.append(f"by {run.user}")
    figures = []
    full_precision = known.get("full_precision")
    if full_precision:
        figures.append(("full precision", f"{full_precision['top1']:.2f} %", f"± {full_precision['standard_error']:.2f}"))
    for row in results.accuracies(known):
        if row.get("quantized") is not None:
            title = f"W{row['weight_bits']}A{row['activation_bits']}, {method_name(row['method'])}"
            figures.append((title, f"{row['quantized']:.2f} %", f"± {row['standard_error']:.2f}"))
    boxes = "".join(
        f"<div><span>{_text(title)}</span><b>{_text(value)}</b><span>{_text(more)}</span></div>" for title, value, more in figures
    )
    lines = [f"<h1>{_text(run.name)}</h1>", f'<p class="faint">{_text(", ".join(facts))}</p>']
    if run.error:
        lines.append(f"<p>{_text(run.error)}</p>")
    if boxes:
        lines.append(f'<div class="figures">{boxes}</div>')
        lines.append(f'<p class="faint">Top-1 on {_evaluated_on(run.config, known)}; ± is one standard error.</p>')
    return "".join(lines)


def _evaluated_on(config: RunConfig, known: Mapping[str, Any]) -> str:
    data = config.evaluation.data
    return _text(str(known["full_precision"]["evaluated_on"]).replace(data, bare_name(data)))


def _values(config: RunConfig) -> dict[tuple[str, str], Any]:
    """(section, knob) -> value of all settings of a run; of a path only its last part."""
    values: dict[tuple[str, str], Any] = {}
    for name, value in config.to_dict().items():
        if name in SECTIONS:
            values |= {(name, key): own for key, own in value.items() if key not in ("weight_bits", "layer_bits" if not own else "")}
        else:
            values["run", name] = value
    return {key: _plain(value) for key, value in values.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return bare_name(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_plain(one)}" for key, one in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(str(_plain(one)) for one in value)
    return value


def _title(part: str, name: str) -> str:
    symbol = every_knob()[name].metadata["symbol"] if name in every_knob() else ""
    return f"{name} ({symbol})" if symbol not in ("", name) else name


def _settings(config: RunConfig) -> str:
    """What differs from the nearest preset, and then everything."""
    own = _values(config)
    differences = {preset: [key for key, value in _values(start).items() if own.get(key) != value] for preset, start in PRESETS.items()}
    nearest = min(differences, key=lambda preset: len(differences[preset]))
    start = _values(PRESETS[nearest])
    changed = [
        {"part": key[0], "knob": _title(*key), "this run": _cell(own.get(key)), f"preset {nearest}": _cell(start[key])}
        for key in differences[nearest]
    ]
    everything = [{"part": part, "knob": _title(part, name), "value": _cell(value)} for (part, name), value in own.items()]
    told = _table(changed) if changed else f"<p>Those of the preset {_text(nearest)}, all of them.</p>"
    return (
        f"<h2>Settings</h2><p>What differs from the preset {_text(nearest)}:</p>{told}" if changed else f"<h2>Settings</h2>{told}"
    ) + f"<details><summary>All settings</summary>{_table(everything)}</details>"


def _changes(changes: Sequence[Mapping[str, Any]]) -> str:
    if not changes:
        return ""
    rows = [{"step": c["step"], "images by": method_name(c["method"]), "knob": c["name"], "value": c["value"]} for c in changes]
    return f"<h2>Live changes</h2><p>What a person turned while the images were made.</p>{_table(rows)}"


def _pictures(store: RunStore, run: Run, classes: Sequence[str]) -> str:
    """Some images of each set that is whole."""
    folder = store.images_folder(run)
    methods = sorted(layout.image_methods(folder), key=results.place)
    if not methods:
        return ""
    sheets = "".join(
        f"<div><h3>{_text(method_name(method))}</h3>{_sheet(folder / method / layout.IMAGES_FILE, classes)}</div>" for method in methods
    )
    return f'<h2>Images</h2><div class="side">{sheets}</div>'


def _sheet(path: Path, classes: Sequence[str]) -> str:
    """A contact sheet: one class a column where there are at most ten, else some images spread evenly over the set."""
    with safe_open(path, framework="np") as tensors:
        labels = tensors.get_tensor("labels")
        pixels = tensors.get_slice("images")
        in_columns = int(labels.max(initial=0)) < len(classes) <= 10
        if in_columns:
            chosen = np.concatenate([_spread(np.flatnonzero(labels == label), _ROWS) for label in range(len(classes))])
        else:
            chosen = _spread(np.arange(len(labels)), _PICTURES)
        # one by one: a set of photographs' size does not fit the memory of a server
        some = np.stack([pixels[int(index)] for index in chosen])
    titles = ""
    if in_columns:
        rows = max(1, min(_ROWS, len(chosen) // len(classes)))
        sheet = contact_sheet.contact_sheet(contact_sheet.by_class(some, labels[chosen], len(classes), rows), len(classes))
        titles = f'<div class="classes">{"".join(f"<div>{escape(shown(name, 60))}</div>" for name in classes)}</div>'
    else:
        sheet = contact_sheet.contact_sheet(some, 8)
    caption = f"{len(chosen):,} of {len(labels):,} images, spread evenly over the set"
    image = f'<img alt="{_text(caption)}" src="{contact_sheet.data_uri(sheet)}">'
    return f"<figure>{titles}{image}<figcaption>{_text(caption)}</figcaption></figure>"


def _spread(values: np.ndarray, most: int) -> np.ndarray:
    """At most so many of the values, at equal distances: early and late snapshots alike."""
    return values[np.unique(np.linspace(0, len(values) - 1, min(most, len(values))).round().astype(int))]


def _generation(records: list[Record], config: RunConfig, layers: Sequence[str], changes: Sequence[Mapping[str, Any]]) -> str:
    if not records:
        return ""
    drawn = [_chart(go.Figure(generation_charts.loss_figure(records, changes)), "loss")]
    count = len(records[0].data["layers"])
    names = layers if len(layers) == count else [f"layer {index + 1}" for index in range(count)]
    methods = [method for method in config.methods if any(record.series == method for record in records)]
    drawn.append(_chart(go.Figure(generation_charts.layer_heatmaps(records, methods, names, changes)), "L_BNS by layer"))
    return (
        "<h2>Generation</h2><p>Loss over the iterations of all batches: each tooth is a batch that starts from new noise. L_BNS is the "
        "distance of a batch's statistics to those in the network's BatchNorm layers.</p>" + "".join(drawn)
    )


def _side_by_side(parts: Iterable[str]) -> str:
    return f'<div class="side">{"".join(f"<div>{part}</div>" for part in parts)}</div>'


def _training(records: list[Record]) -> str:
    if not records:
        return ""
    drawn = [_chart(training_charts.training_figure(records, part), f"training {part}") for part in ("total", "agreement")]
    return "<h2>Training of the quantized networks</h2>" + _side_by_side(drawn)


def _accuracy(known: Mapping[str, Any], config: RunConfig) -> str:
    rows = results.accuracies(known)
    if not rows:
        return ""
    full_precision = known.get("full_precision", {}).get("top1")
    paper, paper_full_precision = results.paper_accuracies(config.model)
    figure = accuracy_charts.accuracy_figure(rows, full_precision, paper, paper_full_precision)
    notes = "".join(f"<p>{_text(note)}</p>" for note in dict.fromkeys(row["note"] for row in rows if row.get("note")))
    on = f"Top-1 in percent on {_evaluated_on(config, known)}. " if "full_precision" in known else ""
    return (
        f"<h2>Accuracy</h2><p>{on}Calibrated: ranges only, no training. Trained: the last step of the training, never the best.</p>"
        + _chart(figure, "accuracy")
        + _table(results.accuracy_table(rows, full_precision))
        + notes
    )


def _diversity(known: Mapping[str, Any], classes: Sequence[str]) -> str:
    measured = results.diversities(known)
    if not measured:
        return ""
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
    matrices = [
        _chart(diversity_charts.matrix_figure(method, figures["matrix"], names, low), f"similarity matrix {method}")
        for method, figures in measured.items()
    ]
    return (
        "<h2>Diversity</h2><p>Cosine similarity of two images in a CLIP encoder, over all pairs; lower is more diverse. The encoder is "
        f"{_text(bare_name(first['encoder']))}, trained on {_text(first['encoder_trained_on'])}.</p>"
        + _table(rows)
        + _chart(diversity_charts.histogram_figure(measured, results.references(known)), "similarities")
        + _side_by_side(matrices)
    )


def _provenance(run: Run, known: Mapping[str, Any], turned: bool) -> str:
    config = run.config
    rows = [{"": title, "value": str(value)} for title, value in _facts(run, known)]
    lines = "\n".join(shown(line) for line in commands(config))
    live = " The knobs that were turned live are not part of them: with the commands alone the images differ." if turned else ""
    return (
        f"<h2>Where it comes from</h2>{_table(rows)}<h3>Making it again</h3>"
        f"<p>The same bits come of the same seeds on the same machine with the same number of threads.{live}</p>"
        f"<pre>{escape(lines)}</pre>"
        '<p class="faint">Files and folders are named without where they lay. The method is that of DFFG (Leng et al., Fast Gradient '
        "Iteration for Data-free Quantization, BMVC 2023).</p>"
    )


def _facts(run: Run, known: Mapping[str, Any]) -> list[tuple[str, Any]]:
    config = run.config
    facts: list[tuple[str, Any]] = [
        ("run", run.id),
        ("network", bare_name(config.model)),
        ("seed of the images", config.machine.seed),
        ("seed of the training", config.seed_of_training),
        ("threads", config.machine.threads or "as torch chooses"),
        ("device", config.machine.device),
    ]
    full_precision = known.get("full_precision")
    if full_precision:
        facts += [
            (
                "evaluation images",
                str(full_precision["evaluated_on"]).replace(config.evaluation.data, bare_name(config.evaluation.data)),
            ),
            ("standard error of full precision", f"{full_precision['standard_error']:.2f} points"),
        ]
    facts += [
        ("attempts", run.attempt),
        ("report written", _time(time.time())),
        ("versions then", f"Python {platform.python_version()}, {', '.join(_versions())}"),
        ("machine then", f"{_processor()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}"),
    ]
    return facts


def _versions() -> list[str]:
    found = []
    for package in _PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"without {package}")
    return found


def _processor() -> str:
    """What the processor calls itself."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor() or "unknown")
