"""Paths in stored runs follow the runs folder."""

import json
import os
import sqlite3
from contextlib import closing
from dataclasses import replace

import pytest
from run_stores import CONFIG

from core.layout import NETWORKS, UPLOADS
from core.runs.database import DATABASE
from core.runs.lists import RunFilter
from core.runs.places import RUNS, each_text, located, portable
from core.runs.store import RunStore

RUN = "20261128-163014-3e2699"
HASH = "0123456789abcdef" * 4


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "here" / "runs"
    (folder / RUN / "images").mkdir(parents=True)
    network = folder / UPLOADS / NETWORKS / f"{HASH}.pt2"
    network.parent.mkdir(parents=True)
    network.touch()
    network.with_suffix(".json").write_text(json.dumps({"label": "net (10 classes), imported from my network.pt2"}), encoding="utf-8")
    return folder


def test_paths_below_the_folder_are_relative_and_found_wherever_it_is(folder, tmp_path):
    for path in (folder, folder / RUN / "images", folder / ".hidden", folder / "a" / ".." / RUN / "images", folder / "not there.pt2"):
        stored = portable(str(path), folder)
        assert stored.startswith(RUNS)
        assert str(tmp_path) not in stored
        assert located(stored, folder) == os.path.normpath(path)
        assert located(stored, tmp_path) == os.path.normpath(path).replace(str(folder), str(tmp_path))


def test_a_path_through_a_link_is_below_the_folder(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    assert portable(str(tmp_path / "link" / RUN), folder) == f"{RUNS}{RUN}"
    assert portable(str(folder / RUN), tmp_path / "link") == f"{RUNS}{RUN}"


def test_a_path_below_an_earlier_place_of_the_folder_is_found_if_the_folder_has_the_file(folder):
    assert portable(f"/an/earlier/place/{RUN}/images", folder) == f"{RUNS}{RUN}/images"
    assert portable(f"/an/earlier/place/{UPLOADS}/{NETWORKS}/{HASH}.pt2", folder) == f"{RUNS}{UPLOADS}/{NETWORKS}/{HASH}.pt2"
    for path in (f"/an/earlier/place/{RUN}/gone", f"/an/{UPLOADS}/photos", "/an/earlier/place/images"):
        assert portable(path, folder) == path


def test_everything_else_is_stored_as_it_is(folder):
    for text in ("", "embedded", "timm:resnet18", f"{RUN}/images", "/elsewhere", f"{folder}-2/images", "\0", "/" + "x" * 5000):
        assert portable(text, folder) == text
        assert located(text, folder) == text
    assert each_text({"a": ["b", 1, None, {"a": "c"}]}, str.upper) == {"a": ["B", 1, None, {"a": "C"}]}


def placed(folder):
    return replace(
        CONFIG,
        model=str(folder / UPLOADS / NETWORKS / f"{HASH}.pt2"),
        evaluation=replace(CONFIG.evaluation, data=str(folder / UPLOADS)),
        images_from=str(folder / RUN / "images"),
    )


def test_a_store_that_was_moved_has_its_paths_in_the_new_place(folder, tmp_path):
    store = RunStore(folder)
    run_id = store.create(placed(folder), "a name", out=str(folder / "out"))
    store.close()
    with closing(sqlite3.connect(folder / DATABASE)) as connection:
        assert not [line for line in connection.iterdump() if str(tmp_path) in line]
    moved = tmp_path / "there"
    folder.rename(moved)
    store = RunStore(moved)
    run = store.run(run_id)
    assert run.config == store.config(run_id) == placed(moved)
    assert run.out == str(moved / "out")
    assert store.images_folder(run) == moved / RUN / "images"
    for which in (
        RunFilter(model=run.config.model),
        RunFilter(data=[run.config.evaluation.data]),
        RunFilter(images=moved / RUN / "images"),
    ):
        assert [one.id for one in store.runs(which)] == [run_id]
    store.close()


def test_runs_of_earlier_versions_are_found_in_a_moved_folder_and_named_by_their_file(folder, tmp_path):
    """Version 5 stored absolute paths, and names with the hash of a network."""
    store = RunStore(folder)
    run_id = store.create(placed(folder), "a name")
    store.close()
    old, name = tmp_path / "an earlier place", f"{HASH}.pt2, Adam, W4A4"
    with closing(sqlite3.connect(folder / DATABASE)) as connection, connection:
        connection.execute("DROP INDEX run_by_parent")
        for column in ("network", "parent", "branch_at", "planned"):
            connection.execute(f"ALTER TABLE run DROP COLUMN {column}")
        columns = (json.dumps(placed(old).to_dict()), placed(old).model, name, str(old / "20261128-163014-3e2699" / "images"))
        connection.execute("UPDATE run SET config = ?, model = ?, name = ?, out = ?", columns)
        connection.execute("PRAGMA user_version = 5")
    store = RunStore(folder)
    run = store.run(run_id)
    assert run.config == placed(folder)
    assert run.out == str(folder / RUN / "images")
    assert (run.network, run.name) == ("my network.pt2", "my network.pt2, Adam, W4A4")
    assert [one.id for one in store.runs(RunFilter(model=run.config.model, words="my network"))] == [run_id]
    store.close()
