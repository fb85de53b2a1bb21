"""Quantization error of each layer of a run, and a form to change the bit widths of single layers. Reads the store only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import streamlit as st

from core.config import BIT_WIDTHS, PRESETS, RunConfig
from core.generation.methods import method_order
from core.runs.lists import RunFilter
from core.runs.run import Run
from dashboard import session, text
from dashboard.charts import training as training_charts
from dashboard.charts.style import json_of
from dashboard.components import figures, problems, tables
from dashboard.names import method_name
from dashboard.tables.columns import Column
from dashboard.tables.results import agreement_of, closeness, layers_measured_on
from dashboard.views import sensitivity

_NUMBERS = {  # columns of the table of layers -> help
    "output dB": "SQNR of the output of the layer against full precision, including the errors of all earlier layers.",
    "weights dB": "SQNR of its output when only its weights are rounded.",
    "input dB": "SQNR of its rounded input. Empty for a layer that reads the image.",
}


def analyzed(run: Run) -> list[tuple[str, str]]:
    """(method, width), such as (mi-fgsm, W4A4), of every network of the run whose layers were analyzed, in order of methods."""
    names = [name.split("/") for name in session.store().result_names(run.id) if name.startswith("layers/")]
    return sorted(((method, width) for _, method, width in names), key=lambda pair: (method_order(pair[0]), pair))


@st.fragment
def layers(run: Run) -> None:
    """Error by layer, histograms of one layer, and a table to change bit widths. A fragment: its widgets redraw only this part."""
    known = analyzed(run)
    if not known:
        if run.config.bits and run.state.is_finished() and session.store().result(run.id, "full_precision"):
            st.caption("No per-layer analysis for this run. Quantize its images again to get one.")
        return
    st.header("Layers")
    left, right = st.columns(2)
    with left:
        method, width = st.selectbox(
            "Network",
            known,
            format_func=lambda pair: f"{method_name(pair[0])} {pair[1]}",
            key=f"layers/{run.id}/network",
            help="Method of the images, and bits of weights (W) and activations (A).",
        )
    found = session.shared_cache(
        ("layers", run.id, run.attempt, method, width), lambda: session.store().result(run.id, f"layers/{method}/{width}")
    )
    rows: list[dict[str, Any]] = found["layers"]
    by_error = sorted(rows, key=lambda layer: float("inf") if layer["sqnr"] is None else layer["sqnr"])
    names, key = [layer["name"] for layer in rows], f"layers/{run.id}/{method}/{width}"
    with right:
        chosen = st.selectbox(
            "Layer",
            names,
            index=names.index(by_error[0]["name"]),
            format_func=lambda name: f"{names.index(name) + 1}: {name}",
            key=f"{key}/layer",
            help="Or click a bar in the chart. Initially the layer with the largest output error.",
        )
    error, change = st.tabs(["Error and values", "Change bit widths"])
    with error:
        _errors(run, method, width, found, by_error[0], chosen, key)
    with change:
        _bit_widths(run, method, width, found, by_error, key)


def _errors(run: Run, method: str, width: str, found: Mapping[str, Any], worst: Mapping[str, Any], chosen: str, key: str) -> None:
    """A bar chart of all layers, and histograms of the chosen one."""
    rows = found["layers"]
    layer = next(layer for layer in rows if layer["name"] == chosen)

    def choose(number: int) -> None:
        st.session_state[f"{key}/layer"] = rows[number]["name"]

    network = (run.id, run.attempt, method, width)
    bars = session.shared_cache(("figure", *network, "errors", chosen), lambda: json_of(training_charts.error_figure(rows, method, chosen)))
    figures.show(bars, f"{key}/bars", f"{run.name} error by layer {method} {width}", on_pick=choose)
    st.caption(
        f"Largest error: **{text.plain(worst['name'])}**, {_decibels(worst['sqnr'])}. Signal-to-quantization-noise ratio (SQNR): "
        f"10 log₁₀(Σ y² / Σ (y' − y)²), y in full precision, on {layers_measured_on(found)}. 20 dB is an error of 10 %; "
        "each additional bit adds about 6 dB."
    )
    left, right = st.columns(2)
    with left:
        _histogram(run, method, width, layer, "weight", key)
    with right:
        if layer["input"] is None:
            st.info("This layer reads the image, which is not quantized.", icon=":material/image:")
        else:
            _histogram(run, method, width, layer, "input", key)
    st.caption(
        "Thin lines are levels, drawn up to 6 bits. Values beyond the dashed lines are clipped; the outermost bars count all values "
        "further out."
    )


def _histogram(run: Run, method: str, width: str, layer: Mapping[str, Any], values: str, key: str) -> None:
    """The "weight" or the "input" of a layer on its grid, before and after the training if both are known."""
    weights, grid = values == "weight", layer[values]
    # of a network that was trained; earlier versions did not analyze it before
    calibrated = layer["calibrated"][values] if "calibrated" in layer else None
    title = f"{'weights' if weights else 'input'} of {layer['name']}"
    figure = session.shared_cache(
        ("figure", run.id, run.attempt, method, width, values, layer["name"]),
        lambda: json_of(
            training_charts.histogram_figure(grid, layer["bits"] if weights else grid["bits"], title, method, not weights, calibrated)
        ),
    )
    figures.show(figure, f"{key}/{'weights' if weights else 'input'}", f"{run.name} {method} {width} {title}")
    count = [f"{layer['weights']:,} weights."] if weights else ["Logarithmic axis."]
    moved = [f"Training moved {layer['moved']:.3g} % of them to another level."] if weights and calibrated else []
    st.caption(" ".join([*count, *moved, _grid_in_words(grid, calibrated)]))


def _grid_in_words(grid: Mapping[str, Any], calibrated: Mapping[str, Any] | None) -> str:
    """Step, clipped values, and error if there is one, of the grid of a network and, if known, of that before its training."""
    words: dict[str, Callable[[Mapping[str, Any]], str]] = {"Step": _step, "clipped": lambda one: f"{one['clipped']:g} %"}
    if calibrated is not None and calibrated["zero_point"] != grid["zero_point"]:
        words["zero at level"] = lambda one: " to ".join(map(str, dict.fromkeys(one["zero_point"])))
    if "sqnr" in grid:
        words["SQNR"] = lambda one: _decibels(one["sqnr"])
    parts = [f"{name} {word(grid)}" + ("" if calibrated is None else f" (calibrated {word(calibrated)})") for name, word in words.items()]
    return f"{'; '.join(parts)}."


def _step(grid: Mapping[str, Any]) -> str:
    low, high = grid["scale"]
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g} by channel"


def _decibels(value: float | None) -> str:
    return "no error" if value is None else f"{value:.1f} dB"


def _bit_widths(run: Run, method: str, width: str, found: Mapping[str, Any], by_error: Sequence[Mapping[str, Any]], key: str) -> None:
    """A table of layers with editable bits, a button that evaluates them, and the results so far."""
    st.caption(
        f"Change the bits of a layer ({_what(run)}) and evaluate again on the same images. Layers with the largest error come first."
    )
    above = st.container()
    chosen = _edited_bits(by_error, sensitivity.editor_key(key), sensitivity.clicked_bits(key))
    with above:
        sensitivity.draw_sizes(run, method, width, key)
        sensitivity.draw(run, method, width, found["layers"], chosen, key)
    bits = next(bits for bits in run.config.bits if run.config.training_for(bits).width == width)
    in_run, quick = run.config.training_for(bits).steps, PRESETS["quick"].training_for(bits).steps
    steps = {quick: f"{quick:,}: as in the quick preset", in_run: f"{in_run:,}: as in this run", 0: "0: calibrate only"}
    changed = [layer["name"] for layer in found["layers"] if chosen[layer["name"]] != layer["bits"]]
    with st.container(horizontal=True, vertical_alignment="bottom"):
        wanted = st.selectbox("Training steps", list(steps)[::-1], format_func=lambda count: steps[count], key=f"{key}/steps", width=260)
        pressed = st.button(
            "Evaluate again",
            type="primary",
            icon=":material/play_arrow:",
            key=f"{key}/evaluate",
            disabled=method not in session.image_methods(run) or (not changed and wanted == in_run),
            help="Starts a run on the same images with other bits, or another number of steps.",
        )
    after = sum(layer["weights"] * chosen[layer["name"]] for layer in found["layers"])
    st.caption(
        f"{len(changed)} of {len(found['layers'])} layers changed. Size of all weights: {_kilobytes(found['weight_size'])} kB before, "
        f"{_kilobytes(after)} kB after."
    )
    if pressed:
        with problems.shown():
            session.start(again(run, method, bits, found["layers"], chosen, wanted))
            st.rerun(scope="app")
    rows = compared(run, method, width)
    if len(rows) > 1:
        st.markdown("**Runs on the same images at this bit width**")
        tables.table(rows, "same", {"final %": Column(digits=2), "calibrated %": Column(digits=2)}, alt="Runs on the same images")


def _what(run: Run) -> str:
    """What changed bits are of."""
    return "its weights" if run.config.training.size or run.config.training.layer_weight_bits else "weights and input"


def _edited_bits(by_error: Sequence[Mapping[str, Any]], key: str, clicked: Mapping[str, int]) -> dict[str, int]:
    """The table of layers; layer name -> bits as edited in it. clicked: bits that it begins with, instead of those of the network."""
    total = sum(layer["weights"] for layer in by_error)
    table = pd.DataFrame(
        {
            "layer": [text.one_line_text(layer["name"]) for layer in by_error],
            "bits": [clicked.get(layer["name"], layer["bits"]) for layer in by_error],
            "output dB": [layer["sqnr"] for layer in by_error],
            "weights dB": [layer["weight_sqnr"] for layer in by_error],
            "input dB": [layer["input"] and layer["input"]["sqnr"] for layer in by_error],
            "weights": [layer["weights"] for layer in by_error],
            "% of weights": [round(100 * layer["weights"] / total, 1) for layer in by_error],
        }
    )
    edited = figures.editor(
        table,
        key,
        disabled=[column for column in table.columns if column != "bits"],
        column_config={
            "bits": st.column_config.SelectboxColumn(
                "bits ✎", options=list(BIT_WIDTHS), required=True, help="2 to 8. Double-click to edit."
            ),
            **{name: st.column_config.NumberColumn(format="%.1f", help=help) for name, help in _NUMBERS.items()},
        },
    )
    return {layer["name"]: int(bits) for layer, bits in zip(by_error, edited["bits"])}


def again(run: Run, method: str, bits: int, layers: Sequence[Mapping[str, Any]], chosen: Mapping[str, int], steps: int) -> RunConfig:
    """The config of a run on the same images at one bit width, with the chosen bits per layer.

    layers: of the analyzed network, in order. chosen: name -> bits of every layer.
    """
    quantization = run.config.training_for(bits)
    ends = {layers[0]["name"], layers[-1]["name"]} if quantization.first_last_8bit else set()
    training = replace(quantization, activation_bits=run.config.training.activation_bits, steps=steps)
    if quantization.size or quantization.layer_weight_bits:  # of weights alone
        training = replace(training, size=0.0, layer_weight_bits=tuple(chosen.items()))
    else:
        layer_bits = tuple((name, width) for name, width in chosen.items() if width != (8 if name in ends else bits))
        training = replace(training, layer_bits=layer_bits)
    return replace(
        run.config,
        training=training,
        methods=(method,),
        bits=(bits,),
        steps_by_bits={},
        lr_by_bits={},
        evaluation=replace(run.config.evaluation, encoder=""),
        images_from=str(session.store().images_folder(run)),
    )


def compared(run: Run, method: str, width: str) -> list[dict[str, Any]]:
    """A row for each network of the newest runs on the same images at this width, oldest first."""
    store, name = session.store(), f"accuracy/{method}/{width}"
    others = store.runs(RunFilter(images=store.images_folder(run), model=run.config.model, width=width), most=session.MOST_LISTED)
    results = store.results_of([other.id for other in others], [name])
    rows = []
    for other in reversed(others):
        known = results.get(other.id, {}).get(name)
        if known is None or "quantized" not in known:
            continue
        own = {**known.get("layer_bits", {}), **known.get("layer_weight_bits", {})}
        layer_bits = ", ".join(f"{text.one_line_text(name)} {bits}" for name, bits in own.items())
        size, (words, agreement, _) = known.get("weight_size"), agreement_of({**known, **closeness(known)})
        rows.append(
            {
                "run": text.one_line_text(other.name) + (" (shown)" if other.id == run.id else ""),
                "layers with other bits": layer_bits or "none",
                "weights, kB": size and float(_kilobytes(size).replace(",", "")),
                "steps": known["steps"],
                "calibrated %": known["calibrated"],
                "final %": known["quantized"],
                "± standard error": known["standard_error"],
                "agreement %": agreement,
                "agreement on": f"{words} images" if words else "",
            }
        )
    return rows


def _kilobytes(bits: int) -> str:
    return f"{bits / 8000:,.1f}"
