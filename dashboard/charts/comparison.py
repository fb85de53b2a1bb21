"""Several runs side by side: settings that differ, curves on one axis, last and best values, accuracies. Pure: no streamlit in here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import plotly.graph_objects as go

from core.config import GenerationConfig, RunConfig
from core.runs.run import Run
from dashboard.charts.style import POINTS, laid_out, numbers, thinned
from dashboard.names import method_name
from dashboard.tables import results
from dashboard.tables.run_list import BASELINE, width_of
from dashboard.text import plotly, shown

MOST = 8  # runs in one comparison: more colours cannot be told apart
# One colour a run. None of them stands for an optimizer, all have a contrast of 3 to white and to the dark background, and any two are
# 20 apart in CIELAB, also as people with protanopia, deuteranopia and tritanopia see them (simulated after Machado et al., 2009).
COLOURS = ("#6938FA", "#7B9C16", "#E963A6", "#107058", "#B48C64", "#1F8CF9", "#B219B2", "#776222")
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
_FAINT = 0.25  # of the line below the smoothed one
AXES = ("iteration", "seconds", "images")
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Curve:
    """What can be drawn: a number of the records of one stage."""

    stage: str
    name: str
    higher_is_better: bool = False
    unit: str = ""


CURVES = {
    "total loss": Curve("generation", "total"),
    "L_BNS": Curve("generation", "bns"),
    "L_CE": Curve("generation", "ce"),
    "R_TV": Curve("generation", "tv"),
    "R_l2": Curve("generation", "l2"),
    "teacher agreement": Curve("generation", "agreement", True, "%"),
    "training loss": Curve("training", "total"),
    "training L_KD": Curve("training", "kd"),
    "training L_CE": Curve("training", "ce"),
    "training agreement": Curve("training", "agreement", True, "%"),
}


@dataclass(frozen=True)
class Compared:
    """One of the compared runs. config: None where this version cannot read it. curves: method -> name -> `(records,)`."""

    run: Run
    letter: str
    colour: str
    config: RunConfig | None
    curves: Mapping[str, Mapping[str, np.ndarray]]
    results: Mapping[str, Any]
    changes: Sequence[Mapping[str, Any]] = ()

    @property
    def title(self) -> str:
        """Letter, name and the star of the baseline: runs may have one name."""
        return f"{self.letter} · {shown(self.run.name, 40)}{' ' + BASELINE if self.run.pinned else ''}"


def baseline_of(compared: Sequence[Compared]) -> Compared:
    """The run that the others are held against: the pinned one, else the first."""
    return next((one for one in compared if one.run.pinned), compared[0])


def settings_table(compared: Sequence[Compared]) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Settings that differ, a column for each run, and those that are the same in all. What was turned while it ran counts."""
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
        for rest, part in value.items() if name in ("generation", "quantization") else [("", value)]:
            settings[f"{name}: {rest}" if rest else name] = _words(part)
    turned = [f"{change['name']} = {change['value']:g} at {change['step']} ({change['method']})" for change in one.changes]
    return {**settings, "turned while it ran": ", ".join(turned) or "nothing"}


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {part}" for key, part in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return str(value) if value != "" else "none"


def series_of(compared: Sequence[Compared]) -> list[str]:
    """Every method of their curves once."""
    return sorted({method for one in compared for method in one.curves}, key=lambda method: (results.place(method.split(" ")[0]), method))


def curves_figure(
    compared: Sequence[Compared],
    label: str,
    axis: str = "iteration",
    log: bool = False,
    smoothing: float = 0.0,
    methods: Sequence[str] = (),
) -> go.Figure:
    """One curve of CURVES for each run and method: colour is the run, dash the method, and the baseline has the thicker line.

    axis: one of AXES. smoothing: weight of the past in [0, 1), as TensorBoard has it; the values themselves stay as faint lines.
    methods: only these; empty: all.
    """
    figure = go.Figure()
    curve, all_methods = CURVES[label], series_of(compared)
    for one in compared:
        for method, columns in one.curves.items():
            if curve.name not in columns or (methods and method not in methods):
                continue
            x, y = axis_values(one.config, curve.stage, columns, axis), columns[curve.name]
            line = {
                "color": one.colour,
                "width": 3.5 if one.run.pinned else 1.8,
                "dash": _DASHES[all_methods.index(method) % len(_DASHES)],
            }
            if smoothing:
                figure.add_scatter(
                    **_points(x, y), mode="lines", line={**line, "width": 1, "dash": "solid"}, opacity=_FAINT, showlegend=False,
                    hoverinfo="skip", legendgroup=f"{one.letter} {method}",
                )  # fmt: skip
            name = f"{plotly(one.title)}, {plotly(method_name(method))}"
            figure.add_scatter(
                **_points(x, smoothed(y, smoothing)), mode="lines", line=line, name=name, legendgroup=f"{one.letter} {method}"
            )
    figure.update_xaxes(title={"iteration": "iteration", "seconds": "seconds of computing", "images": "images seen"}[axis])
    figure.update_yaxes(type="log" if log else "linear", title=curve.unit or None)
    title = label + (f", smoothed by {smoothing:g}" if smoothing else "")
    laid_out(figure, title, 460)
    # another axis is another view: what was zoomed into is not there
    figure.update_layout(uirevision=f"{label} {axis} {log}", hovermode="closest")
    return figure


def _points(x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    chosen = thinned(list(range(len(x))), POINTS)
    return {"x": x[chosen], "y": numbers(y[chosen])}


def smoothed(values: np.ndarray, weight: float) -> np.ndarray:
    """Exponential moving average, corrected for its start, as TensorBoard's; what is not finite is left out and stays as it is."""
    if not weight:
        return values
    result, finite = values.copy(), np.isfinite(values)
    averages = accumulate(values[finite].tolist(), lambda average, value: weight * average + (1 - weight) * value, initial=0.0)
    result[finite] = np.array(list(averages)[1:]) / (1 - weight ** np.arange(1, finite.sum() + 1))
    return result


def axis_values(config: RunConfig | None, stage: str, columns: Mapping[str, np.ndarray], axis: str) -> np.ndarray:
    """Where the records of a method lie on the axis; iterations where the other is not known."""
    steps = columns["step"]
    if axis == "seconds" and "seconds" in columns:
        return columns["seconds"]
    if axis == "images" and config is not None:
        return images_generated(config.generation, steps) if stage == "generation" else images_trained_on(config, steps)
    return steps


def images_generated(config: GenerationConfig, steps: np.ndarray) -> np.ndarray:
    """Images that went through the network up to each iteration, counted from 1: those of a batch once an iteration."""
    sizes = np.array(config.batches)
    batch = np.clip((steps.astype(int) - 1) // config.iterations, 0, len(sizes) - 1)
    before = np.concatenate([[0], np.cumsum(sizes)[:-1]]) * config.iterations
    return (before[batch] + sizes[batch] * (steps - batch * config.iterations)).astype(np.float64)


def images_trained_on(config: RunConfig, steps: np.ndarray) -> np.ndarray:
    """Images up to each training step; the last batch of an epoch may be short. Of given images the number is not known: all are full."""
    size, images = config.training.training_batch_size, config.generation.images
    if config.images_from:
        return steps * size
    epoch = math.ceil(images / size)
    return steps // epoch * images + np.minimum(steps % epoch * size, images)


def values_table(compared: Sequence[Compared], label: str) -> list[dict[str, Any]]:
    """Last and best value of each run and method, and how far they are from those of the baseline in the same method."""
    curve, base = CURVES[label], baseline_of(compared)
    known = {(one.letter, method): _last_and_best(curve, columns) for one in compared for method, columns in one.curves.items()}
    rows = []
    for one in compared:
        for method in series_of([one]):
            own, others = known[one.letter, method], known.get((base.letter, method))
            if own is None:
                continue
            last, best, at = own
            row: dict[str, Any] = {"run": one.title, "method": method_name(method), "last": last, "best": best, "best at iteration": at}
            against = others if others is not None and one is not base else None
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
    """Top-1 of each run and method at each bit width, after training or, where there was none, after calibration; and to the baseline."""
    rows, base = [], _accuracies(baseline_of(compared))
    known = {one.letter: _accuracies(one) for one in compared}
    widths = sorted({width for methods in known.values() for own in methods.values() for width in own})
    for one in compared:
        for method, own in known[one.letter].items():
            against = base.get(method, {}) if one is not baseline_of(compared) else {}
            row: dict[str, Any] = {"run": one.title, "images by": method_name(method)}
            row["full precision %"] = one.results.get("full_precision", {}).get("top1")
            row |= {f"{width} %": own.get(width) for width in widths}
            row |= {f"{width} − baseline": round(own[width] - against[width], 2) if width in own and width in against else None
                    for width in widths}  # fmt: skip
            rows.append(row)
    return rows


def _accuracies(one: Compared) -> dict[str, dict[str, float]]:
    """MethodImages -> bit width -> top-1."""
    methods: dict[str, dict[str, float]] = {}
    for row in results.accuracies(one.results):
        top1 = row["calibrated"] if row.get("quantized") is None else row["quantized"]
        methods.setdefault(row["method"], {})[width_of(row)] = top1
    return methods


def accuracy_figure(compared: Sequence[Compared]) -> go.Figure | None:
    """Top-1 over bit widths; colour is the run, dash the optimizer of the images. None where nothing was measured."""
    known = {one.letter: _accuracies(one) for one in compared}
    widths = sorted({width for methods in known.values() for own in methods.values() for width in own})
    methods = sorted({method for own in known.values() for method in own}, key=lambda method: (results.place(method), method))
    if not widths:
        return None
    figure = go.Figure()
    for one in compared:
        for method, own in known[one.letter].items():
            figure.add_scatter(
                x=[width for width in widths if width in own], y=[own[width] for width in widths if width in own],
                name=f"{plotly(one.title)}, {plotly(method_name(method))}", mode="lines+markers", marker={"size": 9},
                line={
                    "color": one.colour, "width": 3.5 if one.run.pinned else 1.8, "dash": _DASHES[methods.index(method) % len(_DASHES)]
                },
            )  # fmt: skip
    figure.update_xaxes(title="bit width of weights and activations", categoryorder="array", categoryarray=widths, type="category")
    figure.update_yaxes(title="top-1 accuracy, %")
    return laid_out(figure, "Accuracy at each bit width", 400)
