"""Every page, the report, the model card and the commands work with one, two, five and eight methods."""

import json

import pytest
from PIL import Image
from streamlit.testing.v1 import AppTest

from core.__main__ import main
from core.config import GenerationConfig, MachineConfig, RunConfig, TrainingConfig
from core.data.labeled import embedded_images
from core.generation.methods import METHODS, Method
from core.models.registry import CIFAR10_CLASSES
from core.runs.manager import RunManager
from core.runs.state import RunState
from core.runs.store import RUNS_VARIABLE, RunStore
from dashboard import session
from dashboard.downloads.report import report
from dashboard.pages import PAGES

MORE = {f"method-{index}": Method(f"method-{index}", f"Method {index}", METHODS["mi-fgsm"].source) for index in range(3, 9)}
COUNTS = (1, 2, 5, 8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A store with a complete run for each number of methods, evaluated on twenty images."""
    folder = tmp_path_factory.mktemp("methods")
    images, labels = embedded_images()
    for label, name in enumerate(CIFAR10_CLASSES):
        (folder / "pictures" / name).mkdir(parents=True)
        for index in [index for index, other in enumerate(labels) if other == label][:2]:
            Image.fromarray(images[index].permute(1, 2, 0).numpy()).save(folder / "pictures" / name / f"{index}.png")
    METHODS.update(MORE)
    store = RunStore(folder / "runs")
    manager = RunManager(store, executor="threads")
    for count in COUNTS:
        config = RunConfig(
            machine=MachineConfig(device="cpu", threads=1),
            generation=GenerationConfig(images=4, iterations=2, batch_size=4, snapshots=1),
            training=TrainingConfig(steps=1, training_batch_size=4, calibration_images=4, range="minmax"),
            methods=tuple(list(METHODS)[:count]),
            bits=(8,),
        ).with_knobs({"data": str(folder / "pictures")})
        run_id = manager.start(config, f"{count} methods")
        manager.wait(run_id)
        assert store.run(run_id).state is RunState.COMPLETE, store.run(run_id).traceback
    manager.close()
    store.close()
    yield folder / "runs"
    for name in MORE:
        del METHODS[name]


@pytest.fixture
def runs(folder, monkeypatch, runs_in_threads):
    """Number of methods -> its run, in the store that the pages show."""
    monkeypatch.setenv(RUNS_VARIABLE, str(folder))
    session.manager.clear()
    yield {len(run.config.methods): run for run in session.store().runs()}
    session.manager().close()
    session.manager.clear()


@pytest.mark.parametrize("count", COUNTS)
def test_pages_show_every_method(runs, count):
    run = runs[count]
    for page in PAGES:
        app = AppTest.from_file(f"../{page.path}", default_timeout=60)
        app.query_params["run"] = run.id
        app.run()
        assert not app.exception, (page.name, app.exception)
        if page.name == "studio":
            data = [json.loads(element.proto.json) for element in app.get("bidi_component")]
            titles = {one["title"] for one in data if one.get("title")}
            assert {METHODS[method].title for method in run.config.methods} <= titles


def test_compare_and_studio_views(runs):
    app = AppTest.from_file("../dashboard/pages/compare.py", default_timeout=60)
    app.query_params["runs"] = ",".join(run.id for run in runs.values())
    app.run()
    assert not app.exception, app.exception
    for view in ("layers", "heatmaps", "layer"):
        app = AppTest.from_file("../dashboard/pages/studio.py", default_timeout=60)
        app.query_params["run"], app.query_params["view"] = runs[8].id, view
        app.run()
        assert not app.exception, (view, app.exception)


@pytest.mark.parametrize("count", COUNTS)
def test_report_card_and_table(runs, folder, count, tmp_path, capsys):
    run = runs[count]
    titles = [METHODS[method].title for method in run.config.methods]
    html = report(session.store(), run, ())
    assert main(["export", run.id, "--format", "card", "--out", str(tmp_path / "card"), "--runs", str(folder)]) == 0
    card = (tmp_path / "card" / "README.md").read_text(encoding="utf-8")
    for title in titles:
        assert title in html
        assert title in card.replace("\\", "")
    assert main(["table", "--json", "--runs", str(folder)]) == 0
    assert main(["runs", "--json", "--runs", str(folder)]) == 0
    capsys.readouterr()
