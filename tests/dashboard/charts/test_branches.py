import numpy as np
import pytest

from core.runs.records import Record
from dashboard.charts.branches import Curves, branch_figure
from dashboard.charts.style import color
from dashboard.tables.terms import DEFAULT_TERMS

LAYERS = ["first", "second"]


def records(method, steps, factor=1.0):
    data = [
        {"total": factor * step, "bns": step / 2, "tv": 1.0, "l2": 1.0, "ce": 1.0, "agreement": 50.0, "layers": [factor * step, 1.0]}
        for step in steps
    ]
    return [Record(index, "generation", method, step, own) for index, (step, own) in enumerate(zip(steps, data), 1)]


@pytest.fixture
def figure():
    """A function of the chart: a run of two batches of ten, and two branches in the second one."""
    changes = [{"method": "adam", "step": 3, "name": "lr", "value": 1.0}, {"method": "adam", "step": 12, "name": "lr", "value": 2.0}]
    own = [{"method": "mi-fgsm", "step": 14, "name": "epsilon", "value": 0.2}, changes[1]]
    branches = [
        Curves("A", 14, records("mi-fgsm", range(11, 21), 3.0), own),
        Curves("B", 16, records("adam", range(11, 18), 5.0), []),
    ]
    run = [*records("mi-fgsm", range(1, 21)), *records("adam", range(1, 21))]
    return lambda chart: branch_figure(chart, run, changes, branches, range(11, 21), LAYERS, DEFAULT_TERMS)


@pytest.mark.parametrize(("chart", "panel"), [("loss", "total loss"), ("layers", "1: first")])
def test_branches_begin_where_they_leave_the_run(figure, chart, panel):
    drawn = figure(chart)
    headings = [note["text"] for note in drawn["layout"]["annotations"]]
    assert f"<b>{panel}</b>" in headings[0]
    curves = {trace["name"]: trace for trace in drawn["data"] if trace["xaxis"] == "x"}
    assert list(curves) == ["MI-FGSM", "Adam", "MI-FGSM branch A", "Adam branch B"]
    for name, first, last, factor in (("MI-FGSM", 11, 20, 1), ("MI-FGSM branch A", 14, 20, 3), ("Adam branch B", 16, 17, 5)):
        assert curves[name]["x"].tolist() == list(range(first, last + 1))
        assert np.allclose(curves[name]["y"], factor * np.arange(first, last + 1))


def test_branches_have_the_color_of_their_method_and_dashes_of_their_own(figure):
    lines = {trace["name"]: trace["line"] for trace in figure("loss")["data"]}
    assert lines["MI-FGSM branch A"]["color"] == lines["MI-FGSM"]["color"] == color("mi-fgsm")
    dashes = [lines[name]["dash"] for name in ("MI-FGSM", "MI-FGSM branch A", "Adam branch B")]
    assert len(set(dashes)) == 3


def test_marks_are_those_of_the_batch_and_of_where_branches_leave(figure):
    texts = [note["text"] for note in figure("loss")["layout"]["annotations"]]
    assert "ε = 0.2" in texts
    assert "lr = 2" in texts
    assert "lr = 1" not in texts


def test_axes_show_the_batch_wherever_the_cursor_is(figure):
    layout = figure("layers")["layout"]
    for own in (layout, layout["meta"]["narrow"]):
        ranges = [axis["range"] for name, axis in own.items() if name.startswith("xaxis")]
        assert ranges == [[11, 20]] * 2
