"""Several runs side by side: settings that differ, curves on one axis, last and best values, accuracies. Pure: no streamlit in here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from core.config import SECTIONS, GenerationConfig, RunConfig
from core.generation.methods import in_order, method_order
from core.models.registry import own_name
from core.runs.run import Run
from dashboard.charts.style import DASHES, POINTS, Figure, figure, log_axis, numbers, thinned
from dashboard.names import knob_title, method_name
from dashboard.tables import results
from dashboard.tables.run_list import BASELINE, width_of
from dashboard.tables.terms import DEFAULT_TERMS, Term, loss_terms
from dashboard.text import plotly, shortened

MOST = 8  # runs in one comparison: more colors cannot be distinguished
# One color per run. None of them is that of a method, all have a contrast of 3 to 1 against the white and the dark background, and any two
# are 20 apart in CIELAB, also as people with protanopia, deuteranopia and tritanopia see them (simulated after Machado et al., 2009).
COLORS = ("#6938FA", "#7B9C16", "#E963A6", "#107058", "#B48C64", "#1F8CF9", "#B219B2", "#776222")
_FAINT = 0.25  # opacity of the line below the smoothed one
AXES = ("iteration", "seconds", "images")
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Curve:
    """A number that can be drawn, of the records of one stage. name: its key in them."""

    stage: str
    name: str
    higher_is_better: bool = False
    unit: str = ""


_TRAINING_CURVES = {
    "training loss": Curve("training", "total"),
    "training L_KD": Curve("training", "kd"),
    "training L_CE": Curve("training", "ce"),
    "training agreement": Curve("training", "agreement", True, "%"),
}


def curves_of_terms(terms: Sequence[Term]) -> dict[str, Curve]:
    """Label -> curve: those of a generation with these loss terms, then those of a training."""
    return {
        "total loss": Curve("generation", "total"),
        **{term.short: Curve("generation", term.name) for term in terms},
        "teacher agreement": Curve("generation", "agreement", True, "%"),
        **_TRAINING_CURVES,
    }


@dataclass(frozen=True)
class Compared:
    """One of the compared runs.

    config: None if this version cannot read it. curves: series -> name of a number -> `(records,)`. results: full_precision, accuracy/...
    and terms.
    """

    run: Run
    letter: str
    color: str
    config: RunConfig | None
    curves: Mapping[str, Mapping[str, np.ndarray]]
    results: Mapping[str, Any]
    changes: Sequence[Mapping[str, Any]] = ()

    @property
    def title(self) -> str:
        """Letter, name and the star of the baseline. The letter distinguishes runs of the same name."""
        return f"{self.letter} · {shortened(self.run.name, 40)}{' ' + BASELINE if self.run.pinned else ''}"


def baseline_of(compared: Sequence[Compared]) -> Compared:
    """The run that the others are compared with: the pinned one, else the first."""
    return next((one for one in compared if one.run.pinned), compared[0])


def curves_of(compared: Sequence[Compared]) -> dict[str, Curve]:
    """Label -> curve: those that at least one of the runs can have, by the loss terms that it recorded."""
    terms = {term.name: term for one in compared for term in loss_terms(one.results)}
    return curves_of_terms(list(terms.values()) or DEFAULT_TERMS)


# settings that are in no section
_TITLES = {
    "model": "Network",
    "methods": "Methods",
    "bits": "Bit widths",
    "steps_by_bits": "Training steps by bit width",
    "lr_by_bits": "Training step size by bit width",
    "images_from": "Folder of the images",
}


def settings_table(compared: Sequence[Compared]) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Settings that differ, with a column for each run, and those that are equal in all. Live changes count as a setting."""
    own = [_settings(one) for one in compared]
    names = list(dict.fromkeys(name for settings in own for name in settings))
    different, equal = [], []
    for name in names:
        values = [settings.get(name, UNKNOWN) for settings in own]
        if len(set(values)) > 1:
            different.append({"setting": name, **{one.title: value for one, value in zip(compared, values)}})
        else:
            equal.append({"setting": name, "value": values[0]})
    return different, equal


def _settings(one: Compared) -> dict[str, str]:
    if one.config is None:
        return {}
    settings: dict[str, str] = {}
    for name, value in one.config.to_dict().items():
        for knob, part in value.items() if name in SECTIONS else [("", value)]:
            title = knob_title(knob) if knob else _TITLES.get(name, name)
            title = f"{title} ({name})" if title in settings else title
            settings[title] = _words(own_name(part) if name == "model" else list(map(method_name, part)) if name == "methods" else part)
    changes = [f"{change['name']} = {change['value']:g} at {change['step']} ({change['method']})" for change in one.changes]
    return {**settings, "Live changes": ", ".join(changes) or "none"}


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {part}" for key, part in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return str(value) if value != "" else "none"


def series_of(compared: Sequence[Compared]) -> list[str]:
    """Every series of their curves once, in the order of the method table."""
    return sorted({series for one in compared for series in one.curves}, key=lambda series: (method_order(series.split(" ")[0]), series))


def curves_figure(
    compared: Sequence[Compared],
    label: str,
    axis: str = "iteration",
    log: bool = False,
    smoothing: float = 0.0,
    series: Sequence[str] = (),
) -> Figure:
    """A curve of `curves_of` for each run and series: color is the run, dash the series; the baseline has the thicker line.

    axis: one of AXES. smoothing: weight of the past in [0, 1), as in TensorBoard; the values themselves remain as faint lines. series:
    only these; empty: all.
    """
    curve, order = curves_of(compared)[label], series_of(compared)
    traces: list[dict[str, Any]] = []
    for one in compared:
        for name, columns in one.curves.items():
            if curve.name not in columns or (series and name not in series):
                continue
            x, y = axis_values(one.config, curve.stage, columns, axis), columns[curve.name]
            line = _line(one, order.index(name))
            shared = {"type": "scatter", "mode": "lines", "legendgroup": f"{one.letter} {name}"}
            if smoothing:
                faint = {"line": {**line, "width": 1, "dash": "solid"}, "opacity": _FAINT, "showlegend": False, "hoverinfo": "skip"}
                traces.append(shared | _points(x, y) | faint)
            title = f"{plotly(one.title)}, {plotly(method_name(name))}"
            traces.append(shared | _points(x, smoothed(y, smoothing)) | {"line": line, "name": title})
    return figure(
        traces, label + (f", smoothed by {smoothing:g}" if smoothing else ""), 460, hovermode="closest",
        xaxis={"title": {"text": {"iteration": "iteration", "seconds": "computing time (s)", "images": "images processed"}[axis]}},
        yaxis={
            "title": {"text": curve.unit}, "nticks": 7, "exponentformat": "power",
            **(log_axis(float(value) for trace in traces for value in trace["y"]) if log else {"type": "linear"}),
        },
        # with another axis, the zoom of this one does not apply
        uirevision=f"{label} {axis} {log}",
    )  # fmt: skip


def _line(one: Compared, index: int) -> dict[str, Any]:
    """index: of the method or series."""
    return {"color": one.color, "width": 3.5 if one.run.pinned else 1.8, "dash": DASHES[index % len(DASHES)]}


def _points(x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    chosen = thinned(list(range(len(x))), POINTS)
    whole = bool(np.equal(np.mod(x, 1), 0).all())  # steps and numbers of images keep all of their digits
    return {"x": x[chosen].astype(np.int64) if whole else x[chosen], "y": numbers(y[chosen])}


def smoothed(values: np.ndarray, weight: float) -> np.ndarray:
    """Exponential moving average with TensorBoard's bias correction. Values that are not finite are skipped and kept as they are."""
    if not weight:
        return values
    result, finite = values.copy(), np.isfinite(values)
    averages = accumulate(values[finite].tolist(), lambda average, value: weight * average + (1 - weight) * value, initial=0.0)
    result[finite] = np.array(list(averages)[1:]) / (1 - weight ** np.arange(1, finite.sum() + 1))
    return result


def axis_values(config: RunConfig | None, stage: str, columns: Mapping[str, np.ndarray], axis: str) -> np.ndarray:
    """Positions of the records of one series on the axis, `(records,)`; iterations if the other quantity is unknown."""
    steps = columns["step"]
    if axis == "seconds" and "seconds" in columns:
        return columns["seconds"]
    if axis == "images" and config is not None:
        return images_generated(config.generation, steps) if stage == "generation" else images_trained_on(config, steps)
    return steps


def images_generated(config: GenerationConfig, steps: np.ndarray) -> np.ndarray:
    """Images that passed through the network up to each iteration, counted from 1; each image of a batch counts once per iteration."""
    sizes = np.array(config.batches)
    batch = np.clip((steps.astype(int) - 1) // config.iterations, 0, len(sizes) - 1)
    before = np.concatenate([[0], np.cumsum(sizes)[:-1]]) * config.iterations
    return (before[batch] + sizes[batch] * (steps - batch * config.iterations)).astype(np.float64)


def images_trained_on(config: RunConfig, steps: np.ndarray) -> np.ndarray:
    """Images up to each training step. The last batch of an epoch may be short, but counts as full for given images."""
    size, images = config.training.training_batch_size, config.generation.saved_images
    if config.images_from:
        return steps * size
    epoch = math.ceil(images / size)
    return steps // epoch * images + np.minimum(steps % epoch * size, images)


def values_table(compared: Sequence[Compared], label: str) -> list[dict[str, Any]]:
    """Last and best value of each run and series, and their differences to those of the baseline in the same series."""
    curve, base = curves_of(compared)[label], baseline_of(compared)
    known = {(one.letter, series): _last_and_best(curve, columns) for one in compared for series, columns in one.curves.items()}
    rows = []
    for one in compared:
        for series in series_of([one]):
            own, of_base = known[one.letter, series], known.get((base.letter, series))
            if own is None:
                continue
            last, best, step = own
            row: dict[str, Any] = {"run": one.title, "method": method_name(series), "last": last, "best": best, "best at iteration": step}
            against = of_base if one is not base else None
            row["last − baseline"] = last - against[0] if against else None
            row["best − baseline"] = best - against[1] if against else None
            rows.append(row)
    return rows


def _last_and_best(curve: Curve, columns: Mapping[str, np.ndarray]) -> tuple[float, float, int] | None:
    values = columns.get(curve.name)
    if values is None or not np.isfinite(values).any():
        return None
    finite = np.flatnonzero(np.isfinite(values))
    best = finite[np.argmax(values[finite]) if curve.higher_is_better else np.argmin(values[finite])]
    return float(values[finite[-1]]), float(values[best]), int(columns["step"][best])


def accuracy_table(compared: Sequence[Compared]) -> list[dict[str, Any]]:
    """Top-1 of each run and method at each bit width, after training if there was one, else after calibration; and minus the baseline's.
    Then the agreement with full precision on real and on held-out synthetic images, as far as it was measured.
    """
    rows, base = [], _accuracies(baseline_of(compared))
    known = {one.letter: _accuracies(one) for one in compared}
    agreements = {words: {one.letter: _agreements(one, words) for one in compared} for words in results.MEASURED_ON}
    widths = _widths(known)
    for one in compared:
        for method, own in known[one.letter].items():
            against = base.get(method, {}) if one is not baseline_of(compared) else {}
            row: dict[str, Any] = {"run": one.title, "images by": method_name(method)}
            row["full precision %"] = one.results.get("full_precision", {}).get("top1")
            row |= {f"{width} %": own.get(width) for width in widths}
            row |= {f"{width} − baseline": round(own[width] - against[width], 2) if width in own and width in against else None
                    for width in widths}  # fmt: skip
            for words, of_runs in agreements.items():
                row |= {f"{width} {words} agreement %": of_runs[one.letter][method].get(width) for width in _widths(of_runs)}
            rows.append(row)
    return rows


def _accuracies(one: Compared) -> dict[str, dict[str, float]]:
    """Method -> bit width -> top-1; without labeled images, there are no bit widths."""
    return _by_width(one, lambda row: row["calibrated"] if row.get("quantized") is None else row["quantized"])


def _agreements(one: Compared, words: str) -> dict[str, dict[str, float]]:
    """Method -> bit width -> agreement with full precision. words: on which images, of `results.MEASURED_ON`."""
    _, start = results.MEASURED_ON[words]
    return _by_width(one, lambda row: row[f"{start}agreement"])


def _by_width(one: Compared, figure: Callable[[Mapping[str, Any]], float | None]) -> dict[str, dict[str, float]]:
    methods: dict[str, dict[str, float]] = {}
    for row in results.accuracies(one.results):
        own, value = methods.setdefault(row["method"], {}), figure(row)
        if value is not None:
            own[width_of(row)] = value
    return methods


def _widths(known: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[str]:
    return sorted({width for methods in known.values() for own in methods.values() for width in own})


def accuracy_figure(compared: Sequence[Compared]) -> Figure | None:
    """Top-1 over bit widths; color is the run, dash the method of the images. Where no run has an accuracy, the agreement with full
    precision instead, on real images if all runs have it there. None if nothing was measured.
    """
    known = {one.letter: _accuracies(one) for one in compared}
    name, axis = "Accuracy at each bit width", "top-1 accuracy, %"
    if not _widths(known):
        real, synthetic = ({one.letter: _agreements(one, words) for one in compared} for words in results.MEASURED_ON)
        measured = [letter for letter in synthetic if _widths({letter: synthetic[letter]})]
        words = "real" if all(_widths({letter: real[letter]}) for letter in measured) and _widths(real) else "synthetic"
        known = real if words == "real" else synthetic
        name, axis = "Agreement with full precision at each bit width", f"{words} images of the same class, %"
    widths = _widths(known)
    methods = in_order({method for own in known.values() for method in own})
    if not widths:
        return None
    traces = [
        {
            "type": "scatter", "mode": "lines+markers", "name": f"{plotly(one.title)}, {plotly(method_name(method))}",
            "x": [width for width in widths if width in own], "y": [own[width] for width in widths if width in own],
            "marker": {"size": 9}, "line": _line(one, methods.index(method)),
        }
        for one in compared
        for method, own in known[one.letter].items()
    ]  # fmt: skip
    title = {"text": "bit width of weights and activations"}
    return figure(
        traces, name, 400, yaxis={"title": {"text": axis}},
        xaxis={"title": title, "categoryorder": "array", "categoryarray": widths, "type": "category"},
    )  # fmt: skip
