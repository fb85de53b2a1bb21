import csv
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from core.generation.methods import in_order
from core.runs.paper_table import Measurement, paper_rows
from dashboard.charts.accuracy import accuracy_figure
from dashboard.tables import results, run_list

TABLE = Path(__file__).parents[3] / "assets" / "paper" / "results.csv"


def test_accuracies_are_rows_in_order():
    known = {
        "full_precision": {"top1": 92.1},
        "accuracy/mi-fgsm/W4A4": {"bits": 4, "calibrated": 90.0},
        "accuracy/mi-fgsm/W3A3": {"bits": 3, "calibrated": 80.0},
        "accuracy/adam/W3A3": {"bits": 3, "calibrated": 79.0},
    }
    assert [(row["method"], row["bits"]) for row in results.accuracies(known)] == [("mi-fgsm", 3), ("mi-fgsm", 4), ("adam", 3)]


def test_drop_is_full_precision_minus_trained():
    rows = [
        {"method": "adam", "bits": 4, "calibrated": 90.0, "quantized": 91.25},
        {"method": "adam", "bits": 3, "calibrated": 80.0},
    ]
    assert [row["drop"] for row in results.accuracy_table(rows, 92.1)] == [0.85, None]


def test_paper_rows_are_those_of_the_file():
    with TABLE.open(newline="", encoding="utf-8") as file:
        expected = {
            int(row["bits"]): float(row["dffg"])
            for row in csv.DictReader(file)
            if (row["dataset"], row["model"]) == ("cifar10", "resnet20")
        }
    assert results.paper_accuracies("resnet20_cifar10") == ({"DFFG": expected}, 93.89)
    assert [row["bits"] for row in results.paper_table("resnet20_cifar10")] == [3, 4, 5]
    assert results.paper_accuracies("some/network.safetensors") == ({}, None)


@pytest.mark.parametrize(
    ("network", "dataset", "model", "bits"),
    [
        ("pytorchcv:resnet20_cifar10", "cifar10", "resnet20", [3, 4, 5]),
        ("pytorchcv:resnet20_cifar100", "cifar100", "resnet20", [3, 4, 5]),
        ("pytorchcv:resnet18", "imagenet", "resnet18", [4, 5]),
        ("pytorchcv:mobilenetv2_w1", "imagenet", "mobilenetv2", [4, 5]),
        ("pytorchcv:resnet50", "imagenet", "resnet50", [4, 5]),
        ("torchvision:resnet50", "", "", []),
    ],
)
def test_paper_rows_of_the_papers_own_weights(network, dataset, model, bits):
    assert [(row.dataset, row.network, row.bits) for row in paper_rows(network)] == [(dataset, model, width) for width in bits]


def test_whole_table_has_the_newest_measurement_of_each_row():
    first, second, *_ = paper_rows()
    kept = Measurement(
        first.name, "resnet20_cifar10", 92.1, {"mi-fgsm": 88.85}, {"mi-fgsm": 0.7}, "2,000 images", "quick", "2001-02-03", ""
    )
    older = replace(kept, top1={"mi-fgsm": 80.0}, when="2000-01-01", run="a run")
    lines = results.whole_table([(first, [kept, older]), (second, [])])
    assert [line["measured"] for line in lines] == [datetime(2001, 2, 3).timestamp(), None]
    assert [line["drop mi-fgsm"] for line in lines] == [3.25, None]
    assert "drop adam" not in lines[0]
    assert [line["drop DFFG"] for line in lines] == [9.21, 2.26]
    assert (lines[1]["DFFG"], lines[1]["ZeroQ"], lines[0]["ZAQ"]) == (91.63, 89.66, None)
    measured = results.measured_table([kept, older])
    assert [(line["top-1 mi-fgsm"], line["drop mi-fgsm"], line["± mi-fgsm"], line["run"]) for line in measured] == [
        (88.85, 3.25, 0.7, "kept with the program"),
        (80.0, 12.1, 0.7, "a run"),
    ]
    assert measured[0]["started from"] == "resnet20_cifar10, this project's weights, not the paper's"


def test_whole_table_prefers_the_settings_of_a_preset():
    row = paper_rows()[0]
    preset = Measurement(row.name, "resnet20_cifar10", 92.1, {"adam": 88.0}, {"adam": 0.7}, "2,000 images", "quick", "2001-02-03", "")
    toy = replace(preset, top1={"adam": 40.0}, setting="quick with images 80", when="2002-01-01", run="a run")
    assert [line["drop adam"] for line in results.whole_table([(row, [toy, preset])])] == [4.1]
    assert [line["drop adam"] for line in results.whole_table([(row, [toy])])] == [52.1]
    near = replace(preset, setting="quick with images 80; mean and standard deviation of 3 seeds, last training step")
    far = replace(toy, setting="quick with images 80, steps 4")
    assert [line["drop adam"] for line in results.whole_table([(row, [far, near])])] == [4.1]  # no run has the settings of a preset


def test_diversities_by_method():
    assert results.diversities({"diversity/adam": {"images": 2}, "full_precision": {}}) == {"adam": {"images": 2}}


def test_references_and_methods_are_kept_separate():
    figures = {"images": 2, "mean_similarity": 0.5}
    known = {"diversity/adam": figures, "reference/noise": figures, "reference/real": {"left_out": "none fits"}}
    assert results.diversities(known).keys() == {"adam"}
    assert results.references(known) == {"noise": figures}
    assert results.references({"diversity/adam": figures}) == {}
    # given images may have the name of a reference
    assert results.references({**known, "diversity/noise": figures}) == {}


def test_diversity_table_has_all_sets_and_none_for_missing_values():
    old = {"images": 8, "mean_similarity": 0.4, "within_class_similarity": None}
    new = {**old, "snapshot_similarity": 0.9, "nearest_similarity": 0.8, "close_share": 0.25}
    first, second = results.diversity_table({"mi-fgsm": old}, {"real": new})
    assert (first["set"], first["images"], first["all pairs"], first["nearest"], first["nearly the same %"]) == (
        "MI-FGSM",
        8,
        0.4,
        None,
        None,
    )
    assert (second["set"], second["snapshots"], second["nearest"], second["nearly the same %"]) == ("Real images (reference)", 0.9, 0.8, 25)


def test_paper_tables_have_columns_of_the_measured_methods():
    row = paper_rows()[0]
    methods = ["mi-fgsm", "adam", "gdfq", "zeroq", "intraq"]
    figures = dict.fromkeys(methods, 80.0)
    one = Measurement(
        row.name, "resnet20_cifar10", 92.1, figures, dict.fromkeys(methods, 0.7), "2,000 images", "quick", "2001-01-01 12:30", ""
    )
    (line,) = results.whole_table([(row, [one])])
    assert [line[f"drop {method}"] for method in methods] == [12.1] * 5
    (line,) = results.measured_table([one])
    assert [name for name in line if name.startswith("top-1")] == [f"top-1 {method}" for method in in_order(methods)]
    assert not [name for name in results.whole_table([(row, [])])[0] if name.startswith("drop ") and name != "drop DFFG"]


def test_run_list_shows_the_accuracy_of_the_first_trained_method():
    known = {f"accuracy/{method}/W4A4": {"bits": 4, "calibrated": 80.0, "quantized": top1}
             for method, top1 in (("adam", 90.0), ("mi-fgsm", 91.0))}  # fmt: skip
    assert run_list._figures(known) == {"W4A4 %": 91.0}
    known["accuracy/mi-fgsm/W4A4"] = {"bits": 4, "calibrated": 80.0}
    assert run_list._figures(known) == {"W4A4 %": 90.0}


def held_out(agreement):
    return {"agreement": agreement, "standard_error": 0.5, "kl": 0.01, "images": 64, "score_sqnr": 20.25}


UNLABELED = {
    "accuracy/adam/W4A4": {
        "bits": 4, "calibrated": None, "trained": None, "quantized": None, "standard_error": None, "kept": "trained",
        "held_out": {"calibrated": held_out(80.0), "trained": held_out(97.0)},
    },
    "accuracy/adam/W3A3": {"bits": 3, "calibrated": None, "held_out": {"calibrated": held_out(60.0)}},
}  # fmt: skip


def test_without_evaluation_images_rows_have_the_agreement_of_what_is_kept():
    rows = results.accuracies(UNLABELED)
    assert [(row["bits"], row["agreement"], row["calibrated_agreement"], row["trained_agreement"]) for row in rows] == [
        (3, 60.0, 60.0, None),
        (4, 97.0, 80.0, 97.0),
    ]
    assert not results.has_accuracy(rows)
    first, second = results.accuracy_table(rows, None)
    assert not first.keys() & {"calibrated %", "trained %", "drop", "±", "error bar"}
    names = ("agreement %", "±", "KL", "score SQNR, dB")
    assert [second[f"synthetic {name}"] for name in names] == [97.0, 0.5, 0.01, 20.25]
    assert second["kept"] == "trained"
    assert not any(name.startswith("real") for name in second)
    assert run_list._figures(UNLABELED) == {"W4A4 synthetic agreement %": 97.0}
    assert results.measured_on(rows) == {"synthetic": "64 held-out synthetic images"}


def test_real_and_synthetic_images_are_told_apart():
    real = {"calibrated": {**held_out(70.0), "images": 500, "measured_on": "500 images of pets"}}
    real["trained"] = {**real["calibrated"], "agreement": 95.0, "kl": 0.02}
    known = {"accuracy/adam/W4A4": {**UNLABELED["accuracy/adam/W4A4"], "real": real}}
    rows = results.accuracies(known)
    (row,) = rows
    assert (row["real_agreement"], row["calibrated_real_agreement"], row["trained_real_agreement"], row["real_kl"]) == (
        95.0,
        70.0,
        95.0,
        0.02,
    )
    assert (row["agreement"], row["kl"]) == (97.0, 0.01)
    (line,) = results.accuracy_table(rows, None)
    assert (line["real agreement %"], line["real ±"], line["real KL"], line["synthetic agreement %"]) == (95.0, 0.5, 0.02, 97.0)
    assert list(results.measured_on(rows).items()) == [("real", "500 images of pets"), ("synthetic", "64 held-out synthetic images")]
    assert results.agreement_of(row) == ("real", 95.0, 0.5)
    assert run_list._figures(known) == {"W4A4 real agreement %": 95.0}
    figure = accuracy_figure(rows, None, {}, None)
    assert [trace["y"] for trace in figure["data"]] == [[70.0], [95.0]]
    assert figure["layout"]["yaxis"]["title"]["text"] == "real images of the same class, %"


def test_layers_of_earlier_versions_were_analyzed_on_calibration_images():
    assert results.layers_measured_on({"images": 64, "layers": []}) == "64 calibration images"
    assert results.layers_measured_on({"images": 64, "measured_on": "64 held-out synthetic images"}) == "64 held-out synthetic images"


def test_with_evaluation_images_the_agreement_is_beside_the_accuracy_where_it_was_measured():
    row = {"method": "adam", "bits": 4, "calibrated": 90.0, "quantized": 91.0, "kept": "trained"}
    (plain,) = results.accuracy_table([row], 92.0)
    assert "synthetic agreement %" not in plain
    compared = {**row, "held_out": {"trained": held_out(97.0)}}
    (line,) = results.accuracy_table([compared | results.closeness(compared)], 92.0)
    assert (line["drop"], line["synthetic agreement %"]) == (1.0, 97.0)


def test_protocols_of_generators_are_named():
    rows = [{"method": "mi-fgsm"}, {"method": "gdfq", "protocol": "authors"}, {"method": "gdfq", "protocol": "authors"}]
    assert results.protocols(rows) == ["GDFQ: authors' protocol"]
    assert results.protocols([{"method": "zaq", "protocol": "shared"}]) == ["ZAQ: shared protocol"]
    assert results.protocols(rows[:1]) == []
