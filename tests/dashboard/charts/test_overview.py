import json

import plotly.graph_objects as go
import pytest

from core.runs.records import Record
from dashboard.charts import style
from dashboard.charts.generation import ChangeMark
from dashboard.charts.overview import Shown, overview_figure

PERIOD = 4
LAYERS = ["first", "<b>second"]


def record(step, method):
    """L_BNS is ten times the step."""
    return Record(step, "generation", method, step, {"bns": 10.0 * step, "agreement": 50.0, "layers": [1.0, 0.01 * step]})


def plotted(figure):
    """The figure as the browser gets it; plotly validates every property."""
    sent = json.loads(style.json_of(figure))
    return go.Figure({"data": sent["data"], "layout": sent["layout"]})


def overview(step, methods=("mi-fgsm", "adam"), period=PERIOD, marks=(), steps=10):
    records = [record(one, method) for one in range(1, steps + 1) for method in methods]
    shown = Shown(step, period, {method: record(step, method) for method in methods})
    return overview_figure(records, shown, LAYERS, marks)


def test_the_shown_batch_is_bold_and_others_lie_faintly_below_it():
    figure = plotted(overview(10, ["adam"]))
    faint, bold = [trace for trace in figure.data if trace.yaxis == "y"]
    assert (bold.opacity, bold.line.width, list(bold.x), list(bold.y)) == (None, 2, [1, 2], [90, 100])  # steps 9 and 10
    assert (faint.opacity, faint.line.width) == (0.3, 1)
    assert list(faint.x) == [1, 2, 3, 4, None, 1, 2, 3, 4, None]  # steps 1 to 8
    assert list(faint.y) == [10, 20, 30, 40, None, 50, 60, 70, 80, None]
    assert figure.layout.xaxis.range == (0, PERIOD)

    earlier = [trace for trace in plotted(overview(5, ["adam"])).data if trace.yaxis == "y"]
    assert list(earlier[1].y) == [50, 60, 70, 80]
    assert list(earlier[0].y) == [10, 20, 30, 40, None, 90, 100, None]


def test_generators_have_one_curve():
    (curve,) = [trace for trace in plotted(overview(10, ["gdfq"], period=0)).data if trace.yaxis == "y"]
    assert list(curve.x) == list(range(1, 11))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_each_method_has_its_color_in_every_panel_and_one_entry_in_the_legend(count):
    methods = ["mi-fgsm", "adam", "zeroq", "dsg", "intraq"][:count]
    figure = plotted(overview(4, methods, steps=4))
    for axis in ("y", "y2", "y3"):
        assert [trace.line.color for trace in figure.data if trace.yaxis == axis] == [style.color(method) for method in methods]
    assert sum(trace.showlegend is not False for trace in figure.data) == count


def test_layers_of_the_shown_iteration():
    figure = plotted(overview(7, ["adam"]))
    (layers,) = [trace for trace in figure.data if trace.yaxis == "y3"]
    assert list(layers.x) == [1, 2]
    assert list(layers.y) == pytest.approx([1.0, 0.07])
    assert layers.text[1] == "&#60;b&#62;second"
    assert figure.layout.annotations[2].text == "<b>L_BNS by layer, iteration 3</b>"  # the third of the second batch
    assert figure.layout.meta["cursor"] == [["x", "y"], ["x2", "y2"]]  # not over layers


def test_live_changes_of_the_shown_batch_are_marked():
    marks = [ChangeMark(3, "β = 1", ("adam",)), ChangeMark(4, "β = 2", ("adam",)), ChangeMark(9, "β = 3", ("mi-fgsm", "adam"))]
    for step, expected in ((2, [3]), (6, [0]), (10, [1])):  # before the fifth step, so at the start of the second batch
        shapes = plotted(overview(step, marks=marks)).layout.shapes
        assert [shape.x0 for shape in shapes] == expected * 2
    assert [shape.line.color for shape in shapes] == [style.NEUTRAL] * 2


def test_a_long_run_has_few_points():
    assert sum(len(trace.x) for trace in plotted(overview(5000, ["adam"], period=50, steps=5000)).data) < 1100
