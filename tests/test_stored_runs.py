"""Runs stored by an earlier version can be opened, resumed, exported and shown. (tests/data/make_runs.py made them.)

These tests name only what is stored and what a user calls: the command line, the pages, the store. Counts, labels and states are compared
exactly, pixels within a tolerance, because processors round differently.
"""

import json
import re
import shutil
import sqlite3
from pathlib import Path

import pytest
import torch
from app_pages import tables
from safetensors.torch import load_file
from streamlit.testing.v1 import AppTest

from core.__main__ import main
from core.config import PRESETS, RunConfig
from core.runs.database import DATABASE
from core.runs.store import RUNS_VARIABLE, RunStore
from dashboard import session
from dashboard.downloads import report

DATA = Path(__file__).parent / "data" / "runs_of_version_1"
PAGES = Path(__file__).parents[1] / "dashboard" / "pages"
PLACEHOLDER = "@RUNS@"  # stands for the runs folder in the stored files
EXPECTED = json.loads((DATA / "expected.json").read_text(encoding="utf-8"))
STATES = {
    "killed in generation": "interrupted",
    "complete": "complete",
    "stopped in training": "stopped",
    "live changes": "complete",
    "layer widths": "complete",
    "embedded network": "complete",
    "given images of both": "complete",
    "given images": "complete",
}
RUNS = list(STATES)
FLAGS = json.loads((DATA / "flags.json").read_text(encoding="utf-8"))
# the last step of each stage in the resume state; steps up to it must not be computed again
CHECKPOINTS = {"killed in generation": {"generation": 6}, "stopped in training": {"generation": 4, "training": 2}}
CONFIGS = sorted((DATA / "configs").glob("*.json"))


def copy_to(folder: Path, place: str = "") -> Path:
    """Copies the stored runs to `folder`. place: where the paths in their settings point; default: there."""
    place = place or str(folder)
    shutil.copytree(DATA / "runs", folder)
    connection = sqlite3.connect(folder / DATABASE)
    for table, column in (("run", "config"), ("run", "name"), ("result", "data"), ("record", "data")):
        connection.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (PLACEHOLDER, place))
    connection.commit()
    connection.close()
    for path in folder.rglob("*.json"):
        path.write_text(path.read_text(encoding="utf-8").replace(PLACEHOLDER, place), encoding="utf-8")
    return folder


@pytest.fixture
def folder(tmp_path):
    """A copy of the stored runs for one test."""
    return copy_to(tmp_path / "runs")


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A copy for tests that only read it: its folder, and run name -> id."""
    folder = copy_to(tmp_path_factory.mktemp("stored") / "runs")
    store = RunStore(folder)
    ids = {run.name: run.id for run in store.runs()}
    store.close()
    return folder, ids


@pytest.fixture(scope="module")
def server(shared, runs_in_threads):
    """Run name -> id in the shared copy, which the pages show."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(RUNS_VARIABLE, str(shared[0]))
        session.manager.clear()
        yield shared[1]
        session.manager().close()
        session.manager.clear()


def command(capsys, *arguments) -> dict:
    """The output of a command with --json."""
    code = main([*map(str, arguments), "--json"])
    output = capsys.readouterr()
    assert code == 0, output.err
    return json.loads(output.out.strip().splitlines()[-1])


def leaves(values: dict) -> dict[str, list]:
    """Name -> its values in all sections of nested settings."""
    found: dict[str, list] = {}
    for name, value in values.items():
        inner = leaves(value) if isinstance(value, dict) and not name.endswith(("_bits", "by_bits")) else {name: [value]}
        for key, more in inner.items():
            found.setdefault(key, []).extend(more)
    return found


def test_every_stored_run_keeps_its_state_note_tags_and_pin(folder):
    store = RunStore(folder)
    runs = {run.name: run for run in store.runs()}
    assert {name: str(run.state) for name, run in runs.items()} == STATES
    assert [name for name, run in runs.items() if run.error and STATES[name] == "complete"] == []
    complete = runs["complete"]
    assert (complete.note, complete.tags, complete.pinned) == ("A note of two lines,\nwith *stars*.", ("first", "small network"), True)
    for run in runs.values():
        assert store.config(run.id) == run.config
    assert {run.config.images_from != "" for name, run in runs.items() if name.startswith("given images")} == {True}
    store.close()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_stored_settings_are_read_with_their_values(path):
    stored = json.loads(path.read_text(encoding="utf-8"))
    config = RunConfig.from_dict(stored)
    written = json.loads(json.dumps(config.to_dict()))
    assert RunConfig.from_dict(written) == config
    before, now = leaves(stored), leaves(written)
    same = [name for name in now if name in before]
    assert {name: now[name] for name in same if not all(value in before[name] for value in now[name])} == {}
    assert len(same) >= 35  # of 47 names: most knobs keep their names


@pytest.mark.parametrize("name", ["quick", "imagenet", "paper"])
def test_stored_presets_are_still_the_presets(name):
    stored = RunConfig.from_dict(json.loads((DATA / "configs" / f"preset_{name}.json").read_text(encoding="utf-8")))
    before = {"keep": "trained", "bns_form": "norms", "correct_statistics": False}  # what all versions before these knobs did
    if name != "paper":
        before |= {"mu": 0.9, "max_shift": 2, "flip": True}  # the defaults before "divergence"
    if name == "imagenet":
        before |= {"beta": 100.0, "iterations": 60}  # as "norms" needs; half as many as now
    # the defaults before "auto"
    before["data"] = "cifar10" if name == "paper" else "embedded"
    assert stored == PRESETS[name].with_knobs(before)


@pytest.mark.parametrize("name", sorted(FLAGS.keys() - {"runs", "list"}))  # these two reject nothing
def test_a_command_accepts_all_its_earlier_flags(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    # an unknown flag would raise SystemExit; these flags are accepted, then fail because their paths do not exist
    assert main([name, *FLAGS[name]]) == 2
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.parametrize("name", list(EXPECTED))
def test_an_unfinished_run_is_resumed_and_completes(folder, capsys, name):
    listed = command(capsys, "runs", "--runs", folder)["runs"]
    (run_id,) = [run["id"] for run in listed if run["name"] == name and run["resumable"]]
    store = RunStore(folder)
    before = {record.id for stage, last in CHECKPOINTS[name].items() for record in store.records(run_id, stage) if record.step <= last}
    store.close()
    result = command(capsys, "resume", run_id, "--runs", folder)
    store, expected = RunStore(folder), EXPECTED[name]
    run = store.run(run_id)
    assert (str(run.state), run.error, run.attempt) == ("complete", "", 2)
    kept = {record.id for stage in CHECKPOINTS[name] for record in store.records(run_id, stage)}
    assert before <= kept
    assert before
    for stage, steps in expected["steps"].items():
        assert sorted(record.step for record in store.records(run_id, stage)) == sorted(step for _, step in steps)
    home = store.run_folder(run_id)
    store.close()
    made = {path.parent.name: load_file(path) for path in home.rglob("images.safetensors")}
    assert made.keys() == expected["labels"].keys()
    pixels = load_file(DATA / "expected.safetensors")
    for method, tensors in made.items():
        assert tensors["labels"].tolist() == expected["labels"][method]
        assert tensors["images"].shape == pixels[f"{name}/{method}"].shape
        difference = (tensors["images"].int() - pixels[f"{name}/{method}"].int()).abs()
        assert (difference > 2).float().mean() <= 0.01
    networks = [str(path) for path in expected["sha256"] if path.endswith("quantized.safetensors")]
    assert len(list(home.rglob("quantized.safetensors"))) == len(networks)
    # version 1 called the methods optimizers; the printed result has both names
    assert (
        result.keys() - {"run"}
        == {*expected["result"], "methods"}
        == {*json.loads((home / "result.json").read_text(encoding="utf-8")), "optimizers"}
    )
    for method, figures in expected["result"]["optimizers"].items():
        assert result["optimizers"][method].keys() == figures.keys()
        for bits, accuracy in figures.get("accuracy", {}).items():
            again = result["optimizers"][method]["accuracy"][bits]
            assert again["steps"] == accuracy["steps"]
            assert again["full_precision"] == pytest.approx(accuracy["full_precision"], abs=0.5)
            assert again["quantized"] == pytest.approx(accuracy["quantized"], abs=2.0)
        if "diversity" in figures:
            again = result["optimizers"][method]["diversity"]["mean_similarity"]
            assert again == pytest.approx(figures["diversity"]["mean_similarity"], abs=0.02)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("complete", ("--format", "packed", "--method", "adam", "--bits", "3")),
        ("layer widths", ("--format", "packed")),
        ("given images", ("--format", "packed")),
    ],
)
def test_a_saved_network_gives_the_same_scores_after_export(shared, capsys, tmp_path, name, options):
    folder, ids = shared
    out = tmp_path / "network.safetensors"
    figures = command(capsys, "export", ids[name], *options, "--out", out, "--runs", folder)
    assert figures["max_output_difference"] < 1e-4
    assert abs(figures["file_accuracy"] - figures["torch_accuracy"]) <= 0.1
    assert out.stat().st_size == figures["bytes"]


@pytest.mark.parametrize("name", ["complete", "live changes", "layer widths", "given images", "embedded network"])
def test_a_model_card_is_written_for_a_stored_run(shared, capsys, tmp_path, name):
    folder, ids = shared
    command(capsys, "export", ids[name], "--format", "card", "--out", tmp_path / "card", "--runs", folder)
    (card,) = (tmp_path / "card").glob("*.md")
    assert name in card.read_text(encoding="utf-8")


def test_stored_images_are_exported_as_png(shared, capsys, tmp_path):
    folder, ids = shared
    command(capsys, "export", ids["complete"], "--format", "png", "--method", "adam", "--out", tmp_path / "images", "--runs", folder)
    assert len(list((tmp_path / "images").rglob("*.png"))) == 8


def test_a_new_run_uses_stored_images_and_a_stored_network(folder, capsys):
    store = RunStore(folder)
    run = next(run for run in store.runs() if run.name == "live changes")
    images = store.run_folder(run.id) / "images" / "adam"
    store.close()
    (network,) = (folder / "uploads" / "networks").glob("*.pt2")
    options = ("--images", images, "--model", network, "--steps", 1, "--batch-size", 4, "--threads", 1, "--device", "cpu")
    result = command(capsys, "quantize", *options, "--evaluations", 0, "--runs", folder)
    assert result["steps"] == 1
    assert result["quantized_layers"] == 4


def test_a_stored_run_is_in_the_paper_table(shared, capsys):
    folder, ids = shared
    rows = command(capsys, "table", "--runs", folder)["rows"]
    assert ids["embedded network"] in json.dumps(rows)


def test_a_stored_quantized_resnet20_is_loaded(shared, capsys, tmp_path):
    """Its file names layers and quantizers; loading fails if a name is missing or unexpected."""
    folder, ids = shared
    result = json.loads((folder / ids["embedded network"] / "result.json").read_text(encoding="utf-8"))
    out = tmp_path / "network.safetensors"
    figures = command(capsys, "export", ids["embedded network"], "--format", "packed", "--out", out, "--runs", folder)
    assert figures["torch_accuracy"] == pytest.approx(result["optimizers"]["adam"]["accuracy"]["4"]["quantized"], abs=5.0)


def shown(name: str, **address: str) -> AppTest:
    """A page opened at an address."""
    app = AppTest.from_file(str(PAGES / f"{name}.py"), default_timeout=60)
    for parameter, value in address.items():
        app.query_params[parameter] = value
    app.run()
    assert not app.exception, app.exception
    return app


# a page that can show nothing of a run opens another one: the Studio needs generated images, the others a complete set of images
NOTHING_TO_SHOW = {("studio", name) for name in ("given images", "given images of both")} | {
    (page, "killed in generation") for page in ("quantize", "diversity", "export")
}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("page", ["studio", "quantize", "diversity", "export"])
def test_each_page_shows_each_stored_run(server, page, name):
    app = shown(page, run=server[name])
    said = {"its process ended while the run was going on"} if name == "killed in generation" else set()
    assert {error.value for error in app.error} <= said
    headline = next(element.value for element in app.markdown if element.value.startswith("**"))
    assert (f"**{name}**" in headline) == ((page, name) not in NOTHING_TO_SHOW)


def test_the_studio_shows_a_stored_iteration(server):
    app = shown("studio", run=server["live changes"], at="2")
    players = [element.proto for element in app.get("bidi_component") if element.proto.component_name.endswith("player")]
    (player,) = [json.loads(proto.json) for proto in players]
    assert player["at"] == 2
    assert player["steps"] == [1, 2, 3]


def test_the_export_page_offers_an_earlier_export(server):
    app = shown("export", run=server["complete"])
    assert "mi-fgsm-W3A3.safetensors" in [element.proto.label for element in app.get("download_button")]


def test_stored_runs_are_compared(server):
    app = shown("compare", runs=",".join(server[name] for name in ("complete", "layer widths", "live changes", "given images of both")))
    assert [header.value for header in app.header] == ["Settings that differ", "Curves", "Accuracy"]
    assert app.warning.len == 0


def test_the_list_shows_stored_runs(server):
    app = shown("runs")
    names = next(table["name"] for table in tables(app) if "name" in table)
    assert {name.removesuffix(" ★") for name in names} >= set(RUNS)


@pytest.mark.parametrize("name", RUNS)
def test_each_stored_run_has_a_report(shared, name):
    folder, ids = shared
    store = RunStore(folder)
    html = report.report(store, store.run(ids[name]), ())
    store.close()
    assert name in html
    assert html.rstrip().endswith("</html>")


def test_the_report_of_a_stored_run_has_its_live_changes(shared):
    folder, ids = shared
    store = RunStore(folder)
    assert [(change["step"], change["name"], change["value"]) for change in store.changes(ids["live changes"])] == [
        (2, "epsilon", 0.05),
        (3, "beta", 0.5),
        (3, "beta", 0.5),
    ]
    html = report.report(store, store.run(ids["live changes"]), ())
    store.close()
    assert ["2", "MI-FGSM", "epsilon", "0.05"] in [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in html.split("<tr>")]


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_runs_whose_folder_was_moved_are_exported_and_resumed(tmp_path, capsys):
    """Their settings name the earlier place of the folder, which is gone."""
    folder = copy_to(tmp_path / "moved", place="/an/earlier/place")
    ids = {run["name"]: run["id"] for run in command(capsys, "runs", "--runs", folder)["runs"]}
    out = tmp_path / "network.safetensors"
    figures = command(capsys, "export", ids["given images"], "--format", "packed", "--out", out, "--runs", folder)
    assert figures["max_output_difference"] < 1e-4
    command(capsys, "export", ids["given images"], "--format", "card", "--out", tmp_path / "card", "--runs", folder)
    command(capsys, "resume", ids["stopped in training"], "--runs", folder)
    again = folder.rename(tmp_path / "moved again")
    store = RunStore(again)
    run = store.run(ids["given images"])
    assert run.config.images_from == str(again / ids["complete"] / "images" / "adam")
    html = "".join(report.report(store, store.run(ids[name]), ()) for name in ("given images", "embedded network"))
    store.close()
    assert "40 images of evaluation" in html
    (card,) = (tmp_path / "card").glob("*.md")
    (network,) = (again / "uploads" / "networks").glob("*.pt2")
    for text in (html, card.read_text(encoding="utf-8")):
        assert "/an/earlier/place" not in text
        assert str(tmp_path) not in text
        assert network.stem not in text  # the hash of an uploaded network
