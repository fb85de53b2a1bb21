"""Figures of trainings and layers from records and results written by hand, and the run that evaluates other bit widths."""

from dataclasses import replace

import numpy as np
import plotly.graph_objects as go
import pytest

from core.config import PRESETS, RunConfig, TrainingConfig
from core.runs.records import Record
from core.runs.state import RunState
from dashboard import session
from dashboard.charts.training import accuracy_during_training, error_figure, histogram_figure
from dashboard.views import training


def record(method, step, top1):
    return Record(step, "test", method, step, {"top1": top1, "standard_error": 2.0, "images": 500, "seconds": 0.5})


def layer(name, bits, weights, sqnr, read=True):
    grid = {"lowest": -2, "highest": 1, "scale": [0.5, 0.5], "zero_point": [-2, -2], "clipped": 12.5}
    grid["histogram"] = {"start": -3.0, "width": 0.0625, "counts": [0] * 32 + [3] + [0] * 46 + [1]}
    return {
        "name": name, "bits": bits, "weights": weights, "sqnr": sqnr, "weight_sqnr": 30.0,
        "weight": grid, "input": {"bits": bits, "sqnr": 25.0, **grid} if read else None,
    }  # fmt: skip


LAYERS = [layer("stem", 8, 100, 40.0, read=False), layer("middle_<b>", 3, 300, 10.0), layer("output", 8, 50, None)]


def test_accuracy_during_training_has_a_curve_for_each_network():
    records = [record("adam W3A3", 0, 80.0), record("mi-fgsm W4A4", 0, 90.0), record("adam W3A3", 30, 88.5)]
    figure = go.Figure(accuracy_during_training(records, 92.1))
    adam, other = figure.data
    assert (list(adam.x), list(adam.y), list(adam.error_y.array)) == ([0, 30], [80.0, 88.5], [2.0, 2.0])
    assert list(other.x) == [0]
    assert adam.line.dash != other.line.dash
    assert adam.line.color != other.line.color
    assert figure.layout.shapes[0].y0 == 92.1
    assert not accuracy_during_training(records, None)["layout"]["shapes"]


def test_errors_have_a_bar_for_each_layer_in_the_order_of_the_network():
    figure = go.Figure(error_figure(LAYERS, "adam", "output"))
    bars, weights, inputs = figure.data
    assert list(bars.x) == [1, 2, 3]
    assert list(bars.y) == [40.0, 10.0, None]
    assert list(bars.marker.opacity) == [0.45, 0.45, 1.0]
    assert bars.text[1].startswith("middle_&#60;b&#62;, ")
    assert list(weights.y) == [30.0, 30.0, 30.0]
    assert list(inputs.y) == [None, 25.0, 25.0]


def test_histogram_lies_on_the_lines_of_its_grid():
    figure = go.Figure(histogram_figure(LAYERS[1]["weight"], 2, "weights of <b>", "adam"))
    (bars,) = figure.data
    assert len(bars.x) == 80
    assert bars.y.sum() == pytest.approx(100)
    # the 33rd bin begins at -3 + 32 / 16
    assert bars.x[int(np.argmax(bars.y))] == pytest.approx(-1 + 1 / 32)
    lines = sorted(shape.x0 for shape in figure.layout.shapes)
    assert lines == [-2.5, -2, -1, 0, 1, 1.5]
    assert "<b>" not in figure.layout.title.text
    assert figure.layout.annotations[0].x == -2


def test_histogram_of_many_levels_shows_only_the_ends():
    grid = {**LAYERS[0]["weight"], "lowest": -128, "highest": 127}
    assert sorted(shape["x0"] for shape in histogram_figure(grid, 8, "w", "adam")["layout"]["shapes"]) == [-128.5, 127.5]


@pytest.fixture
def run(with_finished_run):
    return session.store().run(with_finished_run)


def test_a_run_again_differs_in_the_bits_that_were_chosen_only(run):
    layers = [{"name": name} for name in ("stem", "middle", "output")]
    config = training.again(run, "adam", 4, layers, {"stem": 4, "middle": 8, "output": 2}, 0)
    assert config.training.layer_bits == (("middle", 8), ("output", 2))
    assert (config.methods, config.bits, config.evaluation.encoder) == (("adam",), (4,), "")
    assert config.images_from == str(session.store().run_folder(run.id) / "images")
    before, after = run.config.training_for(4), config.training_for(4)
    assert after == replace(before, layer_bits=config.training.layer_bits, steps=0)
    assert training.again(run, "adam", 4, layers, {"stem": 4, "middle": 4, "output": 4}, 7).training_for(4) == replace(before, steps=7)


def test_ends_at_8_bits_are_chosen_already(run):
    layers = [{"name": name} for name in ("stem", "middle", "output")]
    quantization = TrainingConfig(first_last_8bit=True, layer_bits={"middle": 5})
    run = replace(run, config=replace(run.config, quantization=quantization))
    assert training.again(run, "adam", 4, layers, {"stem": 8, "middle": 5, "output": 8}, 0).quantization.layer_bits == (("middle", 5),)
    assert training.again(run, "adam", 4, layers, {"stem": 4, "middle": 4, "output": 8}, 0).quantization.layer_bits == (("stem", 4),)


def test_networks_of_the_same_images_are_compared(run):
    assert [row["run"] for row in training.compared(run, "adam", "W4A4")] == ["a finished run (shown)"]
    store = session.store()
    config = training.again(run, "adam", 4, [{"name": "output"}], {"output": 8}, 0)
    others = {
        "other bits": config,
        "other images": replace(config, images_from="elsewhere"),
        "not measured": config,
        "other network": RunConfig(model="x", generation=PRESETS["quick"].generation.__class__(model="x"), images_from=config.images_from),
    }
    for name, other in others.items():
        run_id = store.create(other, name)
        if name != "not measured":
            figures = {"quantized": 91.0, "calibrated": 91.0, "standard_error": 0.6, "steps": 0}
            store.set_result(run_id, "accuracy/adam/W4A4", {**figures, "layer_bits": {"output": 8}, "weight_size": 1_080_000})
        store.set_state(run_id, RunState.RUNNING)
        store.set_state(run_id, RunState.COMPLETE)
    before, after = training.compared(run, "adam", "W4A4")
    assert before["layers with bits of their own"] == "none"
    assert before["weights, kB"] == pytest.approx(270_896 * 4 / 8000, abs=0.1)
    assert (after["run"], after["layers with bits of their own"], after["weights, kB"]) == ("other bits", "output 8", 135.0)
    assert (after["calibrated %"], after["in the end %"]) == (91.0, 91.0)
