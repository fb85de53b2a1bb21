"""Comparison of runs: settings that differ, x axes, smoothing, last and best values."""

from dataclasses import replace

import numpy as np
import plotly.graph_objects as go
import pytest

from core.config import SECTIONS, GenerationConfig, RunConfig, TrainingConfig
from core.runs.run import Run
from core.runs.state import RunState
from dashboard.charts import comparison as charts
from dashboard.views.comparison import joined

CONFIG = RunConfig(generation=GenerationConfig(images=40, snapshots=2, iterations=3, batch_size=8), bits=(4,))


def compared(letter="A", config=CONFIG, curves=None, results=None, changes=(), pinned=False, name="a run") -> charts.Compared:
    run = Run(
        id=letter,
        name=name, network=CONFIG.model, config=CONFIG, state=RunState.COMPLETE, created=0.0, started=None, ended=None, error="",
        traceback="", stage="", stage_started=None, step=0, total=0, stage_done=0, attempt=1, user="", out="", output_subset="",
        note="", tags=(), pinned=pinned, trashed=None,
    )  # fmt: skip
    return charts.Compared(run, letter, charts.COLORS[ord(letter) - ord("A")], config, curves or {}, results or {}, changes)


def curve(values, seconds=None):
    steps = np.arange(1, len(values) + 1, dtype=float)
    return {"step": steps, "total": np.array(values, float), "seconds": steps * 0.5 if seconds is None else np.array(seconds)}


def test_settings_that_differ_come_first_and_none_is_missing():
    other = replace(CONFIG, machine=replace(CONFIG.machine, seed=5), bits=(3, 4), lr_by_bits={3: 0.5})
    change = {"method": "adam", "step": 7, "name": "beta", "value": 0.25}
    different, equal = charts.settings_table([compared("A"), compared("B", other, changes=[change], pinned=True)])
    assert different == [
        {"setting": "Seed", "A · a run": "0", "B · a run ★": "5"},
        {"setting": "Bit widths", "A · a run": "4", "B · a run ★": "3, 4"},
        {"setting": "Training step size by bit width", "A · a run": "none", "B · a run ★": "3: 0.5"},
        {"setting": "Live changes", "A · a run": "none", "B · a run ★": "beta = 0.25 at 7 (adam)"},
    ]
    whole = CONFIG.to_dict()
    assert len(different) + len(equal) == sum(len(whole[name]) for name in SECTIONS) + len(whole) - len(SECTIONS) + 1
    assert {"setting": "Iterations", "value": "3"} in equal
    names = [row["setting"] for row in different + equal]
    assert len(set(names)) == len(names)  # also those of knobs with one label, as "Batch size"


def test_unreadable_settings_are_unknown_and_not_defaults():
    different, equal = charts.settings_table([compared("A"), compared("B", None)])
    assert equal == []
    assert {row["B · a run"] for row in different} == {charts.UNKNOWN}


def test_generated_images_are_counted_by_batch():
    # 20 noise images in batches of 8, 8 and 4, three iterations each
    assert CONFIG.generation.batches == [8, 8, 4]
    expected = np.cumsum([8] * 3 + [8] * 3 + [4] * 3)
    assert charts.images_generated(CONFIG.generation, np.arange(1.0, 10.0)).tolist() == expected.tolist()


def test_training_images_are_counted_with_short_last_batches():
    config = replace(CONFIG, training=TrainingConfig(training_batch_size=16))
    # 40 images make batches of 16, 16 and 8
    expected = np.cumsum([16, 16, 8] * 3)
    assert charts.images_trained_on(config, np.arange(1.0, 10.0)).tolist() == expected.tolist()
    given = replace(config, images_from="/somewhere")
    assert charts.images_trained_on(given, np.array([1.0, 3.0])).tolist() == [16, 48]


def test_axes():
    columns = curve([3, 2, 1])
    assert charts.axis_values(CONFIG, "generation", columns, "iteration").tolist() == [1, 2, 3]
    assert charts.axis_values(CONFIG, "generation", columns, "seconds").tolist() == [0.5, 1.0, 1.5]
    assert charts.axis_values(CONFIG, "generation", columns, "images").tolist() == [8, 16, 24]
    assert charts.axis_values(None, "generation", columns, "images").tolist() == [1, 2, 3]


def test_smoothing_is_an_exponentially_weighted_average():
    """Compared with the definition: normalized weights w^k."""
    values = np.random.default_rng(0).normal(size=30)
    weight = 0.8
    expected = []
    for index in range(30):
        weights = weight ** np.arange(index, -1, -1)
        expected.append((weights * values[: index + 1]).sum() / weights.sum())
    np.testing.assert_allclose(charts.smoothed(values, weight), expected, rtol=1e-12)
    assert charts.smoothed(values, 0.0) is values
    np.testing.assert_allclose(charts.smoothed(np.full(5, 7.0), 0.99), 7.0)
    with_gap = charts.smoothed(np.array([1.0, np.nan, 3.0]), 0.5)
    np.testing.assert_allclose(with_gap, [1.0, np.nan, (0.5 * 1 + 3.0) / 1.5])


def test_curves_have_the_color_of_their_run_and_the_dash_of_their_method():
    methods = {"mi-fgsm": curve([3, 2, 1]), "adam": curve([4, 3, 2])}
    figure = go.Figure(
        charts.curves_figure([compared("A", curves=methods), compared("B", curves=methods, pinned=True)], "total loss", "seconds", True)
    )
    assert [(trace.name, trace.line.color, trace.line.dash) for trace in figure.data] == [
        ("A · a run, MI-FGSM", charts.COLORS[0], "solid"),
        ("A · a run, Adam", charts.COLORS[0], "dash"),
        ("B · a run ★, MI-FGSM", charts.COLORS[1], "solid"),
        ("B · a run ★, Adam", charts.COLORS[1], "dash"),
    ]
    assert figure.data[2].line.width > figure.data[0].line.width
    assert figure.data[0].x.tolist() == [0.5, 1.0, 1.5]
    assert figure.data[1].y.tolist() == [4, 3, 2]
    assert figure.layout.yaxis.type == "log"
    assert figure.layout.xaxis.title.text == "computing time (s)"


def test_smoothed_curves_have_faint_raw_lines_and_methods_can_be_left_out():
    methods = {"mi-fgsm": curve([3, 2, 1]), "adam": curve([4, 3, 2])}
    figure = go.Figure(charts.curves_figure([compared("A", curves=methods)], "total loss", smoothing=0.5, series=["adam"]))
    faint, smooth = figure.data
    assert faint.y.tolist() == [4, 3, 2]
    assert (faint.showlegend, faint.opacity) == (False, 0.25)
    np.testing.assert_allclose(smooth.y, [4, (0.5 * 4 + 3) / 1.5, (0.25 * 4 + 0.5 * 3 + 2) / 1.75], rtol=1e-6)
    assert charts.curves_figure([compared("A", curves=methods)], "training loss")["layout"]["yaxis"]["type"] == "linear"


def test_names_in_figures_are_escaped():
    figure = go.Figure(charts.curves_figure([compared("A", curves={"adam": curve([1])}, name="<b>x</b> $y$")], "total loss"))
    assert "<b>" not in figure.data[0].name
    assert "$" not in figure.data[0].name


def test_last_and_best_values_and_their_difference_from_the_baseline():
    first = compared("A", curves={"mi-fgsm": curve([3, 1, 2])})
    second = compared("B", curves={"mi-fgsm": curve([5, np.nan]), "adam": curve([9, 4])}, pinned=True)
    rows = charts.values_table([first, second], "total loss")
    names = ("run", "method", "last", "best", "best at iteration", "last − baseline", "best − baseline")
    assert [tuple(row[name] for name in names) for row in rows] == [
        ("A · a run", "MI-FGSM", 2.0, 1.0, 2, -3.0, -4.0),
        ("B · a run ★", "MI-FGSM", 5.0, 5.0, 1, None, None),
        ("B · a run ★", "Adam", 4.0, 4.0, 2, None, None),
    ]
    assert charts.values_table([first], "training L_KD") == []


def test_best_agreement_is_the_highest():
    columns = {"step": np.array([1.0, 2.0, 3.0]), "agreement": np.array([50.0, 90.0, 80.0])}
    (row,) = charts.values_table([compared("A", curves={"adam W4A4": columns})], "training agreement")
    assert (row["last"], row["best"], row["best at iteration"]) == (80.0, 90.0, 2)


def accuracies(top1, calibrated=80.0):
    row = {"bits": 4, "weight_bits": 4, "activation_bits": 4, "calibrated": calibrated, "standard_error": 0.5}
    return {"full_precision": {"top1": 92.1}, "accuracy/mi-fgsm/W4A4": row | ({} if top1 is None else {"quantized": top1})}


def test_accuracies_against_the_baseline():
    both = [compared("A", results=accuracies(90.0)), compared("B", results=accuracies(None, 88.0)), compared("C")]
    assert charts.accuracy_table(both) == [
        {"run": "A · a run", "images by": "MI-FGSM", "full precision %": 92.1, "W4A4 %": 90.0, "W4A4 − baseline": None},
        {"run": "B · a run", "images by": "MI-FGSM", "full precision %": 92.1, "W4A4 %": 88.0, "W4A4 − baseline": -2.0},
    ]
    figure = go.Figure(charts.accuracy_figure(both))
    assert [trace.y for trace in figure.data] == [(90.0,), (88.0,)]
    assert charts.accuracy_figure([compared("C")]) is None


def test_agreements_are_compared_where_there_is_no_accuracy():
    held_out = {"calibrated": {"agreement": 75.0}, "trained": {"agreement": 97.0}}
    row = {"bits": 4, "weight_bits": 4, "activation_bits": 4, "calibrated": None, "quantized": None, "kept": "trained"}
    unlabeled = compared("A", results={"accuracy/adam/W4A4": {**row, "held_out": held_out}})
    assert charts.accuracy_table([unlabeled]) == [
        {"run": "A · a run", "images by": "Adam", "full precision %": None, "W4A4 synthetic agreement %": 97.0}
    ]
    figure = go.Figure(charts.accuracy_figure([unlabeled]))
    assert [trace.y for trace in figure.data] == [(97.0,)]
    assert figure.layout.title.text == "Agreement with full precision at each bit width"
    first, second = charts.accuracy_table([unlabeled, compared("B", results=accuracies(90.0))])
    assert (first["W4A4 %"], second["W4A4 %"], second["W4A4 synthetic agreement %"]) == (None, 90.0, None)
    real = {"calibrated": {"agreement": 70.0}, "trained": {"agreement": 95.0}}
    on_real = compared("C", results={"accuracy/adam/W4A4": {**row, "held_out": held_out, "real": real}})
    (line,) = charts.accuracy_table([on_real])
    assert (line["W4A4 real agreement %"], line["W4A4 synthetic agreement %"]) == (95.0, 97.0)
    drawn = go.Figure(charts.accuracy_figure([on_real]))
    assert [trace.y for trace in drawn.data] == [(95.0,)]
    assert drawn.layout.yaxis.title.text == "real images of the same class, %"
    # what only one of them has cannot be compared
    drawn = go.Figure(charts.accuracy_figure([on_real, unlabeled]))
    assert [trace.y for trace in drawn.data] == [(97.0,), (97.0,)]
    assert drawn.layout.yaxis.title.text == "synthetic images of the same class, %"


def luminance(color: str) -> float:
    parts = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("background", ["#FFFFFF", "#11161D"])
def test_colors_are_visible_on_both_backgrounds(background):
    assert len(set(charts.COLORS)) == charts.MOST
    for color in charts.COLORS:
        low, high = sorted((luminance(color), luminance(background)))
        assert (high + 0.05) / (low + 0.05) >= 3


def test_curves_read_in_parts_equal_those_read_at_once():
    first = {"adam": {"step": np.array([1.0]), "total": np.array([3.0])}}
    second = {"adam": {"step": np.array([2.0]), "other": np.array([5.0])}, "mi-fgsm": {"step": np.array([1.0])}}
    both = joined(first, second)
    np.testing.assert_array_equal(both["adam"]["step"], [1, 2])
    np.testing.assert_array_equal(both["adam"]["total"], [3, np.nan])
    np.testing.assert_array_equal(both["adam"]["other"], [np.nan, 5])
    assert both["mi-fgsm"]["step"].tolist() == [1]
    assert joined({}, first) is first
    assert joined(first, {}) is first
