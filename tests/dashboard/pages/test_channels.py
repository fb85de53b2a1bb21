"""The pages of a run whose network has grey images, and of one whose images are not square."""

import pytest
import timm
import torch
from app_pages import component, htmls, page
from PIL import Image

from core.config import EvaluationConfig, GenerationConfig, MachineConfig, RunConfig, TrainingConfig
from core.models.full_precision import save_checkpoint
from core.models.registry import ModelSpec
from core.runs.state import RunState
from dashboard import session
from dashboard.downloads import report

CLASSES = ("a", "b", "c")


@pytest.fixture(params=[(1, (32, 32)), (3, (32, 48)), (4, (48, 32)), (2, (32, 32))], ids=["grey", "wide", "four, high", "two"])
def spec(request, tmp_path):
    """The spec of a network in a file, spec.name."""
    channels, size = request.param
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(2)
        network = timm.create_model("test_byobnet", in_chans=channels, num_classes=len(CLASSES))
        network.train()(torch.randn(8, channels, *size))
    path = str(tmp_path / "network.safetensors")
    made = ModelSpec(path, "timm:test_byobnet", CLASSES, size, (0.5,) * channels, (0.25,) * channels, "noise")
    save_checkpoint(network, made, tmp_path / "network.safetensors")
    return made


@pytest.mark.slow
def test_every_page_shows_the_run(runs_folder, tmp_path, spec):
    for name in CLASSES:
        (tmp_path / "pictures" / name).mkdir(parents=True)
        Image.new(spec.mode, spec.size[::-1]).save(tmp_path / "pictures" / name / "0.png")
    config = RunConfig(
        model=spec.name,
        machine=MachineConfig(device="cpu", threads=1),
        generation=GenerationConfig(images=12, iterations=4, batch_size=6, snapshots=2),
        training=TrainingConfig(steps=1, training_batch_size=4, calibration_images=8, range="minmax"),
        evaluation=EvaluationConfig(data=str(tmp_path / "pictures")),
        bits=(4,),
    )
    run_id = session.manager().start(config)
    session.manager().wait(run_id)
    run = session.store().run(run_id)
    assert run.state is RunState.COMPLETE, run.traceback

    height, width = spec.size
    for data in component(page("studio", run=run_id), "sheet"):
        rows = len(data["cells"]) // data["columns"]
        assert (data["width"], data["height"]) == (data["columns"] * (width + 1) - 1, rows * (height + 1) - 1)
    for name in ("quantize", "diversity", "runs", "export", "compare"):
        assert page(name, run=run_id)
    assert [html for html in htmls(page("diversity", run=run_id)) if "<img" in html]
    assert "data:image/png" in report.report(session.store(), run, CLASSES)
