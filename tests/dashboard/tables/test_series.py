"""Means and standard deviations compared with numpy's, and which runs form a series."""

from dataclasses import replace

import numpy as np
import pytest

from core.config import RunConfig
from core.generation.methods import METHODS, Method
from dashboard.tables.results import accuracy_table, paper_accuracies, paper_methods
from dashboard.tables.series import Evaluated, accuracy_series, differ_only_in_seeds

START = RunConfig(bits=(3, 4))


def with_seed(seed, config=START):
    return config.with_knobs({"seed": seed})


def figures(calibrated, quantized=None, error=0.7, **more):
    trained = {} if quantized is None else {"quantized": quantized, "standard_error": error, "steps": 30, "seconds": 10.0}
    return {"calibrated": calibrated, "bits": 4, **trained, **more}


def evaluated(config, name="a run", live_changes=(), **by_series):
    """by_series: method -> figures at 4 bits."""
    return Evaluated(
        name, config, {f"accuracy/{method.replace('_', '-')}/W4A4": value for method, value in by_series.items()}, live_changes
    )


def test_runs_that_differ_only_in_seeds_are_averaged_with_standard_deviation():
    tops, before = [88.85, 89.4, 87.25], [80.0, 81.5, 79.0]
    runs = [evaluated(with_seed(seed), mi_fgsm=figures(before[seed], tops[seed], seconds=10.0 + seed)) for seed in range(3)]
    (row,) = accuracy_series(runs)
    assert (row["method"], row["bits"], row["label"], row["range"], row["runs"]) == ("mi-fgsm", 4, "", "lsq", 3)
    assert row["quantized"] == pytest.approx(np.mean(tops))
    assert row["standard_error"] == pytest.approx(np.std(tops, ddof=1))
    assert row["calibrated"] == pytest.approx(np.mean(before))
    assert row["calibrated_error"] == pytest.approx(np.std(before, ddof=1))
    assert row["seconds"] == pytest.approx(11.0)
    (line,) = accuracy_table([row], 92.1)
    assert (line["trained %"], line["±"], line["error bar"]) == (88.5, 1.12, "deviation over 3 seeds")
    assert line["drop"] == pytest.approx(92.1 - 88.5)


def test_a_single_run_has_the_standard_error_of_its_evaluation():
    (row,) = accuracy_series([evaluated(START, mi_fgsm=figures(80.0, 88.0, error=0.72))])
    assert (row["runs"], row["standard_error"], row["calibrated_error"]) == (1, 0.72, None)
    (line,) = accuracy_table([row], 92.1)
    assert (line["error bar"], "setting" in line) == ("standard error", False)


def test_agreements_are_averaged_where_there_is_no_accuracy():
    def unlabeled(agreement):
        held_out = {"calibrated": {"agreement": 70.0, "standard_error": 5.0, "kl": 0.5, "score_sqnr": None}}
        held_out["trained"] = {"agreement": agreement, "standard_error": 2.0, "kl": 0.1, "score_sqnr": 20.0}
        return {"calibrated": None, "trained": None, "quantized": None, "kept": "trained", "bits": 4, "held_out": held_out, "seconds": 4.0}

    (row,) = accuracy_series([evaluated(with_seed(seed), adam=unlabeled(agreement)) for seed, agreement in enumerate((96.0, 98.0))])
    assert [row[name] for name in ("calibrated", "trained", "quantized", "standard_error", "calibrated_error")] == [None] * 5
    assert (row["runs"], row["agreement"], row["trained_agreement"], row["calibrated_agreement"]) == (2, 97.0, 97.0, 70.0)
    assert row["agreement_error"] == pytest.approx(np.std([96.0, 98.0], ddof=1))
    assert (row["kl"], row["score_sqnr"], row["kept"], row["seconds"]) == (pytest.approx(0.1), 20.0, "trained", 4.0)
    (single,) = accuracy_series([evaluated(START, adam=unlabeled(96.0))])
    assert single["agreement_error"] == 2.0
    (line,) = accuracy_table([row], None)
    assert (line["synthetic agreement %"], line["synthetic score SQNR, dB"], line["runs"]) == (97.0, 20.0, 2)


def test_the_same_seed_twice_counts_once():
    runs = [evaluated(with_seed(1), adam=figures(80.0, 88.0)), evaluated(with_seed(1), adam=figures(80.0, 88.0))]
    (row,) = accuracy_series(runs)
    assert (row["runs"], row["standard_error"]) == (1, 0.7)


def test_a_run_still_in_training_is_left_out_of_the_trained_mean():
    runs = [evaluated(with_seed(seed), adam=figures(80.0 + seed, None if seed == 2 else 88.0 + seed)) for seed in range(3)]
    (row,) = accuracy_series(runs)
    assert (row["runs"], row["quantized"], row["calibrated"]) == (2, 88.5, 81.0)
    (row,) = accuracy_series(runs[2:])
    assert (row["runs"], row["quantized"], row["standard_error"]) == (1, None, None)


def test_different_settings_are_separate_series_labeled_by_what_differs():
    white = START.with_knobs({"noise": "white", "range": "minmax"})
    runs = [evaluated(config, mi_fgsm=figures(80.0, 88.0), adam=figures(80.0, 88.0)) for config in (START, white, with_seed(1, white))]
    rows = accuracy_series(runs)
    assert [(row["method"], row["label"], row["range"], row["runs"]) for row in rows] == [
        ("mi-fgsm", "noise pink, range lsq", "lsq", 1),
        ("mi-fgsm", "noise white, range minmax", "minmax", 2),
        ("adam", "noise pink, range lsq", "lsq", 1),
        ("adam", "noise white, range minmax", "minmax", 2),
    ]


def test_a_knob_of_one_method_does_not_split_the_series_of_another():
    other = START.with_knobs({"seed": 1, "epsilon": 0.2})
    rows = accuracy_series([evaluated(config, mi_fgsm=figures(80.0, 88.0), adam=figures(80.0, 88.0)) for config in (START, other)])
    assert [(row["method"], row["label"], row["runs"]) for row in rows] == [
        ("mi-fgsm", "epsilon 0.1", 1),
        ("mi-fgsm", "epsilon 0.2", 1),
        ("adam", "", 2),
    ]


def test_knobs_that_do_not_affect_accuracy_do_not_split_a_series():
    other = START.with_knobs({"seed": 1, "threads": 2, "device": "cpu", "compile": True, "encoder": "", "accuracy_checks": 0})
    (row,) = accuracy_series([evaluated(START, adam=figures(80.0, 88.0)), evaluated(other, adam=figures(80.0, 88.0))])
    assert row["runs"] == 2


def test_a_run_with_live_changes_is_not_a_second_seed():
    changes = [{"method": "adam", "step": 3, "name": "lr", "value": 0.2}]
    runs = [
        evaluated(START, adam=figures(80.0, 88.0), mi_fgsm=figures(80.0, 88.0)),
        evaluated(with_seed(1), "changed", changes, adam=figures(81.0, 88.0), mi_fgsm=figures(80.0, 88.0)),
    ]
    rows = [(row["method"], row["label"], row["runs"]) for row in accuracy_series(runs)]
    # a live change of adam does not split the series of mi-fgsm
    assert rows == [("mi-fgsm", "", 2), ("adam", "no live changes", 1), ("adam", "live changes", 1)]


def test_runs_that_differ_in_many_knobs_or_in_their_images_are_labeled_by_their_names():
    other = START.with_knobs({"range": "mse", "training_batch_size": 32, "temperature": 2.0, "ema_decay": 0.5})
    runs = [
        evaluated(START, "plain", adam=figures(80.0, 88.0)),
        evaluated(with_seed(1), "again", adam=figures(80.0, 88.0)),
        evaluated(other, "other", adam=figures(82.0, 88.0)),
        evaluated(replace(START, images_from="somewhere"), "other", adam=figures(83.0, 88.0)),
    ]
    rows = [(row["label"], row["runs"], row["calibrated"]) for row in accuracy_series(runs)]
    assert rows == [("plain and 1 more", 2, 80.0), ("other", 1, 82.0), ("other (2)", 1, 83.0)]


def test_bit_widths_are_in_ascending_order():
    known = {"accuracy/adam/W8A8": figures(92.0, bits=8), "accuracy/adam/W2A2": figures(40.0, bits=2), "accuracy/adam/W4A4": figures(90.0)}
    assert [row["bits"] for row in accuracy_series([Evaluated("a", replace(START, bits=(8, 2, 4)), known)])] == [2, 4, 8]


def test_which_runs_differ_only_in_seeds():
    assert differ_only_in_seeds(START, with_seed(1))
    assert not differ_only_in_seeds(START, START)
    assert not differ_only_in_seeds(START, with_seed(1, replace(START, bits=(3,))))
    assert not differ_only_in_seeds(START, with_seed(1, replace(START, steps_by_bits={3: 7})))
    assert not differ_only_in_seeds(START, with_seed(1, START.with_knobs({"noise": "white"})))


def test_methods_of_the_paper():
    assert paper_methods("resnet20_cifar10")[0] == "dffg"
    assert set(paper_methods("resnet20_cifar10")) == {"dffg", "real_data", "zeroq", "dsg", "zaq", "qimera", "gdfq", "intraq"}
    assert paper_methods("mine.safetensors") == []
    assert paper_accuracies("resnet20_cifar10", ["qimera", "nonsense"])[0] == {"Qimera": {4: 91.26, 5: 93.46}}


def test_five_methods_are_five_series_in_the_order_of_the_table(monkeypatch):
    added = ["zz", "bb", "aa"]
    for name in added:
        monkeypatch.setitem(METHODS, name, Method(name, name.upper(), "nowhere:Nothing"))
    known = {f"accuracy/{method}/W4A4": figures(80.0, 88.0) for method in ("aa", "adam", "bb", "mi-fgsm", "zz")}
    rows = accuracy_series([Evaluated("a", replace(START, methods=("mi-fgsm", "adam", *added)), known)])
    assert [(row["method"], row["label"]) for row in rows] == [(name, "") for name in ("mi-fgsm", "adam", *added)]
