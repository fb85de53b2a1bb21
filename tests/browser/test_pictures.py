"""Takes the screenshots in README.md and docs/dashboard.md, of real runs in a real browser.

`PICTURES=assets python -m pytest tests/browser/test_pictures.py` replaces them. Without PICTURES, they are of smaller runs and go to the
test's temporary folder.
"""

import io
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from computed_runs import computed, few_images
from every_page import settle
from PIL import Image
from playwright.sync_api import expect
from real_server import ROOT

from core.config import PRESETS, RunConfig
from core.runs.store import RunStore

MOST_BYTES = 250_000
WIDTH, HEIGHT = 1280, 1000
QUICK = PRESETS["quick"]
# the preset quick with fewer images and steps: takes two minutes
CONFIG = replace(
    QUICK,
    generation=replace(QUICK.generation, images=320),
    training=replace(QUICK.training, steps=30),
    bits=(3, 4),
    steps_by_bits={},
)
OTHER = replace(
    CONFIG, generation=replace(CONFIG.generation, images=128, mu=0.0), bits=(), evaluation=replace(CONFIG.evaluation, encoder="")
)
PICTURES = {  # name -> address, and the element to scroll to
    "studio": ("?run={run}", "h1"),
    "layers": ("?run={run}&view=heatmaps", ".js-plotly-plot"),
    "quantize": ("quantize?run={run}", "h1"),
    "diversity": ("diversity?run={run}", "h1"),
    "compare": ("compare?runs={run},{other}", "h1"),
}


def smaller(config: RunConfig, data: str) -> RunConfig:
    """The same kind of run within seconds, evaluated on the images in the folder `data`."""
    few = {"images": 40, "iterations": 8, "batch_size": 40, "steps": 2, "training_batch_size": 20, "data": data}
    return config.with_knobs(few)


@pytest.mark.slow
def test_screenshots_are_taken(serve, tmp_path, browser_page):
    config, other = CONFIG, OTHER
    folder = Path(os.environ.get("PICTURES", tmp_path / "pictures"))
    folder.mkdir(exist_ok=True)
    if "PICTURES" not in os.environ:
        data = few_images(tmp_path / "data")
        config, other = smaller(CONFIG, data), smaller(OTHER, data)
    store = RunStore(tmp_path / "runs")
    ids = {"run": computed(store, config, "quick, 320 images"), "other": computed(store, other, "without momentum: μ = 0")}
    store.close()
    page, problems = browser_page
    page.set_viewport_size({"width": WIDTH, "height": HEIGHT})
    with serve() as (address, _):
        for name, (path, top) in PICTURES.items():
            page.goto(f"{address}/{path.format(**ids)}")
            expect(page.locator("h1")).to_be_visible()
            expect(page.locator(".js-plotly-plot .main-svg").first).to_be_visible()
            settle(page)
            if top != "h1":
                page.locator(top).first.evaluate("element => element.scrollIntoView({block: 'center'})")
                settle(page)
            file = folder / f"{name}.webp"
            with Image.open(io.BytesIO(page.screenshot())) as picture:
                picture.convert("RGB").save(file, quality=82, method=6)
            assert 20_000 < file.stat().st_size <= MOST_BYTES, f"{name} has {file.stat().st_size} bytes: allowed are {MOST_BYTES}"
        assert problems == []


def test_documents_show_these_screenshots():
    readme, dashboard = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/dashboard.md"))
    shown = re.findall(r"\]\(assets/([a-z]+)\.webp\)", readme) + re.findall(r"\]\(\.\./assets/([a-z]+)\.webp\)", dashboard)
    assert shown == list(PICTURES)
    for name in shown:
        file = ROOT / "assets" / f"{name}.webp"
        assert file.stat().st_size <= MOST_BYTES
        with Image.open(file) as picture:
            assert picture.size == (WIDTH, HEIGHT)
