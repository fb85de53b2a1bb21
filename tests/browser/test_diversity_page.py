"""Diversity and Quantize in a real browser: choices are in the address, and a copied link shows the same."""

import pytest
from computed_runs import computed, few_images
from playwright.sync_api import expect
from real_server import free_port, serving

from core.config import GenerationConfig, MachineConfig, RunConfig, TrainingConfig
from core.runs.store import RunStore

CONFIG = RunConfig(
    machine=MachineConfig(device="cpu"),
    generation=GenerationConfig(images=40, iterations=3, batch_size=20, snapshots=2),
    training=TrainingConfig(steps=2, training_batch_size=20),
    bits=(8,),
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A store with two runs that differ only in their seeds: its folder and their ids."""
    folder = tmp_path_factory.mktemp("diversity")
    store = RunStore(folder / "runs")
    config = CONFIG.with_knobs({"data": few_images(folder / "data")})
    ids = [computed(store, config.with_knobs({"seed": seed}), f"seed {seed}") for seed in range(2)]
    store.close()
    return folder, ids


@pytest.mark.slow
def test_choices_are_in_the_address(runs, browser_page, chromium):
    page, problems = browser_page
    folder, (first, second) = runs
    with serving(folder, free_port()) as (address, _):
        page.goto(f"{address}/diversity?run={first}")
        expect(page.get_by_text("Real images (reference)", exact=True).first).to_be_visible()
        expect(page.get_by_text("trained on the 50,000 CIFAR-10 training images")).to_be_visible()
        picture = page.get_by_alt_text("image 0 by Adam and its nearest neighbors")
        expect(picture).to_be_visible()
        assert picture.evaluate("image => image.complete && image.naturalWidth > 32 * 6")
        page.get_by_role("slider").focus()
        page.keyboard.press("ArrowRight")
        expect(page.get_by_alt_text("image 1 by Adam and its nearest neighbors")).to_be_visible()
        assert "neighbors=1" in page.url

        page.goto(f"{address}/quantize?run={first}")
        page.get_by_role("button", name="Add the run that differs only in its seeds").click()
        expect(page.get_by_text("standard deviation over 2 seeds")).to_be_visible()
        page.get_by_role("radio", name="bars").click()
        expect(page.locator(".js-plotly-plot .bars").first).to_be_attached()
        page.wait_for_url("**as=bars**")
        assert f"with={second}" in page.url
        copied = chromium.new_page()
        copied.goto(page.url)
        expect(copied.get_by_text("standard deviation over 2 seeds")).to_be_visible()
        expect(copied.locator(".js-plotly-plot .bars").first).to_be_attached()
        assert copied.get_by_test_id("stException").count() == page.get_by_test_id("stException").count() == 0
        copied.close()
    assert problems == []
