"""Records, live changes and results."""

import sqlite3

import numpy as np
import pytest
from run_stores import CONFIG, created

from core.errors import RunError
from core.runs.records import Records


def test_nothing_is_stored_for_an_unknown_run(store):
    with pytest.raises((RunError, sqlite3.IntegrityError)):
        store.append("nobody", "generation", "adam", 1, {"total": 1.0})
    assert store.records("nobody", "generation") == []


def test_records_are_in_the_order_of_writing(store):
    run_id, other = created(store), created(store)
    written = [(method, step) for step in (3, 1, 2, 2) for method in ("mi-fgsm", "adam")]
    for method, step in written:
        store.append(run_id, "generation", method, step, {"total": step / 3, "layers": [1.5, 2.5]})
    store.append(run_id, "training", "adam W4A4", 1, {"ce": 0.5})
    store.append(other, "generation", "adam", 99, {})
    records = store.records(run_id, "generation")
    assert [(record.series, record.step) for record in records] == written
    assert [record.id for record in records] == sorted({record.id for record in records})
    assert records[0].data == {"total": 1.0, "layers": [1.5, 2.5]}
    assert records[2].data["total"] == 1 / 3  # bit for bit
    assert [record.data for record in store.records(run_id, "training")] == [{"ce": 0.5}]


def test_records_after_an_id(store):
    run_id = created(store)
    for step in range(5):
        store.append(run_id, "generation", "adam", step, {})
    records = store.records(run_id, "generation")
    assert store.records(run_id, "generation", after=records[2].id) == records[3:]
    assert store.records(run_id, "generation", after=records[-1].id) == []


def test_returned_values_are_copies(store):
    run_id = created(store)
    store.append(run_id, "generation", "adam", 1, {"total": 1.0})
    store.set_result(run_id, "a", {"b": [1]})
    store.add_change(run_id, "adam", 1, "lr", 0.5)
    store.records(run_id, "generation")[0].data["total"] = 2.0
    store.results(run_id)["a"]["b"].append(2)
    store.changes(run_id).clear()
    assert store.records(run_id, "generation")[0].data == {"total": 1.0}
    assert store.results(run_id) == {"a": {"b": [1]}}
    assert len(store.changes(run_id)) == 1


def test_changes_are_in_the_order_of_writing(store):
    run_id, other = created(store), created(store)
    store.add_change(run_id, "mi-fgsm", 7, "mu", 0.1)
    store.add_change(run_id, "adam", 3, "lr", 0.25)
    store.add_change(other, "adam", 1, "lr", 0.5)
    assert store.changes(run_id) == [
        {"method": "mi-fgsm", "step": 7, "name": "mu", "value": 0.1},
        {"method": "adam", "step": 3, "name": "lr", "value": 0.25},
    ]


def test_later_result_replaces_the_earlier(store):
    run_id = created(store)
    store.set_result(run_id, "b", 1)
    store.set_result(run_id, "a", {"x": None})
    store.set_result(run_id, "b", [2.5, "ε"])
    assert store.results(run_id) == {"a": {"x": None}, "b": [2.5, "ε"]}
    assert list(store.results(run_id)) == store.result_names(run_id) == ["a", "b"]


def test_curves_have_the_numbers_of_the_records(store):
    run_id = created(store)
    for step in range(1, 4):
        for method in ("mi-fgsm", "adam"):
            store.append(run_id, "generation", method, step, {"total": step / 3, "layers": [1.0, 2.0], "seconds": step * 0.1})
    store.append(run_id, "generation", "adam", 4, {"total": float("nan"), "other": 5})
    last, curves = store.curves(run_id, "generation")
    records = store.records(run_id, "generation")
    assert last == records[-1].id
    assert list(curves) == ["mi-fgsm", "adam"]
    assert set(curves["mi-fgsm"]) == {"step", "total", "seconds"}
    assert curves["mi-fgsm"]["total"].tolist() == [1 / 3, 2 / 3, 1.0]
    assert curves["adam"]["step"].tolist() == [1, 2, 3, 4]
    np.testing.assert_array_equal(curves["adam"]["total"], [1 / 3, 2 / 3, 1.0, np.nan])
    np.testing.assert_array_equal(curves["adam"]["other"], [np.nan, np.nan, np.nan, 5])
    assert store.curves(run_id, "generation", after=records[-2].id)[1]["adam"]["step"].tolist() == [4]
    assert store.curves(run_id, "generation", after=last) == (last, {})
    assert store.curves(run_id, "training") == (0, {})


def test_selected_results_of_several_runs(store):
    first, second = created(store), created(store)
    store.set_result(first, "full_precision", {"top1": 92.5})
    store.set_result(first, "accuracy/adam/W4A4", {"quantized": 90.0})
    store.set_result(first, "accuracy_of_another_kind", 1)
    store.set_result(first, "diversity/adam", {"matrix": [1]})
    store.set_result(second, "accuracy/adam/W4A4", {"quantized": 91.0})
    assert store.results_of([first, second, "nobody"], ["full_precision", "accuracy"]) == {
        first: {"full_precision": {"top1": 92.5}, "accuracy/adam/W4A4": {"quantized": 90.0}},
        second: {"accuracy/adam/W4A4": {"quantized": 91.0}},
    }
    assert store.results_of([second], ["accuracy"]) == {second: {"accuracy/adam/W4A4": {"quantized": 91.0}}}
    assert store.results_of([first], ["nothing"]) == {}


def test_planned_changes_end_where_somebody_set_the_knob(store):
    """An attempt makes what earlier attempts made, and then what was planned unless the knob was set otherwise."""
    planned = [
        {"method": method, "step": step, "name": name, "value": value}
        for method, step, name, value in (("adam", 2, "lr", 0.2), ("adam", 9, "lr", 0.3), ("adam", 8, "beta", 2.0), ("dsg", 9, "lr", 1.0))
    ]
    run_id = store.create(CONFIG, "", changes=planned)
    records = Records(store.database)
    assert store.changes(run_id) == []
    assert records.past(run_id) == planned
    store.add_change(run_id, "adam", 2, "lr", 0.2)  # as planned
    assert sorted(map(str, records.past(run_id))) == sorted(map(str, planned))
    store.add_change(run_id, "adam", 5, "lr", 0.9)  # by somebody
    expected = [planned[2], planned[3], planned[0], {"method": "adam", "step": 5, "name": "lr", "value": 0.9}]
    assert records.past(run_id) == expected
