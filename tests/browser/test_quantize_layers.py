"""Layers on Quantize in a real browser: the largest error, a layer chosen by a click, and another bit width evaluated."""

import pytest
from computed_runs import computed, few_images
from playwright.sync_api import expect

from core.config import EvaluationConfig, GenerationConfig, MachineConfig, RunConfig, TrainingConfig
from core.runs.store import RunStore


@pytest.fixture
def run_id(tmp_path):
    """A small finished run of one method at 4 bits, evaluated on two images per class, in the store of `serve`."""
    store = RunStore(tmp_path / "runs")
    config = RunConfig(
        machine=MachineConfig(device="cpu"),
        generation=GenerationConfig(images=16, iterations=3, batch_size=16, snapshots=1),
        training=TrainingConfig(steps=2, training_batch_size=8),
        methods=("adam",),
        bits=(4,),
        evaluation=EvaluationConfig(encoder="", data=few_images(tmp_path / "data")),
    )
    run_id = computed(store, config, "before")
    store.close()
    return run_id


@pytest.mark.slow
def test_layers_are_inspected_and_evaluated_with_other_bits(serve, tmp_path, run_id, browser_page):
    page, problems = browser_page
    with serve() as (address, _):
        page.goto(f"{address}/?run={run_id}")
        page.get_by_role("link", name="Quantize").click()
        expect(page.get_by_text("Largest error:")).to_be_visible()
        expect(page.get_by_text("test accuracy, %")).to_be_visible(timeout=180_000)  # the first chart loads plotly

        # a click on the first bar chooses the first layer, which reads the image
        bars = page.get_by_role("figure", name="Signal-to-quantization-noise ratio of each layer")
        bars.scroll_into_view_if_needed()
        bar = bars.locator(".bars .point").first
        bar.hover(force=True)
        expect(bars.locator(".hoverlayer")).to_contain_text("layer 1: features.init_block.conv, 4 bits")
        page.mouse.down()
        page.mouse.up()
        expect(page.get_by_text("weights of features.init_block.conv")).to_be_visible()
        expect(page.get_by_text("This layer reads the image, which is not quantized.")).to_be_visible()

        # 8 bits for the layer with the largest error, which comes first; the table is a canvas
        page.get_by_role("tab", name="Change bit widths").click()
        expect(page.get_by_text("0 of 22 layers changed.")).to_be_visible()
        table = page.locator("[data-testid=stDataFrame]", has_text="output dB")
        table.scroll_into_view_if_needed()
        place = table.bounding_box()
        page.mouse.dblclick(place["x"] + 0.3 * place["width"], place["y"] + 52)
        page.get_by_role("option", name="8", exact=True).click()
        expect(page.get_by_text("1 of 22 layers changed.")).to_be_visible()

        page.get_by_role("button", name="Evaluate again").click()
        expect(page.get_by_text("given images, W4A4, 1 layer changed").first).to_be_visible()
        expect(page.locator(".stMarkdownBadge:text-is('complete')")).to_be_visible(timeout=240_000)
        page.get_by_role("tab", name="Change bit widths").click()
        expect(page.get_by_text("Runs on the same images at this bit width")).to_be_visible()
    store = RunStore(tmp_path / "runs")
    newest = store.runs()[0]
    before, after = (store.result(one, "accuracy/adam/W4A4") for one in (run_id, newest.id))
    store.close()
    ((name, bits),) = newest.config.training.layer_bits
    assert (bits, after["layer_bits"], after["steps"]) == (8, {name: 8}, 0)
    assert after["weight_size"] > before["weight_size"]
    assert problems == []
