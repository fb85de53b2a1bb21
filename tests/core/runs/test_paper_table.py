import csv
import json
from dataclasses import replace

import pytest

from core.config import PRESETS, GenerationConfig, MachineConfig, RunConfig, TrainingConfig
from core.errors import DataError, UnknownNameError
from core.models.registry import ASSETS
from core.runs import paper_table
from core.runs.state import RunState
from core.runs.store import RunStore

QUICK = PRESETS["quick"]
ROW = "cifar10/resnet20/4"
FIGURES = {"full_precision": 92.1, "calibrated": 90.0, "quantized": 90.85, "standard_error": 0.645, "evaluated_on": "2,000 images"}


@pytest.fixture
def store(tmp_path):
    store = RunStore(tmp_path / "runs")
    yield store
    store.close()


@pytest.fixture(autouse=True)
def nothing_kept(tmp_path, monkeypatch):
    """An empty file of kept figures; another test checks the committed one."""
    path = tmp_path / "measured.json"
    path.write_text('{"runs": [], "comparisons": []}', encoding="utf-8")
    monkeypatch.setattr(paper_table, "MEASURED", path)
    return path


def finished(store, config=QUICK, results=None, state=RunState.COMPLETE):
    """A finished run with these results."""
    run_id = store.create(config, "a run")
    for name, value in (results if results is not None else {"accuracy/mi-fgsm/W4A4": FIGURES}).items():
        store.set_result(run_id, name, value)
    store.set_state(run_id, state)
    return run_id


def measured(store, row=ROW):
    return {one.name: of_row for one, of_row in paper_table.table(store)}[row]


def test_rows_match_the_file(store):
    with (ASSETS / "paper" / "results.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    rows = [row for row, _ in paper_table.table(store)]
    assert [row.name for row in rows] == [f"{line['dataset']}/{line['model']}/{line['bits']}" for line in lines]
    for row, line in zip(rows, lines):
        assert row.full_precision == float(line["full_precision"])
        for column, value in row.methods.items():
            assert value == (float(line[column]) if line[column] else None)
    assert next(row for row in rows if row.name == ROW).drop == 2.26  # 93.89 - 91.63


def test_rows_of_a_network(store):
    assert [row.bits for row in paper_table.paper_rows("resnet20_cifar10")] == [3, 4, 5]
    assert paper_table.paper_rows("pytorchcv:resnet18") == [row for row, _ in paper_table.table(store) if row.network == "resnet18"]
    assert paper_table.paper_rows("some/network.safetensors") == []


def test_empty_store_has_no_measurements(store):
    assert all(of_row == [] for _, of_row in paper_table.table(store))


def test_finished_run_measures_its_rows(store):
    results = {
        "accuracy/mi-fgsm/W4A4": FIGURES,
        "accuracy/adam/W4A4": {**FIGURES, "quantized": 90.35, "standard_error": 0.66},
        "accuracy/mi-fgsm/W3A3": {**FIGURES, "quantized": 88.85},
    }
    run_id = finished(store, results=results)
    (one,) = measured(store)
    assert (one.top1, one.drop) == ({"mi-fgsm": 90.85, "adam": 90.35}, {"mi-fgsm": 1.25, "adam": 1.75})
    assert (one.standard_error, one.full_precision) == ({"mi-fgsm": 0.645, "adam": 0.66}, 92.1)
    assert (one.model, one.setting, one.evaluated_on, one.run) == ("resnet20_cifar10", "quick", "2,000 images", run_id)
    (three,) = measured(store, "cifar10/resnet20/3")
    assert three.top1 == {"mi-fgsm": 88.85}
    assert measured(store, "cifar10/resnet20/5") == []  # the run has no result at 5 bits


@pytest.mark.parametrize("model", ["resnet20_cifar10", "pytorchcv:resnet20_cifar10"])
def test_networks_of_a_row(store, model):
    finished(store, QUICK.with_knobs({"model": model}))
    assert [one.model for one in measured(store)] == [model]


@pytest.mark.parametrize(
    "config",
    [
        replace(QUICK, images_from="/somewhere"),
        QUICK.with_knobs({"activation_bits": 8}),
        replace(QUICK, bits=(5,)),
        QUICK.with_knobs({"first_last_8bit": True}),
        QUICK.with_knobs({"model": "pytorchcv:resnet20_cifar100"}),
        QUICK.with_knobs({"model": "/a/network.safetensors"}),
    ],
)
def test_other_runs_measure_nothing(store, config):
    finished(store, config)
    assert measured(store) == []


def test_activation_bits_may_equal_the_width_of_the_row(store):
    finished(store, replace(QUICK, bits=(4,)).with_knobs({"activation_bits": 4}))
    assert len(measured(store)) == 1


@pytest.mark.parametrize("state", [RunState.STOPPED, RunState.FAILED, RunState.INTERRUPTED])
def test_incomplete_run_measures_nothing(store, state):
    finished(store, state=state)
    assert measured(store) == []


def test_calibrated_accuracy_alone_measures_nothing(store):
    finished(store, results={"accuracy/mi-fgsm/W4A4": {"calibrated": 90.0, "bits": 4}})
    assert measured(store) == []


def test_run_with_an_unreadable_config_measures_nothing(store):
    run_id = finished(store)
    with store.database.write() as connection:
        connection.execute("UPDATE run SET config = ? WHERE id = ?", (json.dumps({"knob": 1}), run_id))
    assert measured(store) == []


def test_newest_measurement_is_first_and_live_changes_are_named(store):
    first, second = finished(store), finished(store)
    with store.database.write() as connection:
        connection.execute("UPDATE run SET ended = ended - 86400 WHERE id = ?", (first,))
    for name in ("mu", "beta", "mu"):
        store.add_change(second, "adam", 3, name, 0.5)
    assert [(one.run, one.setting) for one in measured(store)] == [
        (second, "quick; changed live: beta, mu"),
        (first, "quick"),
    ]


def test_kept_figures_are_listed_with_those_of_runs(store, nothing_kept):
    entry = {
        "row": ROW,
        "model": "resnet20_cifar10",
        "date": "2001-02-03",
        "config": QUICK.to_dict(),
        "full_precision": 92.1,
        "top1": {"adam": 90.0},
        "standard_error": {"adam": 0.6},
        "evaluated_on": "2,000 images",
    }
    nothing_kept.write_text(json.dumps({"runs": [entry], "comparisons": []}), encoding="utf-8")
    run_id = finished(store)
    newest, kept = measured(store)
    assert newest.run == run_id
    assert (kept.run, kept.when, kept.setting, kept.drop) == ("", "2001-02-03", "quick", {"adam": 2.1})


def test_committed_figures_match_their_row_and_config():
    for entry in paper_table.read_kept(ASSETS / "paper" / "measured.json")["runs"]:
        row, config = paper_table.paper_row(entry["row"]), RunConfig.from_dict(entry["config"])
        assert entry["model"] == config.model
        assert entry["model"] in row.networks
        assert row.bits in config.bits
        assert entry["top1"].keys() == entry["standard_error"].keys()
        assert all(0 < top1 < entry["full_precision"] + 1 for top1 in entry["top1"].values())
        assert entry["commands"]
        assert entry["versions"]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (QUICK, "quick"),
        (PRESETS["paper"], "paper"),
        (replace(QUICK, bits=(4,), methods=("adam",), lr_by_bits={**QUICK.lr_by_bits, 3: 0.5}).with_knobs({"encoder": ""}), "quick"),
        (QUICK.with_knobs({"threads": 1, "device": "cpu", "compile": True}), "quick"),
        (QUICK.with_knobs({"data": "cifar10"}), "quick"),
        (
            replace(QUICK, generation=replace(QUICK.generation, images=512, batch_size=64), steps_by_bits={4: 10}),
            "quick with images 512, batch_size 64, steps 10",
        ),
        (
            QUICK.with_knobs({"training_batch_size": 32, "alpha_ce": 1.0}),
            "quick with training_batch_size 32, alpha_ce 1",
        ),
    ],
)
def test_setting_is_the_nearest_preset_and_the_differences(config, words):
    assert paper_table.setting(config, 4) == words


def test_text_fits_the_terminal_and_names_rows_without_measurements(store):
    config = RunConfig(
        machine=MachineConfig(seed=4),
        generation=GenerationConfig(images=36, iterations=77, batch_size=64, snapshots=3, mu=0.3, epsilon=0.2, alpha_tv=0.1),
        training=TrainingConfig(range="mse", training_batch_size=3, alpha_ce=1.0, alpha_kd=0.5, temperature=3.0),
    )
    run_id = finished(store, config, {"accuracy/mi-fgsm/W4A4": {**FIGURES, "evaluated_on": f"9 images of /a\x1b[31m/{'deep/' * 40}"}})
    text = paper_table.as_text(paper_table.table(store))
    lines = text.splitlines()
    assert max(map(len, lines[:4])) <= paper_table.WIDTH
    assert text.count("not measured") == 11
    start = next(number for number, line in enumerate(lines) if line.startswith(ROW))
    assert lines[start].split() == [ROW, "93.89", "91.52", "89.66", "88.93", "92.13", "91.26", "90.25", "91.49", "91.63", "2.26"]
    assert lines[start + 1].startswith(
        "    mi-fgsm 90.85 ± 0.65 (drop 1.25), from 92.10 of resnet20_cifar10 (this project's weights, not the paper's);"
    )
    assert run_id in text
    assert "\x1b" not in text
    assert lines[0].split()[:2] == ["row", "full"]


def test_row_as_json_values(store):
    finished(store)
    rows = {row.name: paper_table.to_dict(row, of_row) for row, of_row in paper_table.table(store)}
    assert json.loads(json.dumps(rows[ROW])) == rows[ROW]
    assert rows[ROW]["paper"]["dffg"] == 91.63
    assert rows[ROW]["measured"][0]["drop"] == {"mi-fgsm": 1.25}
    assert rows["imagenet/resnet50/4"]["measured"] == []
    assert rows["imagenet/resnet50/4"]["paper"]["zeroq"] is None


def test_row_config_has_the_papers_weights_and_the_settings_of_the_preset():
    config = paper_table.row_config(ROW, QUICK)
    assert config.model == "pytorchcv:resnet20_cifar10"
    assert (config.bits, config.methods, config.evaluation.encoder) == ((4,), ("mi-fgsm", "adam"), "")
    assert paper_table.setting(config, 4) == "quick"
    assert paper_table.row_config(ROW, QUICK, "resnet20_cifar10").model == "resnet20_cifar10"
    assert config.evaluation.data == "auto"
    # the paper measures on all test images
    assert paper_table.row_config(ROW, PRESETS["paper"].with_knobs({"seed": 3})).evaluation.data == "cifar10"
    assert paper_table.row_config(ROW, PRESETS["paper"].with_knobs({"data": "embedded"})).evaluation.data == "embedded"
    config = paper_table.row_config("imagenet/resnet50/5", PRESETS["paper"], data="/images")
    assert (config.model, config.evaluation.data, config.bits) == ("pytorchcv:resnet50", "/images", (5,))


def test_row_config_measures_its_row(store):
    for row in paper_table.paper_rows():
        finished(store, paper_table.row_config(row.name, QUICK, data="/images"), {f"accuracy/adam/W{row.bits}A{row.bits}": FIGURES})
    assert [len(of_row) for _, of_row in paper_table.table(store)] == [1] * 12


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (("cifar10/resnet20/8", QUICK), UnknownNameError, "cifar10/resnet20/8"),
        ((ROW, QUICK, "pytorchcv:resnet18"), UnknownNameError, "must be one of pytorchcv:resnet20_cifar10, resnet20_cifar10"),
        (("imagenet/resnet18/4", QUICK), DataError, "imagenet/resnet18/4"),
        (("cifar100/resnet20/4", QUICK), DataError, "must be a folder of cifar100 images"),
    ],
)
def test_row_config_refuses(arguments, error, words):
    with pytest.raises(error, match=words) as caught:
        paper_table.row_config(*arguments)
    assert "must" in str(caught.value) or "allowed" in str(caught.value)
