"""Charts of training and layers, from handwritten records and results."""

import json

import numpy as np
import plotly.graph_objects as go
import pytest

from core.runs.records import Record
from dashboard.charts import style
from dashboard.charts.training import accuracy_during_training, error_figure, histogram_figure, size_figure


def plotted(figure):
    """The figure as the browser gets it; plotly validates every property."""
    sent = json.loads(style.json_of(figure))
    return go.Figure({"data": sent["data"], "layout": sent["layout"]})


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


def test_error_chart_has_a_bar_for_each_layer_in_network_order():
    figure = go.Figure(plotted(error_figure(LAYERS, "adam", "output")))
    bars, weights, inputs = figure.data
    assert list(bars.x) == [1, 2, 3]
    assert list(bars.y) == [40.0, 10.0, None]
    assert list(bars.marker.opacity) == [0.45, 0.45, 1.0]
    assert bars.text[1].startswith("middle_&#60;b&#62;, ")
    assert list(weights.y) == [30.0, 30.0, 30.0]
    assert list(inputs.y) == [None, 25.0, 25.0]


def test_sizes_have_a_curve_and_a_mark_for_the_network():
    curve = [{"bytes": 90_000, "error": 4.0, "bits": [2, 2]}, {"bytes": 150_000, "error": 0.5, "bits": [4, 5]}]
    best, network = go.Figure(plotted(size_figure(curve, "adam", 120_500, 1.5))).data
    assert (list(best.x), list(best.y)) == ([90.0, 150.0], [4.0, 0.5])
    assert best.text[1].startswith("4.5 bits")
    assert (list(network.x), list(network.y)) == ([120.5], [1.5])


def test_histogram_has_a_line_for_each_level():
    figure = go.Figure(plotted(histogram_figure(LAYERS[1]["weight"], 2, "weights of <b>", "adam")))
    (bars,) = figure.data
    assert len(bars.x) == 80
    assert sum(bars.y) == pytest.approx(100)
    # the 33rd bin begins at -3 + 32 / 16
    assert bars.x[int(np.argmax(bars.y))] == pytest.approx(-1 + 1 / 32, abs=1e-4)
    lines = sorted(shape.x0 for shape in figure.layout.shapes)
    assert lines == [-2.5, -2, -1, 0, 1, 1.5]
    assert "<b>" not in figure.layout.title.text
    assert figure.layout.annotations[0].x == -2


def test_histogram_of_a_trained_network_has_the_outline_of_the_calibrated_one():
    calibrated = {**LAYERS[1]["weight"], "histogram": {"start": -3.0, "width": 0.0625, "counts": [0, 1, 1] + [0] * 76 + [2]}}
    figure = plotted(histogram_figure(LAYERS[1]["weight"], 2, "w", "adam", calibrated=calibrated))
    bars, outline = figure.data
    assert (bars.name, outline.name, bars.showlegend) == ("trained", "calibrated", True)
    assert list(bars.y)[32] == 75  # as without the outline
    # a corner at the beginning of each bin, and one at the end of the last
    assert outline.line.shape == "hv"
    assert len(outline.x) == len(outline.y) == 81
    assert list(outline.x[:4]) == [-3, pytest.approx(-2.9375, abs=1e-3), pytest.approx(-2.875, abs=1e-3), pytest.approx(-2.8125, abs=1e-3)]
    assert outline.x[-1] == 2
    assert list(outline.y[:4]) == [0, 25, 25, 0]
    assert list(outline.y[-3:]) == [0, 50, 50]


def test_histogram_of_many_levels_shows_only_the_ends():
    grid = {**LAYERS[0]["weight"], "lowest": -128, "highest": 127}
    assert sorted(shape["x0"] for shape in plotted(histogram_figure(grid, 8, "w", "adam"))["layout"]["shapes"]) == [-128.5, 127.5]
