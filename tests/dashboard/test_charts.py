import pytest

from core.runs.store import Record
from dashboard import accuracy_charts, charts, diversity_charts, training_charts


def generation_records(lanes=("mi-fgsm", "adam"), steps=3):
    return [
        Record(
            step * 10 + place,
            "generation",
            lane,
            step,
            {"total": 10.0 / step, "bns": 9.0, "tv": 1.0, "l2": 1.0, "ce": 2.0, "agreement": 50.0, "layers": [1.0, 0.01 * step]},
        )
        for step in range(1, steps + 1)
        for place, lane in enumerate(lanes)
    ]


def test_loss_has_a_curve_of_its_own_colour_for_each_optimizer():
    figure = charts.loss_figure(generation_records(), "total")
    assert [(trace.name, trace.line.color) for trace in figure.data] == [("MI-FGSM", "#0072B2"), ("Adam", "#D55E00")]
    assert list(figure.data[0].x) == [1, 2, 3]
    assert list(figure.data[0].y) == pytest.approx([10.0, 5.0, 10 / 3])
    assert figure.layout.yaxis.type == "log"


def test_agreement_is_on_a_linear_axis_as_it_may_be_zero():
    assert charts.loss_figure(generation_records(), "agreement").layout.yaxis.type == "linear"


def test_a_change_is_a_vertical_mark_with_its_value_once_for_all_lanes_that_share_it():
    changes = [
        {"lane": "mi-fgsm", "step": 2, "name": "beta", "value": 0.5},
        {"lane": "adam", "step": 2, "name": "beta", "value": 0.5},
        {"lane": "mi-fgsm", "step": 3, "name": "epsilon", "value": 0.05},
    ]
    figure = charts.loss_figure(generation_records(), "total", changes)
    assert [(shape.x0, shape.x1) for shape in figure.layout.shapes] == [(2, 2), (3, 3)]
    assert [note.text for note in figure.layout.annotations] == ["β = 0.5", "ε = 0.05"]


def test_heatmap_has_a_row_a_layer_and_logarithmic_colour():
    figure = charts.layer_heatmap(generation_records(), "adam", ["first", "second"], ends=(0.01, 1.0))
    heatmap = figure.data[0]
    assert [list(row) for row in heatmap.z] == [pytest.approx([0.0, 0.0, 0.0]), pytest.approx([-2.0, -1.69897, -1.52288], abs=1e-3)]
    assert (heatmap.zmin, heatmap.zmax) == (pytest.approx(-2), pytest.approx(0))


def test_heatmap_of_a_long_run_has_no_more_columns_than_a_screen():
    assert len(charts.layer_heatmap(generation_records(steps=3000), "adam", ["a", "b"]).data[0].x) < 800


def test_layer_figure_shows_that_layer():
    figure = charts.layer_figure(generation_records(("adam",)), ["first", "second"], "second")
    assert list(figure.data[0].y) == pytest.approx([0.01, 0.02, 0.03])


def test_training_curve_is_smoothed_without_bias_at_its_start():
    records = [Record(i, "training", "adam W4A4", i, {"total": 5.0, "agreement": 80.0}) for i in range(1, 30)]
    figure = training_charts.training_figure(records, "total")
    assert list(figure.data[0].y) == pytest.approx([5.0] * 29)
    assert figure.data[0].name == "Adam W4A4"


def test_training_curve_of_a_long_run_has_no_more_points_than_a_screen_and_ends_where_the_run_is():
    records = [Record(i, "training", "adam W4A4", i, {"total": 5.0, "agreement": 80.0}) for i in range(1, 40_001)]
    curve = training_charts.training_figure(records, "agreement").data[0]
    assert len(curve.x) == len(curve.y) <= 601
    assert curve.x[-1] == 40_000


def test_accuracy_shows_calibrated_trained_paper_and_full_precision():
    rows = [
        {"lane": "mi-fgsm", "bits": 4, "calibrated": 90.0, "quantized": 91.0, "standard_error": 0.6},
        {"lane": "mi-fgsm", "bits": 3, "calibrated": 80.0, "quantized": None},
    ]
    figure = accuracy_charts.accuracy_figure(rows, 92.1, {"DFFG": {3: 84.68}}, 93.89)
    by_name = {trace.name: trace for trace in figure.data}
    assert list(by_name["MI-FGSM, calibrated only"].y) == [80.0, 90.0]
    assert list(by_name["MI-FGSM, trained"].x) == [4]
    assert list(by_name["MI-FGSM, trained"].error_y.array) == [0.6]
    assert list(by_name["DFFG, paper"].y) == [84.68]
    assert [note.text for note in figure.layout.annotations] == ["full precision 92.1 %", "paper's full precision 93.9 %"]


def test_settings_of_one_optimizer_share_its_colour_and_differ_in_mark():
    rows = [
        {"lane": "adam", "label": label, "bits": 4, "runs": runs, "calibrated": 80.0, "calibrated_error": error, "quantized": 90.0,
         "standard_error": 0.5}
        for label, runs, error in (("range lsq", 3, 0.25), ("<b>", 1, None))
    ]  # fmt: skip
    figure = accuracy_charts.accuracy_figure(rows, None, {}, None)
    assert {trace.line.color for trace in figure.data} == {"#D55E00"}
    assert [trace.marker.symbol for trace in figure.data] == ["circle-open", "circle", "square-open", "square"]
    assert figure.data[0].error_y.array == (0.25,)
    assert figure.data[2].error_y.array is None
    assert "mean of 3 seeds" in figure.data[1].customdata[0]
    assert figure.data[2].name == "Adam, &#60;b&#62;, calibrated only"
    bars = accuracy_charts.accuracy_figure(rows, 92.1, {"ZAQ": {4: 92.13}, "DSG": {4: 88.93}}, 93.89, bars=True)
    assert [trace.type for trace in bars.data] == ["bar"] * 4 + ["scatter"] * 2
    assert [trace.y[0] for trace in bars.data] == [80, 90, 80, 90, 92.13, 88.93]
    assert len({trace.marker.symbol for trace in bars.data[4:]}) == 2
    assert bars.layout.yaxis.rangemode == "tozero"


def test_histogram_marks_the_mean_and_matrix_names_the_classes():
    measured = {"mean_similarity": 0.4, "histogram": {"edges": [-1.0, 0.0, 1.0], "share": [0.25, 0.75]}}
    figure = diversity_charts.histogram_figure({"adam": measured})
    assert list(figure.data[0].x) == [-0.5, 0.5]
    assert "mean 0.400" in figure.data[0].name
    both = diversity_charts.histogram_figure({"adam": measured}, {"noise": measured, "real": measured})
    assert [trace.line.dash for trace in both.data] == [None, "dot", "dot"]
    assert [shape.x0 for shape in both.layout.shapes] == [0.4, 0.4, 0.4]
    assert [note.text for note in both.layout.annotations] == ["noise", "real images"]
    matrix = diversity_charts.matrix_figure(
        "adam", {"labels": [0, 0, 2], "cosine": [[1, 0, 0], [0, 1, 0], [0, 0, 1]]}, ["cat", "dog", "frog"]
    )
    assert list(matrix.layout.xaxis.ticktext) == ["cat", "frog"]
    assert list(matrix.layout.xaxis.tickvals) == [0, 2]
