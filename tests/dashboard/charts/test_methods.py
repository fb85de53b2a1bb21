"""The chart of a comparison."""

from core.comparison.table import Row
from dashboard.charts.methods import drops_figure


def row(method, drop):
    return Row(method, "W3A3", (0,), (), 92.0, (92.0 - drop,), 0.5, 40.0, 60.0, None, None, "2,000 images")


def test_the_axis_is_that_of_the_methods_not_of_references():
    figure = drops_figure([row("mi-fgsm", 1.0), row("adam", -0.2), row("noise", 48.0)])
    low, high = figure["layout"]["yaxis"]["range"]
    assert low < -0.7
    assert 1.5 < high < 2
    assert [trace["y"] for trace in figure["data"]] == [[1.0], [-0.2], [48.0]]
    assert "range" not in drops_figure([row("noise", 48.0)])["layout"]["yaxis"]
