"""The headline of a finished run on every page that shows it, its download, and the limit of the recommendation."""

import json

import pytest
from app_pages import page, tables

from core.runs.state import RunState
from dashboard import session
from dashboard.downloads import artifacts
from dashboard.views import headline


def lines(app):
    return [element.value.replace("\\", "").replace("\u2060", "") for element in (*app.markdown, *app.caption)]


def sentence(app):
    (found,) = [line for line in lines(app) if " times smaller)" in line]
    return found


@pytest.mark.parametrize("name", ["studio", "quantize", "diversity", "export"])
def test_every_page_of_a_finished_run_has_the_headline(with_finished_run, name):
    store = session.store()
    figures = store.result(with_finished_run, "accuracy/adam/W4A4")
    for method, drop in (("mi-fgsm", 1.5), ("adam", 0.42)):
        changed = {"full_precision": 92.0, "quantized": 92.0 - drop, "drop_error": 0.31, "bytes": 177_000, "float32_bytes": 1_089_896}
        store.set_result(with_finished_run, f"accuracy/{method}/W4A4", {**figures, **changed})
    app = page(name, run=with_finished_run)
    start = (
        "**resnet20_cifar10 in 4 bits: 177 kB instead of 1.1 MB (6.2 times smaller), measured top-1 drop 0.4 ± 0.3, gives the same answer"
    )
    assert sentence(app).startswith(start)
    assert "W4A4, images by Adam. The smallest of 2 networks whose measured drop is at most 1 point." in lines(app)
    assert [button.proto.label for button in app.get("download_button") if "ONNX" in button.proto.label] == ["Download as ONNX"]


def test_the_limit_that_was_moved_chooses_the_network_on_every_page(with_finished_run):
    store = session.store()
    config = store.config(with_finished_run).to_dict() | {"bits": [3, 4]}
    with store.database.write() as connection:
        connection.execute("UPDATE run SET config = ? WHERE id = ?", (json.dumps(config), with_finished_run))
    figures = store.result(with_finished_run, "accuracy/adam/W4A4")
    for bits, drop in ((3, 2.0), (4, 0.5)):
        changed = {"full_precision": 92.0, "quantized": 92.0 - drop, "bits": bits, "bytes": bits * 40_000}
        store.set_result(with_finished_run, f"accuracy/adam/W{bits}A{bits}", {**figures, **changed})
    store.set_result(with_finished_run, "accuracy/mi-fgsm/W4A4", {"calibrated": 9.0, "held_out": {}, "bits": 4})  # not finished
    app = page("quantize", run=with_finished_run)
    assert "in 4 bits: 160 kB" in sentence(app)
    app.number_input(key=f"largest drop {with_finished_run}").set_value(2.5).run()
    assert not app.exception
    assert "in 3 bits: 120 kB" in sentence(app)
    app.switch_page("export.py").run()
    assert "in 3 bits: 120 kB" in sentence(app)


def test_a_run_in_progress_and_a_run_without_networks_have_no_headline(with_finished_run):
    store = session.store()
    config = store.config(with_finished_run)
    other = store.create(config, "without networks")
    store.set_state(other, RunState.STOPPED)
    active = store.create(config, "active")
    store.set_result(active, "accuracy/adam/W4A4", store.result(with_finished_run, "accuracy/adam/W4A4"))
    store.set_state(active, RunState.RUNNING)
    for run_id in (other, active):
        assert not [line for line in lines(page("quantize", run=run_id)) if "smaller)" in line]


def test_the_file_is_made_once(with_finished_run, monkeypatch):
    run, store, made = session.store().run(with_finished_run), session.store(), []
    folder = store.run_folder(run.id)
    offer = artifacts.network_offer(run, folder, "adam", 4)

    def make(*arguments):
        made.append(arguments)
        (folder / "exports").mkdir()
        path = folder / "exports" / "adam-W4A4.onnx"
        path.write_bytes(b"a network")
        path.with_name(f"{path.name}.json").write_text("{}", encoding="utf-8")
        return path

    monkeypatch.setattr(artifacts, "make", make)
    for _ in range(2):
        assert artifacts.content(store.folder, run.id, offer, "onnxruntime", folder) == b"a network"
    assert made == [(store.folder, run.id, offer, "onnxruntime", folder)]
    assert artifacts.network_offer(run, folder, "adam", 3) is None


@pytest.mark.parametrize(
    ("network", "stem"), [("best.pth", "best"), ("my.net.safetensors", "my.net"), ("timm:vgg11.tv_in1k", "timm:vgg11.tv_in1k")]
)
def test_the_download_is_named_after_the_network(network, stem):
    assert headline._stem(network) == stem


def test_all_networks_are_in_a_table_and_what_follows_opens_the_filled_form(with_finished_run):
    store = session.store()
    figures = store.result(with_finished_run, "accuracy/adam/W4A4")
    for method, drop in (("mi-fgsm", 1.5), ("adam", 0.42)):
        changed = {"full_precision": 92.0, "quantized": 92.0 - drop, "drop_error": 0.31, "bytes": 177_000}
        store.set_result(with_finished_run, f"accuracy/{method}/W4A4", {**figures, **changed})
    app = page("quantize", run=with_finished_run)
    (table,) = [table for table in tables(app) if "same answer on unseen images %" in table]
    assert table["drop (points)"].tolist() == ["1.50 ± 0.31", "0.42 ± 0.31"]
    assert table["network"].tolist() == ["W4A4", "W4A4 (recommended)"]
    labels = [button.label for button in app.button if button.key.startswith("next ")]
    assert labels == ["More bits", "More time", "Another method", "Another seed"]
    studio = page("studio", **{"from": with_finished_run, "next": "seed"})
    assert studio.number_input(key=f"from/{with_finished_run}/seed/machine/seed").value == store.config(with_finished_run).machine.seed + 1
