"""The extension points of CONTRIBUTING.md: dummies registered here work without a change to the product.

The dummies: a knob with a slider, a loss term, a range method with its own knob, a method that optimizes pixels, one that trains a
generator with the student, a page that follows a run, and an executor. Generation, training, Studio, Quantize, Compare, the report, the
model card and the command line run with them.
"""

import json
import math
from functools import partial

import pytest
import streamlit
import torch
from streamlit.testing.v1 import AppTest
from torch import Tensor, nn
from waiting import wait_until

from core.__main__ import main
from core.config import RANGE_METHODS, GenerationConfig, RangeChoice, RunConfig, TrainingConfig, add_knob, knob, remove_knob
from core.generation.losses import TERMS, Term
from core.generation.methods import METHODS, Method
from core.generation.sources.generated import GeneratedImages
from core.generation.sources.pixels import PixelImages
from core.quantization.ranges.base import RangeMethod
from core.runs.executors import EXECUTORS, ThreadExecutor
from core.runs.manager import RunManager
from core.runs.state import RunState
from core.runs.store import RUNS_VARIABLE, RunStore
from dashboard import session
from dashboard.components import elements
from dashboard.downloads.report import report
from dashboard.pages import PAGES, Page
from dashboard.updates import live_view
from dashboard.views import live_knobs
from tests.evaluation_images import few_evaluation_images

SMALL = ["--images", "8", "--iterations", "3", "--snapshots", "2", "--batch-size", "4", "--threads", "1", "--device", "cpu"]


class SignImages(PixelImages):
    """Optimizes pixels by the sign of the gradient, without momentum."""

    def make_optimizer(self, pixels):
        return torch.optim.SGD([pixels], lr=1.0)

    def set_knobs(self, values, step_size):
        self.optimizer.param_groups[0]["lr"] = values["gamma"] * step_size
        self.pixels.grad = self.pixels.grad.sign()


class TinyGenerator(GeneratedImages):
    """Trains a generator, first alone and then with the student, toward images on which student and teacher differ."""

    latent = 4

    def make_generator(self):
        return _Generator(self.latent, len(self.model.spec.classes), self.model.spec.shape)

    def student_loss(self, images, labels, teacher, student):
        return -(teacher(images) - student(images)).square().mean()


class _Generator(nn.Module):
    def __init__(self, latent: int, classes: int, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.shape, self.linear, self.labels = shape, nn.Linear(latent, math.prod(shape)), nn.Embedding(classes, latent)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        return self.linear(z * self.labels(labels)).view(len(z), *self.shape).tanh()


class Percentile(RangeMethod):
    """A range method with its own knob: clips at a percentile of the absolute values."""

    def __init__(self, bits, channels, percentile):
        super().__init__(bits, channels)
        self.percentile = percentile

    @classmethod
    def factory(cls, config):
        return partial(cls, percentile=config.percentile)

    def observe(self, values):
        sizes = values.detach().abs().flatten(0 if self.channels is None else 1)
        self.end = torch.quantile(sizes[..., :10_000], self.percentile / 100, dim=-1)

    def range(self):
        return -self.end, self.end


def _dummy_page() -> None:
    run = session.shown_run()
    streamlit.title("A page of an extension")
    live_view.follow(STEPS, run)


def _steps(run, address):
    return {live_view.LAYOUT: 0, f"steps/{run.id}": elements.text_block_data([f"{len(session.records(run, 'generation'))} records"])}


STEPS = live_view.View("steps", _steps, lambda run, values: elements.text_block(f"steps/{run.id}", values[f"steps/{run.id}"]))


class CountingExecutor(ThreadExecutor):
    """Computes runs in threads and lists their ids."""

    computed: list[str] = []

    def compute(self, run_id, control):
        self.computed.append(run_id)
        super().compute(run_id, control)


@pytest.fixture(scope="module")
def extended():
    """Registers one dummy of every kind, as an extension would."""
    gamma = knob(
        0.05, "Weight of contrast, and step size of sign.", minimum=0.0, maximum=1.0, symbol="γ", live=True, slider=(0.0, 0.5), step=0.01
    )
    add_knob(GenerationConfig, "gamma", gamma)
    add_knob(TrainingConfig, "percentile", knob(99.0, "Percentile that is kept.", minimum=50.0, maximum=100.0))
    TERMS["contrast"] = Term("contrast", "L_C", "contrast", "gamma", lambda outputs: outputs.images.std())
    RANGE_METHODS["percentile"] = RangeChoice(f"{__name__}:Percentile", "clips beyond a percentile")
    METHODS["sign"] = Method("sign", "Sign", f"{__name__}:SignImages")
    METHODS["tiny"] = Method("tiny", "Tiny generator", f"{__name__}:TinyGenerator", kind="joint")
    PAGES.append(Page("steps", "Steps", ":material/steps:", views=(f"{__name__}:STEPS",), opens_runs=True, script=_dummy_page))
    EXECUTORS["counting"] = CountingExecutor
    yield
    del EXECUTORS["counting"], METHODS["sign"], METHODS["tiny"], RANGE_METHODS["percentile"], TERMS["contrast"]
    PAGES.pop()
    remove_knob(GenerationConfig, "gamma")
    remove_knob(TrainingConfig, "percentile")


@pytest.fixture(scope="module")
def folder(extended, tmp_path_factory):
    """A store with one run of the dummies, started from the command line."""
    folder = tmp_path_factory.mktemp("extended") / "runs"
    command = ["run", "--methods", "mi-fgsm", "sign", "tiny", "--gamma", "0.07", "--range", "percentile", "--percentile", "98"]
    given = ["--images", "8", "--iterations", "3", "--snapshots", "2", "--batch-size", "4", "--threads", "1", "--device", "cpu"]
    training = ["--bits", "4", "--steps", "2", "--training-batch-size", "4", "--calibration-images", "8", "--encoder", ""]
    with few_evaluation_images():
        assert main([*command, *given, *training, "--accuracy-checks", "0", "--runs", str(folder)]) == 0
    return folder


@pytest.fixture
def run(folder, monkeypatch, runs_in_threads):
    """That run, in the store that the pages show."""
    monkeypatch.setenv(RUNS_VARIABLE, str(folder))
    session.manager.clear()
    yield session.store().runs()[-1]
    session.manager().close()
    session.manager.clear()


def page(name: str, run_id: str, **address: str) -> AppTest:
    app = AppTest.from_file(f"../dashboard/pages/{name}.py", default_timeout=60)
    app.query_params["run"] = run_id
    for key, value in address.items():
        app.query_params[key] = value
    app.run()
    assert not app.exception, app.exception
    return app


def test_a_run_uses_the_dummies(run):
    store = session.store()
    assert run.state is RunState.COMPLETE, run.traceback
    assert (run.config.generation.gamma, run.config.training.percentile, run.config.training.range) == (0.07, 98.0, "percentile")
    result = json.loads((store.run_folder(run.id) / "result.json").read_text(encoding="utf-8"))
    assert list(result["methods"]) == ["mi-fgsm", "sign", "tiny"]
    for method, figures in result["methods"].items():
        assert figures["generation"]["images"] == 8
        assert figures["accuracy"]["4"]["steps"] == 2, method
    generation = store.records(run.id, "generation")
    assert {record.series for record in generation} == {"mi-fgsm", "sign", "tiny"}
    assert all(record.data["contrast"] > 0 for record in generation)
    # the generator takes a step after each step of the student
    training = store.records(run.id, "training")
    assert [("generator" in record.data) for record in training if record.series == "tiny W4A4"] == [True, True]
    assert not any("generator" in record.data for record in training if record.series != "tiny W4A4")


def test_an_added_knob_affects_the_images(extended, tmp_path, capsys):
    """gamma is the step size of the method sign: its BNS loss ends lower than with gamma 0."""
    last = {}
    for gamma in ("0", "0.2"):
        arguments = ["generate", "--method", "sign", *SMALL, "--gamma", gamma, "--json", "--runs", str(tmp_path / gamma)]
        assert main(arguments) == 0
        last[gamma] = json.loads(capsys.readouterr().out.splitlines()[-1])["bns_loss_last"]
    assert last["0.2"] < last["0"]


@pytest.mark.parametrize("view", ["loss", "layers", "heatmaps", "layer"])
def test_studio(run, view):
    app = page("studio", run.id, view=view)
    texts = [json.loads(element.proto.json) for element in app.get("bidi_component")]
    titles = [data["title"] for data in texts if data.get("title")]
    assert {"MI-FGSM", "Sign", "Tiny generator"} <= set(titles)
    if view == "loss":
        assert any("L_C" in line for data in texts for line in data.get("lines", []))


def test_the_slider_of_an_added_knob_changes_an_active_run(run, monkeypatch):
    # in this process: a worker process would not have the dummies
    manager = RunManager(session.store(), executor="threads")
    config = RunConfig(methods=("mi-fgsm", "sign"), bits=()).with_knobs(
        {"images": 20, "iterations": 5000, "batch_size": 20, "snapshots": 1, "encoder": "", "device": "cpu", "threads": 1}
    )
    run_id = manager.start(config)
    try:
        wait_until(lambda: manager.store.records(run_id, "generation"))
        with monkeypatch.context() as patch:
            patch.setattr(session, "manager", lambda: manager)
            app = page("studio", run_id)
            (panel,) = [data for data in (json.loads(e.proto.json) for e in app.get("bidi_component")) if "knobs" in data]
            assert "gamma" in [knob["name"] for knob in panel["knobs"]["all"]]
            live_knobs.change(manager.store.run(run_id), {"group": "all", "name": "gamma", "value": 0.4})
        wait_until(lambda: len(manager.store.changes(run_id)) == 2)
        changes = manager.store.changes(run_id)
        assert {(change["method"], change["name"], change["value"]) for change in changes} == {
            (method, "gamma", 0.4) for method in ("mi-fgsm", "sign")
        }
    finally:
        manager.control(run_id).stop()
        manager.wait(run_id)
        manager.close()


@pytest.mark.parametrize("name", ["quantize", "diversity", "paper", "export", "runs"])
def test_other_pages(run, name):
    page(name, run.id)


def test_compare(run):
    store = session.store()
    other = store.create(run.config, "the same again")
    app = page("compare", run.id, runs=f"{run.id},{other}", curve="L_C (contrast)")
    assert app.title[0].value == "Compare"
    store.set_state(other, RunState.STOPPED)
    store.delete(other)


def test_an_added_page_is_drawn_and_updated(run):
    """Updated by the function that the socket calls, which finds the view by name."""
    view = live_view.find_view("steps")
    assert view is STEPS
    values = live_view.collect_updates(view, run.id, f"?run={run.id}")["values"]
    assert json.loads(values[f"steps/{run.id}"])["lines"] == ["9 records"]
    app = AppTest.from_function(_draw_dummy_page)
    app.query_params["run"] = run.id
    app.run()
    assert not app.exception, app.exception
    assert app.title[0].value == "A page of an extension"


def _draw_dummy_page():
    from dashboard.pages import PAGES

    PAGES[-1].script()


def test_report_card_and_command_line(run, folder, tmp_path, capsys):
    html = report(session.store(), run, ())
    assert "Tiny generator" in html
    assert "percentile" in html
    assert main(["export", run.id, "--format", "card", "--out", str(tmp_path / "card"), "--runs", str(folder)]) == 0
    card = (tmp_path / "card" / "README.md").read_text(encoding="utf-8")
    assert "Tiny generator" in card
    assert "percentile" in card
    # the command that reproduces the run has the knobs that are not at their defaults
    assert "--gamma 0.07" in card.replace("\\", "")
    assert (
        main(
            ["export", run.id, "--format", "packed", "--method", "tiny", "--out", str(tmp_path / "tiny.safetensors"), "--runs", str(folder)]
        )
        == 0
    )
    capsys.readouterr()
    assert main(["list", "--json"]) == 0
    names = json.loads(capsys.readouterr().out)
    assert {"sign", "tiny"} <= set(names["methods"])
    assert "percentile" in names["ranges"]
    with pytest.raises(SystemExit):
        main(["generate", "--help"])
    assert "--gamma" in capsys.readouterr().out


def test_an_added_executor_computes_runs(extended, tmp_path):
    store = RunStore(tmp_path / "runs")
    manager = RunManager(store, executor="counting")
    config = RunConfig(methods=("sign",), bits=()).with_knobs(
        {"images": 4, "iterations": 2, "batch_size": 4, "snapshots": 1, "encoder": "", "device": "cpu", "threads": 1}
    )
    run_id = manager.start(config)
    manager.wait(run_id)
    manager.close()
    assert run_id in CountingExecutor.computed
    assert store.run(run_id).state is RunState.COMPLETE
    store.close()
