import json

import pytest

from benchmarks import paper
from core.config import PRESETS, RunConfig
from core.errors import RunError
from core.runs.paper_table import read_kept
from core.runs.state import RunState
from core.runs.store import RunStore


@pytest.fixture
def store(tmp_path):
    store = RunStore(tmp_path / "runs")
    yield store
    store.close()


def finished(store, top1=90.85):
    run_id = store.create(PRESETS["quick"], "a run")
    figures = {"full_precision": 92.1, "quantized": top1, "standard_error": 0.645, "evaluated_on": "2,000 images"}
    store.set_result(run_id, "accuracy/mi-fgsm/W4A4", figures)
    store.set_state(run_id, RunState.COMPLETE)
    return run_id


def test_measurements_are_kept_and_replaced(store, tmp_path):
    path = tmp_path / "measured.json"
    path.write_text('{"runs": [], "comparisons": []}', encoding="utf-8")
    paper.keep(paper.entries(store, finished(store)), path)
    other = {**read_kept(path)["runs"][0], "row": "cifar10/resnet20/3"}
    paper.keep([other], path)
    paper.keep(paper.entries(store, finished(store, 91.0)), path)
    kept = json.loads(path.read_text(encoding="utf-8"))["runs"]
    assert [(entry["row"], entry["top1"]) for entry in kept] == [
        ("cifar10/resnet20/3", {"mi-fgsm": 90.85}),
        ("cifar10/resnet20/4", {"mi-fgsm": 91.0}),
    ]
    entry = kept[1]
    assert (entry["model"], entry["full_precision"], entry["standard_error"]) == ("resnet20_cifar10", 92.1, {"mi-fgsm": 0.645})
    assert entry["commands"] == ["python -m core run --preset quick"]
    assert RunConfig.from_dict(entry["config"]).to_dict() == PRESETS["quick"].to_dict()
    assert entry["versions"]["torch"]


def test_run_without_measurements_is_refused(store):
    run_id = store.create(PRESETS["quick"], "a run")
    with pytest.raises(RunError, match="measured no row"):
        paper.entries(store, run_id)


def test_run_with_live_changes_is_refused(store):
    run_id = finished(store)
    store.add_change(run_id, "adam", 3, "beta", 0.5)
    with pytest.raises(RunError, match="changed while it ran"):
        paper.entries(store, run_id)
