"""Figures of a sweep."""

import math

import pytest

from core.comparison.sweep import Row
from dashboard.charts import sweep as charts


def row(agreement, method="mi-fgsm", **values):
    return Row(values, method, "W4A4", ("run",), (0,), (agreement,), (0.1,), 1.0, 10.0)


def test_parallel_coordinates_place_every_value_on_its_axis():
    rows = [row(90.0, epsilon=0.01, range="mse"), row(80.0, epsilon=0.1, range="minmax"), row(85.0, epsilon=1.0, range="mse")]
    figure = charts.parallel_figure(rows, ["b"], ["a", "b", "c"])
    lines = {trace["customdata"][0]: trace for trace in figure["data"]}
    # a range of two decades is logarithmic; a choice has its place among the choices
    assert {own: line["y"] for own, line in lines.items()} == {"a": [0, 0, 1], "b": [0.5, 1, 0], "c": [1, 0, 0.5]}
    assert {own for own, line in lines.items() if line["line"]["width"] > 2} == {"a", "b"}  # the best, and the chosen one
    assert list(lines)[0] == "c"  # below the thick ones
    assert figure["layout"]["xaxis"]["ticktext"] == ["ε", "range", "agreement, %"]
    labels = [(tick["x"], tick["y"], tick["text"]) for tick in figure["layout"]["annotations"]]
    # beside the last axis, where no lines are
    assert {(tick["x"], tick["xanchor"]) for tick in figure["layout"]["annotations"]} == {(0, "right"), (1, "right"), (2, "left")}
    assert labels[:5] == [(0, 0, "0.01"), (0, 0.5, "0.1"), (0, 1, "1"), (1, 0, "mse"), (1, 1, "minmax")]


def test_methods_have_an_axis_if_there_are_several():
    figure = charts.parallel_figure([row(90.0, mu=0.5), row(80.0, "adam", mu=0.5)], [], ["a", "b"])
    assert figure["layout"]["xaxis"]["ticktext"][0] == "method"
    assert {trace["name"] for trace in figure["data"] if trace["showlegend"]} == {"MI-FGSM", "Adam"}
    assert all(trace["y"][1] == 0.5 for trace in figure["data"])  # one value is in the middle


def test_a_knob_that_a_method_does_not_have():
    rows = [row(90.0, epsilon=0.1, lr=None), row(80.0, epsilon=0.2, lr=None), row(85.0, "adam", epsilon=None, lr=0.1)]
    figure = charts.parallel_figure(rows, [], ["a", "b", "c"])
    assert figure["layout"]["xaxis"]["ticktext"] == ["method", "ε", "lr", "agreement, %"]
    (adam,) = [trace for trace in figure["data"] if trace["name"] == "Adam"]
    assert (adam["y"], adam["connectgaps"]) == ([1, None, 0.5, 0.5], True)  # its line passes over the knob
    assert "ε" not in adam["hovertemplate"]
    both = {trace["name"]: (trace["x"], trace["y"]) for trace in charts.one_knob_figure(rows, "epsilon")["data"]}
    assert both == {"MI-FGSM": (["0.1", "0.2"], [90.0, 80.0]), "Adam": (["0.1", "0.2"], [85.0, 85.0])}
    only = [row(85.0, "adam", epsilon=None)]
    assert charts.parallel_figure(only, [], ["c"])["layout"]["xaxis"]["ticktext"] == ["agreement, %"]
    assert charts.one_knob_figure(only, "epsilon")["data"][0]["y"] == [85.0]


def test_a_heat_map_has_the_best_of_each_pair():
    rows = [row(90.0, mu=0.5, epsilon=0.1, beta=1), row(92.0, mu=0.5, epsilon=0.1, beta=2), row(70.0, mu=0.9, epsilon=0.2, beta=1)]
    figure = charts.heat_figure(rows, "mu", "epsilon")
    (trace,) = figure["data"]
    assert figure["layout"]["title"]["text"] == "MI-FGSM: best agreement, % (empty: not measured)"
    assert "empty" not in charts.heat_figure(rows[:2], "mu", "epsilon")["layout"]["title"]["text"]
    assert (trace["x"], trace["y"]) == (["0.5", "0.9"], ["0.1", "0.2"])
    assert trace["z"] == [[92.0, None], [None, 70.0]]
    assert trace["customdata"] == [[2, 0], [0, 1]]


def test_many_numbers_are_put_into_bins():
    rows = [row(50.0 + place, mu=place, epsilon=0.1) for place in range(21)]
    (trace,) = charts.heat_figure(rows, "mu", "epsilon")["data"]
    assert len(trace["x"]) == 8
    width = 20 / 8  # of a bin
    assert trace["customdata"] == [[sum(math.floor(min(place, 19.9) / width) == number for place in range(21)) for number in range(8)]]
    assert trace["z"][0][-1] == 70.0


def test_of_one_knob_each_value_has_its_error():
    (trace,) = charts.one_knob_figure([row(90.0, mu=0.9), row(80.0, mu=0.5)], "mu")["data"]
    assert (trace["x"], trace["y"]) == (["0.5", "0.9"], [80.0, 90.0])
    assert trace["error_y"]["array"] == [1.0, 1.0]


@pytest.mark.parametrize("count", [1, 30])
def test_labels_of_an_axis_do_not_overlap(count):
    figure = charts.parallel_figure([row(80.0 + n / 7, mu=n / 100) for n in range(count)], [], [str(n) for n in range(count)])
    for axis in (0, 1):
        heights = sorted(tick["y"] for tick in figure["layout"]["annotations"] if tick["x"] == axis)
        assert len(heights) == (1 if count == 1 else 5)
        assert all(high - low > 0.06 for low, high in zip(heights, heights[1:]))


def test_labels_of_close_agreements_do_not_overlap():
    agreements = (84.18, 82.23, 81.64, 81.44, 81.25, 79.3, 79.1)
    rows = [row(agreement, mu=number / 10) for number, agreement in enumerate(agreements)]
    figure = charts.parallel_figure(rows, [], [str(number) for number in range(len(rows))])
    ticks = [(tick["y"], tick["text"]) for tick in figure["layout"]["annotations"] if tick["x"] == 1]
    assert [text for _, text in ticks] == [
        "79.30",
        "81.25",
        "81.64",
        "82.23",
        "84.18",
    ]  # two digits as in the table, the best one among them
    assert all(high - low > 0.06 for (low, _), (high, _) in zip(ticks, ticks[1:]))
    assert figure["layout"]["meta"]["backed"]
