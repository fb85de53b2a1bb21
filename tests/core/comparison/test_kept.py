"""Comparisons kept with the program: what is written of runs comes back as the table that the runs give."""

import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import comparison
from core.comparison import kept
from core.comparison.cells import found
from core.comparison.table import rows
from core.config import PRESETS
from core.errors import RunError
from core.evaluation.hits import packed
from core.runs import paper_table
from core.runs.state import RunState
from core.runs.store import RunStore

IMAGES = 2000


@pytest.fixture
def store(tmp_path):
    store = RunStore(tmp_path / "runs")
    yield store
    store.close()


@pytest.fixture(autouse=True)
def file(tmp_path, monkeypatch):
    path = tmp_path / "measured.json"
    path.write_text('{"runs": [], "comparisons": []}', encoding="utf-8")
    monkeypatch.setattr(paper_table, "MEASURED", path)
    return path


def complete(store, folder, method, seed, top1):
    """A complete run of one method and seed at W4A4, evaluated on a folder of this machine."""
    config = replace(PRESETS["quick"], methods=(method,), bits=(4,)).with_knobs({"seed": seed, "data": str(folder), "threads": 1})
    run_id = store.create(config, "a run")
    figures = {
        "quantized": top1,
        "trained": top1,
        "full_precision": 92.0,
        "standard_error": 0.6,
        "training_seconds": 60.0,
        "evaluated_on": f"2,000 images of {folder}",
    }
    store.set_result(run_id, f"accuracy/{method}/W4A4", figures)
    store.set_result(run_id, f"generation/{method}", {"seconds": 40.0})
    store.set_result(run_id, f"hits/{method}/W4A4", packed(np.arange(IMAGES) < IMAGES * top1 / 100))
    store.set_state(run_id, RunState.COMPLETE)
    return run_id


@pytest.fixture
def run(store, tmp_path):
    """Two methods, two seeds; the id of one of the runs."""
    complete(store, tmp_path / "images", "zeroq", 0, 88.0)
    complete(store, tmp_path / "images", "zeroq", 1, 88.5)
    complete(store, tmp_path / "images", "mi-fgsm", 1, 90.0)
    return complete(store, tmp_path / "images", "mi-fgsm", 0, 91.0)


def test_kept_comparison_is_the_table_of_its_runs(store, run, file):
    comparison.keep(kept.entry(store, run, "both") | {"date": "2001-02-03", "processor": "a processor"}, file)
    (read,) = kept.kept()
    expected = rows(store, found(store, store.config(run)))
    assert [replace(row, runs=(), evaluated_on="2,000 images of images") for row in expected] == list(read.rows)
    assert [(row.method, row.drop, row.spread) for row in read.rows] == [("mi-fgsm", 1.5, 0.707), ("zeroq", 3.75, 0.354)]
    assert read.command == ("python -m core compare --seeds 0 1 --preset quick --methods mi-fgsm zeroq --bits 4 --threads 1 --data images")


def test_entry_names_no_folder_of_this_machine(store, run, tmp_path):
    assert str(tmp_path) not in json.dumps(kept.entry(store, run, "both"))


def test_same_title_replaces(store, run, file):
    for date in ("2001-02-03", "2001-02-04"):
        comparison.keep(kept.entry(store, run, "both") | {"date": date, "processor": "a processor"}, file)
    assert [one.date for one in kept.kept()] == ["2001-02-04"]


def test_run_without_a_measurement_is_refused(store):
    with pytest.raises(RunError, match="without a complete run"):
        kept.entry(store, store.create(PRESETS["quick"], "a run"), "none")


def test_paper_table_shows_mean_and_spread_of_the_seeds(store, run, file):
    comparison.keep(kept.entry(store, run, "both") | {"date": "2001-02-03", "processor": "a processor"}, file)
    measured = {row.name: of_row for row, of_row in paper_table.table(RunStore(store.folder.parent / "none"))}
    (one,) = measured["cifar10/resnet20/4"]
    assert (one.top1, one.standard_error) == ({"mi-fgsm": 90.5, "zeroq": 88.25}, {"mi-fgsm": 0.707, "zeroq": 0.354})
    assert one.setting.endswith("mean and standard deviation of 2 seeds, last training step")
    assert not measured["cifar10/resnet20/3"]


def test_markdown_has_a_line_for_each_method(store, run, file):
    comparison.keep(kept.entry(store, run, "both") | {"date": "2001-02-03", "processor": "a processor"}, file)
    lines = comparison.as_markdown(kept.kept()[0]).splitlines()
    assert lines[0] == "both; 2,000 images of images; full precision 92; 2001-02-03."
    assert [line for line in lines if line.startswith("| ") and "drop" not in line] == [
        "| MI-FGSM | 1.50 ± 0.71 = | 2.26 |  | 40 | 60 | 2 |",
        "| ZeroQ | 3.75 ± 0.35 | 4.23 |  | 40 | 60 | 2 |",
    ]
