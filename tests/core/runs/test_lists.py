"""Filters, orders and counts of runs."""

import json
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from run_stores import CONFIG, created

from core.config import GenerationConfig, RunConfig, TrainingConfig
from core.errors import UnknownNameError
from core.runs.database import DATABASE
from core.runs.lists import RunFilter
from core.runs.state import RunState
from core.runs.store import RunStore


def made(store, name="", config=CONFIG, state=RunState.COMPLETE) -> str:
    run_id = store.create(config, name)
    if state is not RunState.QUEUED:
        store.set_state(run_id, state)
    return run_id


def ids(store, **wanted):
    found = [run.id for run in store.runs(RunFilter(**wanted))]
    assert store.lists.count(RunFilter(**wanted)) == len(found)
    return found


def test_words_are_found_in_name_note_tags_and_network(store):
    first, second = made(store, "Über ALLES"), made(store, "other", replace(CONFIG, model="pytorchcv:resnet18"))
    store.set_note(second, "looks Good")
    store.set_tags(second, ["série 1", "100%_sure"])
    assert ids(store, words="über") == ids(store, words="ÜBER alles") == [first]
    assert ids(store, words="good SÉRIE resnet18") == [second]
    assert ids(store, words="100%_") == [second]  # no patterns
    assert ids(store, words="o_her") == ids(store, words="good über") == []
    assert ids(store, words=" ") == [second, first]


def test_states_tags_and_ids(store):
    failed, complete, queued = made(store, state=RunState.FAILED), made(store), made(store, state=RunState.QUEUED)
    store.set_tags(failed, ["one", "two"])
    store.set_tags(complete, ["two", "on"])
    assert ids(store, states=[RunState.FAILED, "queued"]) == [queued, failed]
    assert ids(store, tags=["two"]) == [complete, failed]
    assert ids(store, tags=["one", "two"]) == [failed]
    assert ids(store, active=True) == [queued]
    assert ids(store, ids=[failed, "nobody", queued], without=queued) == [failed]
    assert ids(store, ids=[]) == []
    assert store.lists.tags() == ["on", "one", "two"]
    assert store.lists.states() == [RunState.QUEUED, RunState.COMPLETE, RunState.FAILED]
    store.trash.put(complete)
    assert ids(store) == [queued, failed]
    assert store.lists.tags() == ["one", "two"]
    assert RunState.COMPLETE not in store.lists.states()


def test_runs_with_images_are_those_that_made_them_were_given_them_or_are_active(store, tmp_path):
    made(store, state=RunState.FAILED)
    with_images, active = made(store), made(store, state=RunState.QUEUED)
    store.set_result(with_images, "generation/adam", {})
    given = made(store, config=replace(CONFIG, images_from=str(tmp_path)))
    assert ids(store, has_images=True) == [given, active, with_images]
    assert given not in ids(store, generates=True)
    assert len(ids(store, generates=True)) == 3


def test_runs_on_the_same_images(store, tmp_path):
    first, other = made(store), made(store)
    folder = store.images_folder(store.run(first))
    again = made(store, config=replace(CONFIG, images_from=f"{folder}/"))
    made(store, config=replace(CONFIG, images_from=str(tmp_path)))
    assert ids(store, images=folder) == [again, first]
    assert ids(store, images=store.images_folder(store.run(other))) == [other]
    assert ids(store, images=tmp_path / first / "images") == []


def test_runs_with_a_network_methods_and_widths(store):
    plain = made(store, config=replace(CONFIG, bits=(3, 4)))
    wide = made(store, config=replace(CONFIG, bits=(4,), training=TrainingConfig(activation_bits=8)))
    mixed = made(store, config=replace(CONFIG, bits=(4,), training=TrainingConfig(layer_bits=(("conv", 8),)), model="pytorchcv:resnet18"))
    only_images = made(store, config=replace(CONFIG, bits=(), methods=("adam",)))
    assert ids(store, width="W4A4") == [mixed, plain]
    assert ids(store, width="W4A4", one_width=True) == [plain]
    assert ids(store, widths=["W4A8"]) == [wide]
    assert ids(store, quantizes=True) == [mixed, wide, plain]
    assert ids(store, methods=["adam"]) == [only_images]
    assert ids(store, model="pytorchcv:resnet18", data=[CONFIG.evaluation.data, "other"]) == [mixed]
    assert ids(store, model="pytorchcv:resnet18", data=["other"]) == []


def test_orders_and_parts(store):
    names = ["b", "A", "c"]
    by_name = {name: made(store, name) for name in names}
    for name, top1 in (("A", 80.0), ("c", 90.0)):
        store.set_result(by_name[name], "accuracy/adam/W4A4", {"quantized": top1})
    # the first method counts
    store.set_result(by_name["A"], "accuracy/mi-fgsm/W4A4", {"quantized": 95.0})
    store.set_result(by_name["c"], "accuracy/mi-fgsm/W4A4", {"calibrated": 99.0})
    store.set_result(by_name["b"], "full_precision", {"top1": 92.0})

    def sorted_by(order, **part):
        return [run.name for run in store.runs(order=order, **part)]

    assert store.lists.orders()[0] == "newest first"
    assert store.lists.orders()[-1] == "W4A4"
    assert sorted_by("newest first") == ["c", "A", "b"]
    assert sorted_by("oldest first") == names
    assert sorted_by("name") == ["A", "b", "c"]
    assert sorted_by("W4A4") == ["A", "c", "b"]
    assert sorted_by("full precision") == ["b", "c", "A"]
    assert sorted_by("state") == ["c", "A", "b"]  # equal, so by time
    assert sorted_by("name", most=1, skip=1) == ["b"]
    assert sorted_by("name", most=2, skip=2) == ["c"]
    with pytest.raises(UnknownNameError, match="order"):
        store.runs(order="name; DROP TABLE run")


def test_runs_of_the_version_before_are_found_by_their_settings(tmp_path):
    """Its rows have no columns for the settings."""
    store = RunStore(tmp_path)
    run_id = made(store, config=RunConfig(generation=GenerationConfig(images=8, snapshots=2), bits=(4,)))
    unreadable = created(store)
    store.close()
    with sqlite3.connect(tmp_path / DATABASE) as connection:
        for index in ("by_time", "by_state", "by_model", "by_images", "in_trash", "deleted", "by_parent"):
            connection.execute(f"DROP INDEX run_{index}")
        connection.execute("DROP INDEX result_by_name")
        for column in ("model", "data", "images_from", "methods", "widths", "mixed", "network", "parent", "branch_at", "planned"):
            connection.execute(f"ALTER TABLE run DROP COLUMN {column}")
        connection.execute("UPDATE run SET config = ? WHERE id = ?", (json.dumps({"new": 1}), unreadable))
        connection.execute("PRAGMA user_version = 4")
    store = RunStore(tmp_path)
    assert ids(store, model="resnet20_cifar10", data=[CONFIG.evaluation.data], width="W4A4", one_width=True) == [run_id]
    assert ids(store) == [unreadable, run_id]
    store.close()


def test_lists_that_pages_ask_for_use_an_index(store):
    """Sorting, or looking at every run, takes longer the more runs there are."""
    with store.database.read() as connection:
        others = RunFilter(model="a", data=["b", "c"]), RunFilter(ids=["x"]), RunFilter(generates=True)
        for which in (RunFilter(), RunFilter(active=True), *others):
            condition, values = which.condition(Path(store.folder))
            statement = f"EXPLAIN QUERY PLAN SELECT * FROM run WHERE {condition} ORDER BY created DESC, id DESC LIMIT 5"
            plan = [row["detail"] for row in connection.execute(statement, values)]
            assert any("USING INDEX" in step for step in plan), plan
            if not which.active and which.ids is None:  # few runs
                assert not any("TEMP B-TREE" in step for step in plan), plan
