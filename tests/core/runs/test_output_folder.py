"""Results are exported to --out completely or not at all."""

import errno
import os
import shutil

import pytest

from core.config import RunConfig
from core.errors import DataError
from core.files import temporary_copy_path
from core.runs import output_folder
from core.runs.output_folder import export_results
from core.runs.store import RunStore

CONTENT = {
    "result.json": "{}",
    "images/adam/manifest.json": "[1]",
    "quantized/adam/W4A4/quantize.json": "[2]",
    "frames/adam/latest.npz": "picture",
    "checkpoint/done.json": "{}",
    "images/frames/kept.txt": "a method of that name is no picture",
}
RESULTS = {name: text for name, text in CONTENT.items() if not name.startswith(("frames/", "checkpoint/"))}


@pytest.fixture
def store(tmp_path):
    store = RunStore(tmp_path / "runs")
    yield store
    store.close()


@pytest.fixture
def out(tmp_path):
    return tmp_path / "deep" / "out"


def a_run(store, out, part=""):
    run = store.run(store.create(RunConfig(), "", out=str(out), output_subset=part))
    for name, text in CONTENT.items():
        path = store.run_folder(run.id) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return run


def content(folder) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text(encoding="utf-8") for path in folder.rglob("*") if path.is_file()}


def test_only_results_are_exported(store, out):
    export_results(store, a_run(store, out))
    assert content(out) == RESULTS
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_subset_of_the_results(store, out):
    export_results(store, a_run(store, out, "images/adam"))
    assert content(out) == {"manifest.json": "[1]"}


def test_run_without_out_exports_nothing(store, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    run = a_run(store, "")
    export_results(store, run)
    assert {path for path in set(tmp_path.rglob("*")) - set(before) if store.run_folder(run.id) not in [path, *path.parents]} <= {
        store.folder / name for name in os.listdir(store.folder)
    }


def test_empty_folder_is_filled(store, out):
    out.mkdir(parents=True)
    export_results(store, a_run(store, out))
    assert content(out) == RESULTS


@pytest.mark.parametrize("name", ["other.txt", "result.json"])
def test_folder_with_other_files_is_refused_and_unchanged(store, out, name):
    out.mkdir(parents=True)
    (out / name).write_text("mine", encoding="utf-8")
    with pytest.raises(DataError, match="already exists"):
        export_results(store, a_run(store, out))
    assert content(out) == {name: "mine"}
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_complete_copy_is_accepted(store, out):
    """A run was killed between the copy and being marked complete."""
    run = a_run(store, out)
    export_results(store, run)
    before = (out / "result.json").stat().st_ino
    export_results(store, run)
    assert (out / "result.json").stat().st_ino == before


@pytest.mark.parametrize("change", ["missing", "more", "different"])
def test_copy_that_differs_is_refused(store, out, change):
    run = a_run(store, out)
    export_results(store, run)
    if change == "missing":
        (out / "result.json").unlink()
    else:
        (out / ("more.txt" if change == "more" else "result.json")).write_text("[]", encoding="utf-8")
    with pytest.raises(DataError, match="already exists"):
        export_results(store, run)


def test_partial_copy_of_a_killed_run_is_replaced(store, out):
    run = a_run(store, out)
    left = temporary_copy_path(out, run.id)
    left.mkdir(parents=True)
    (left / "stale.txt").write_text("half", encoding="utf-8")
    export_results(store, run)
    assert content(out) == RESULTS
    assert not left.exists()


@pytest.mark.parametrize("operation", ["copytree", "copyfile", "fsync", "rename", "interrupt"])
def test_failed_copy_leaves_no_files(store, out, monkeypatch, operation):
    run = a_run(store, out)

    def fails(*_, **__):
        raise KeyboardInterrupt if operation == "interrupt" else OSError(errno.ENOSPC, "No space left on device")

    if operation in ("copytree", "interrupt"):
        monkeypatch.setattr(shutil, "copytree", fails)
    elif operation == "copyfile":
        monkeypatch.setattr(shutil, "copyfile", fails)
    elif operation == "rename":
        monkeypatch.setattr(output_folder.Path, "rename", fails)
    else:
        monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(KeyboardInterrupt if operation == "interrupt" else DataError) as caught:
        export_results(store, run)
    if operation != "interrupt":
        assert f"{str(out)!r} (" in str(caught.value)
        assert "No space left on device" in str(caught.value)
        assert "must be a writable folder with enough space" in str(caught.value)
    assert not out.parent.exists()  # its parents are removed too
    monkeypatch.undo()
    export_results(store, run)
    assert content(out) == RESULTS
