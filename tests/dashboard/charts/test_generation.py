import json

import numpy as np
import plotly.graph_objects as go
import pytest

from core.generation.methods import METHODS
from core.reporting import Frame, RunningStatistics
from core.runs.records import Record
from dashboard.charts import accuracy as accuracy_charts
from dashboard.charts import diversity as diversity_charts
from dashboard.charts import generation as generation_charts
from dashboard.charts import style as chart_style
from dashboard.charts import training as training_charts
from dashboard.names import method_name
from dashboard.tables.terms import loss_terms


def generation_records(methods=("mi-fgsm", "adam"), steps=3):
    return [
        Record(
            step * 10 + place,
            "generation",
            method,
            step,
            {"total": 10.0 / step, "bns": 9.0, "tv": 1.0, "l2": 1.0, "ce": 2.0, "agreement": 50.0, "layers": [1.0, 0.01 * step]},
        )
        for step in range(1, steps + 1)
        for place, method in enumerate(methods)
    ]


def plotted(figure):
    """The figure as the browser gets it; plotly validates every property."""
    sent = json.loads(chart_style.json_of(figure))
    return go.Figure({"data": sent["data"], "layout": sent["layout"]})


CHANGES = [
    {"method": "mi-fgsm", "step": 2, "name": "beta", "value": 0.5},
    {"method": "adam", "step": 2, "name": "beta", "value": 0.5},
    {"method": "mi-fgsm", "step": 3, "name": "epsilon", "value": 0.05},
]


def test_loss_figure_has_a_panel_for_each_term_with_a_color_for_each_method():
    figure = plotted(generation_charts.loss_figure(generation_records()))
    assert len(figure.data) == 2 * 6
    assert [(trace.name, trace.line.color) for trace in figure.data[:2]] == [("MI-FGSM", "#0072B2"), ("Adam", "#D55E00")]
    assert list(figure.data[0].x) == [1, 2, 3]
    assert list(figure.data[0].y) == pytest.approx([10.0, 5.0, 10 / 3], rel=1e-3)
    assert [note.text for note in figure.layout.annotations] == [
        f"<b>{heading}</b>"
        for heading in (
            "total loss",
            "L_BNS (batch-norm statistics)",
            "L_CE (cross entropy)",
            "R_TV (total variation)",
            "R_l2 (l2 norm)",
            "teacher agreement (%)",
        )
    ]
    assert [trace.showlegend for trace in figure.data].count(True) == 2  # each method is in the legend once
    assert figure.layout.yaxis.type == "log"
    assert figure.layout.yaxis6.type == "linear"  # agreement may be zero


def test_a_live_change_is_one_mark_with_its_value_in_every_panel_for_all_its_methods():
    for figure, parts in (
        (generation_charts.loss_figure(generation_records(), CHANGES), 6),
        (generation_charts.layer_figure(generation_records(), ["first", "second"], CHANGES), 2),
    ):
        layout = plotted(figure).layout
        assert [(shape.x0, shape.x1) for shape in layout.shapes] == [(2, 2), (3, 3)] * parts
        assert len({shape.yref for shape in layout.shapes}) == parts
        assert [note.text for note in layout.annotations][parts:] == ["β = 0.5", "ε = 0.05"] * parts
        assert [shape.line.color for shape in layout.shapes][:2] == ["#8A8F98", "#0072B2"]


def test_live_changes_of_one_iteration_share_a_mark():
    changes = [*CHANGES, {"method": "adam", "step": 3, "name": "lr", "value": 0.2}]
    assert generation_charts.change_marks(changes) == [
        generation_charts.ChangeMark(2, "β = 0.5", ("mi-fgsm", "adam")),
        generation_charts.ChangeMark(3, "ε = 0.05, lr = 0.2", ("mi-fgsm", "adam")),
    ]


def test_heatmaps_mark_only_changes_of_their_method():
    layout = plotted(generation_charts.layer_heatmaps(generation_records(), ["mi-fgsm", "adam"], ["first", "second"], CHANGES)).layout
    assert [(shape.xref, shape.x0) for shape in layout.shapes] == [("x", 2), ("x", 3), ("x2", 2)]


def test_heatmap_has_a_row_for_each_layer_and_logarithmic_color():
    figure = plotted(generation_charts.layer_heatmaps(generation_records(), ["mi-fgsm", "adam"], ["first", "second"]))
    assert [list(row) for row in figure.data[1].z] == [
        pytest.approx([0.0, 0.0, 0.0]),
        pytest.approx([-2.0, -1.69897, -1.52288], abs=1e-3),
    ]
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (pytest.approx(-2), pytest.approx(0))


def test_heatmap_of_a_long_run_has_few_columns():
    assert len(generation_charts.layer_heatmaps(generation_records(steps=3000), ["adam"], ["a", "b"])["data"][0]["x"]) <= 201


def test_layer_figure_shows_all_layers_on_one_scale():
    figure = plotted(generation_charts.layer_figure(generation_records(("adam",)), ["first", "second"]))
    assert list(figure.data[1].y) == pytest.approx([0.01, 0.02, 0.03])
    assert figure.layout.yaxis.range == figure.layout.yaxis2.range == pytest.approx((-2.1, 0.1))


@pytest.mark.parametrize("count", [1, 6, 21, 53])
def test_panels_do_not_overlap_in_wide_and_narrow_windows(count):
    records = [Record(1, "generation", "adam", 1, {"layers": [1.0] * count})]
    wide = generation_charts.layer_figure(records, [f"layer {index}" for index in range(count)])["layout"]
    for layout in (wide, {**wide, **wide["meta"]["narrow"]}):
        axes = range(1, count + 1)
        boxes = [(layout[f"xaxis{n if n > 1 else ''}"]["domain"], layout[f"yaxis{n if n > 1 else ''}"]["domain"]) for n in axes]
        assert all(0 <= low < high <= 1 for box in boxes for low, high in box)
        for index, (x, y) in enumerate(boxes):
            for other_x, other_y in boxes[:index]:
                assert x[1] <= other_x[0] or other_x[1] <= x[0] or y[1] <= other_y[0] or other_y[1] <= y[0]
    assert wide["meta"]["narrow"]["height"] >= wide["height"]


def test_cursor_crosses_every_panel_over_iterations():
    figure = generation_charts.layer_figure(generation_records(), ["first", "second"])
    assert figure["layout"]["meta"]["cursor"] == [["x", "y"], ["x2", "y2"]]
    assert len(generation_charts.loss_figure(generation_records())["layout"]["meta"]["cursor"]) == 6
    assert "cursor" not in generation_charts.layer_bars({"adam": generation_records()[1]}, ["first", "second"], 0)["layout"]["meta"]


def test_bars_carry_their_layer_and_mark_the_chosen_one():
    mi_fgsm, adam = generation_records()[:2]
    figure = plotted(generation_charts.layer_bars({"mi-fgsm": mi_fgsm, "adam": adam}, ["first", "<b>second"], 1))
    assert [list(bar.customdata) for bar in figure.data] == [[0, 1], [0, 1]]
    assert list(figure.data[0].y) == pytest.approx([1.0, 0.01])
    assert figure.data[0].text[1] == "&#60;b&#62;second"
    assert (figure.layout.shapes[0].x0, figure.layout.shapes[0].x1) == (1.5, 2.5)


def channels(step=1, **arrays):
    return Frame(step, np.zeros((1, 3, 2, 2), np.uint8), np.zeros(1, np.int64), **arrays)


def test_channel_figure_shows_batch_against_running_statistics_of_a_layer():
    running = RunningStatistics([1, 2], np.float32([9, 1, 2]), np.float32([9, 3, 4]))
    frames = {"adam": channels(means=np.float32([8, 1.5, 2.5]), variances=np.float32([8, 3.5, 4.5]))}
    figure = plotted(generation_charts.channel_figure(frames, running, 1))
    points = [trace for trace in figure.data if trace.mode == "markers"]
    assert [(list(trace.x), list(trace.y)) for trace in points] == [([1, 2], [1.5, 2.5]), ([3, 4], [3.5, 4.5])]
    assert figure.layout.xaxis2.type == "log"


def test_channel_figure_needs_statistics_and_leaves_out_nan():
    running = RunningStatistics([2], np.float32([1, 2]), np.float32([3, 4]))
    assert generation_charts.channel_figure({"adam": channels()}, running, 0) is None
    figure = generation_charts.channel_figure(
        {"adam": channels(means=np.float32([np.nan, 1]), variances=np.float32([np.nan, 1]))}, running, 0
    )
    points = [trace for trace in plotted(figure).data if trace.mode == "markers"]
    assert list(points[0].y) == [None, 1]


def test_numbers_keep_four_significant_digits():
    array = np.float32([0.12345678, 1234567, -3.3333e-9, 0, np.inf])
    sent = json.loads(chart_style.json_of({"data": [{"y": array}], "layout": {"height": 100}}))
    assert sent == {"data": [{"y": [0.1235, 1235000.0, -3.333e-9, 0, None]}], "layout": {"height": 100}}


def test_training_curve_is_smoothed_without_bias_at_the_start():
    records = [Record(i, "training", "adam W4A4", i, {"total": 5.0, "agreement": 80.0}) for i in range(1, 30)]
    figure = plotted(training_charts.training_figure(records, "total"))
    assert list(figure.data[0].y) == pytest.approx([5.0] * 29)
    assert figure.data[0].name == "Adam W4A4"


def test_training_curve_of_a_long_run_has_few_points_and_keeps_the_last():
    records = [Record(i, "training", "adam W4A4", i, {"total": 5.0, "agreement": 80.0}) for i in range(1, 40_001)]
    curve = plotted(training_charts.training_figure(records, "agreement")).data[0]
    assert len(curve.x) == len(curve.y) <= 601
    assert curve.x[-1] == 40_000


def test_accuracy_shows_calibrated_trained_paper_and_full_precision():
    rows = [
        {"method": "mi-fgsm", "bits": 4, "calibrated": 90.0, "trained": 91.0, "standard_error": 0.6},
        {"method": "mi-fgsm", "bits": 3, "calibrated": 80.0, "trained": None},
    ]
    figure = plotted(accuracy_charts.accuracy_figure(rows, 92.1, {"DFFG": {3: 84.68}}, 93.89))
    by_name = {trace.name: trace for trace in figure.data}
    assert list(by_name["MI-FGSM, calibrated only"].y) == [80.0, 90.0]
    assert list(by_name["MI-FGSM, trained"].x) == [4]
    assert list(by_name["MI-FGSM, trained"].error_y.array) == [0.6]
    assert list(by_name["DFFG, paper"].y) == [84.68]
    assert [note.text for note in figure.layout.annotations] == ["full precision 92.1 %", "paper's full precision 93.9 %"]


def test_settings_of_one_method_share_its_color_and_differ_in_marker():
    rows = [
        {"method": "adam", "label": label, "bits": 4, "runs": runs, "calibrated": 80.0, "calibrated_error": error, "trained": 90.0,
         "standard_error": 0.5}
        for label, runs, error in (("range lsq", 3, 0.25), ("<b>", 1, None))
    ]  # fmt: skip
    figure = plotted(accuracy_charts.accuracy_figure(rows, None, {}, None))
    assert {trace.line.color for trace in figure.data} == {"#D55E00"}
    assert [trace.marker.symbol for trace in figure.data] == ["circle-open", "circle", "square-open", "square"]
    assert figure.data[0].error_y.array == (0.25,)
    assert figure.data[2].error_y.array is None
    assert "mean of 3 seeds" in figure.data[1].customdata[0]
    assert figure.data[2].name == "Adam, &#60;b&#62;, calibrated only"
    bars = plotted(accuracy_charts.accuracy_figure(rows, 92.1, {"ZAQ": {4: 92.13}, "DSG": {4: 88.93}}, 93.89, bars=True))
    assert [trace.type for trace in bars.data] == ["bar"] * 4 + ["scatter"] * 2
    assert [trace.y[0] for trace in bars.data] == [80, 90, 80, 90, 92.13, 88.93]
    assert len({trace.marker.symbol for trace in bars.data[4:]}) == 2
    assert bars.layout.yaxis.rangemode == "tozero"


def test_histogram_marks_the_mean_and_matrix_names_the_classes():
    measured = {"mean_similarity": 0.4, "histogram": {"edges": [-1.0, 0.0, 1.0], "share": [0.25, 0.75]}}
    figure = plotted(diversity_charts.histogram_figure({"adam": measured}))
    assert list(figure.data[0].x) == [-0.5, 0.5]
    assert "mean 0.400" in figure.data[0].name
    both = plotted(diversity_charts.histogram_figure({"adam": measured}, {"noise": measured, "real": measured}))
    assert [trace.line.dash for trace in both.data] == ["solid", "dot", "dot"]
    assert [shape.x0 for shape in both.layout.shapes] == [0.4, 0.4, 0.4]
    assert [trace.name for trace in both.data[1:]] == ["Noise (reference), mean 0.400", "Real images (reference), mean 0.400"]
    matrix = plotted(
        diversity_charts.matrix_figure("adam", {"labels": [0, 0, 2], "cosine": [[1, 0, 0], [0, 1, 0], [0, 0, 1]]}, ["cat", "dog", "frog"])
    )
    assert list(matrix.layout.xaxis.ticktext) == ["cat", "frog"]
    assert list(matrix.layout.xaxis.tickvals) == [0.5, 2]  # the middle of each class


def test_eight_methods_have_eight_colors_and_a_ninth_another_dash():
    eight, ninth = list(METHODS)[:8], list(METHODS)[8]
    assert eight[:2] == ["mi-fgsm", "adam"]
    assert [chart_style.color(name) for name in eight] == list(chart_style.METHOD_COLORS)
    assert {chart_style.dash(name) for name in eight} == {"solid"}
    assert (chart_style.color(ninth), chart_style.dash(ninth)) == (chart_style.METHOD_COLORS[0], "dash")


def test_a_set_of_given_images_has_the_same_color_everywhere():
    assert chart_style.color("photographs W4A4") == chart_style.color("photographs")
    assert chart_style.color("photographs") in chart_style.METHOD_COLORS[2:]
    assert chart_style.color("given") not in chart_style.METHOD_COLORS


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_figures_of_one_to_eight_methods(count):
    methods = list(METHODS)[:count]
    records = generation_records(methods)
    loss = plotted(generation_charts.loss_figure(records, CHANGES))
    assert len(loss.data) == 6 * count
    assert [trace.name for trace in loss.data if trace.showlegend] == [method_name(method) for method in methods]
    heatmaps = generation_charts.layer_heatmaps(records, methods, ["first", "second"], CHANGES)
    domains = {(tuple(value["domain"]), tuple(heatmaps["layout"][f"y{name[1:]}"]["domain"]))
               for name, value in heatmaps["layout"].items() if name.startswith("xaxis")}  # fmt: skip
    assert len(domains) == count
    assert min(high - low for (low, high), _ in domains) > 0.2  # of the page width
    rows = [{"method": method, "bits": bits, "calibrated": 80.0, "quantized": 90.0} for method in methods for bits in (3, 4)]
    accuracy = plotted(accuracy_charts.accuracy_figure(rows, 92.0, {}, None))
    assert len({trace.line.color for trace in accuracy.data}) == count
    one = accuracy_charts.accuracy_figure(rows[:2], 92.0, {}, None)
    assert accuracy.layout.height - one["layout"]["height"] == 20 * (chart_style.legend_rows([t.name for t in accuracy.data]) - 1)
    measured = {"mean_similarity": 0.4, "histogram": {"edges": [-1.0, 0.0, 1.0], "share": [0.25, 0.75]}}
    histogram = plotted(diversity_charts.histogram_figure(dict.fromkeys(methods, measured)))
    assert {trace.fill for trace in histogram.data} == {"tozeroy" if count == 1 else "none"}


def test_terms_are_those_the_run_recorded():
    data = {"total": 3.0, "ie": 1.0, "bns": 2.0, "agreement": 50.0, "layers": [1.0]}
    records = [Record(1, "generation", "adam", 1, data)]
    recorded = loss_terms({"terms": [
        {"name": "bns", "symbol": "L_BNS", "title": "batch-norm statistics", "log": True},
        {"name": "ie", "symbol": "L_IE", "title": "information <entropy>", "log": False},
        {"name": "later", "symbol": "", "title": "not in the records", "log": True},
    ]})  # fmt: skip
    figure = plotted(generation_charts.loss_figure(records, terms=recorded))
    headings = ["total loss", "L_BNS (batch-norm statistics)", "L_IE (information &#60;entropy&#62;)", "teacher agreement (%)"]
    assert [note.text for note in figure.layout.annotations] == [f"<b>{heading}</b>" for heading in headings]
    assert (figure.layout.yaxis2.type, figure.layout.yaxis3.type) == ("log", "linear")


def test_a_run_without_recorded_terms_shows_those_of_its_records():
    records = [Record(1, "generation", "adam", 1, {"total": 3.0, "bns": 2.0, "layers": [1.0]})]
    assert len(generation_charts.loss_figure(records, terms=loss_terms({}))["data"]) == 2


def test_the_legend_of_panels_below_each_other_is_above_them():
    """On a phone, six panels are several screens high."""
    records = [
        Record(1, "generation", method, 1, {"total": 3.0, "bns": 2.0, "tv": 1.0, "l2": 1.0, "ce": 1.0, "agreement": 50.0, "layers": [1.0]})
        for method in ("mi-fgsm", "adam")
    ]
    layout = generation_charts.loss_figure(records)["layout"]
    narrow = {**layout, **layout["meta"]["narrow"]}
    assert (layout["legend"]["yanchor"], narrow["legend"]["yanchor"]) == ("bottom", "top")
    assert layout["margin"]["t"] == narrow["margin"]["b"] == 0
    assert layout["margin"]["b"] > 0
    assert narrow["margin"]["t"] > 0
    heatmaps = generation_charts.layer_heatmaps(records, ["mi-fgsm", "adam"], ["first"])["layout"]
    assert "legend" not in heatmaps["meta"]["narrow"]
