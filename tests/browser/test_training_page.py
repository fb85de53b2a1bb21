"""Quantize in a real browser during a training: the page is updated, and its buttons work."""

import re

import pytest
from computed_runs import few_images
from playwright.sync_api import expect

from core.config import EvaluationConfig, GenerationConfig, MachineConfig, RunConfig, TrainingConfig
from core.runs.state import RunState
from core.runs.store import RunStore

POINTS = "chart => chart._fullData[0].x.length"


@pytest.mark.slow
def test_active_training_is_updated_without_redrawing_the_page(serve, tmp_path, browser_page):
    page, problems = browser_page
    config = RunConfig(
        machine=MachineConfig(device="cpu"),
        generation=GenerationConfig(images=40, iterations=10, batch_size=20),
        training=TrainingConfig(steps=5000),
        bits=(3,),
        evaluation=EvaluationConfig(encoder="", data=few_images(tmp_path / "data")),
    )
    store = RunStore(tmp_path / "runs")
    run_id = store.create(config, "a long training")
    store.set_state(run_id, RunState.STOPPED)  # so that it can be resumed
    store.close()
    messages: list[str] = []
    page.on("websocket", lambda socket: socket.on("framereceived", lambda _: messages.append(socket.url)))
    with serve() as (address, _):
        page.goto(f"{address}/?run={run_id}")
        page.get_by_role("button", name="Resume").click()
        expect(page.locator(".stMarkdownBadge:text-is('running')")).to_be_visible()
        page.get_by_role("link", name="Quantize").click()
        curve, tested = (page.get_by_role("figure", name=name) for name in ("loss (smoothed)", "test accuracy, %"))
        expect(page.get_by_text(re.compile("^Now training MI-FGSM W3A3: "))).to_be_visible(timeout=180_000)
        expect(tested.locator(".main-svg").first).to_be_visible()
        curve.scroll_into_view_if_needed()
        expect(curve.locator(".main-svg").first).to_be_visible()
        page.wait_for_timeout(3000)
        messages.clear()
        progress = page.get_by_role("progressbar")
        done, known = progress.get_attribute("aria-label"), curve.evaluate(POINTS)
        expect(progress).not_to_have_attribute("aria-label", done or "")
        page.wait_for_function(
            f"([name, known]) => ({POINTS})(document.querySelector(`.js-plotly-plot[aria-label='${{name}}']`)) > known",
            arg=["loss (smoothed)", known],
        )
        assert {url.partition("?")[0].rpartition("/")[2] for url in messages} == {"follow"}

        # the chosen curve is in the address, and a copied link shows it
        page.get_by_role("radio", name="Agreement with the teacher").or_(page.get_by_text("Agreement with the teacher")).first.click()
        agreement = page.get_by_role("figure", name="agreement with the teacher in training, % (smoothed)")
        expect(agreement).to_be_visible()
        expect(page).to_have_url(re.compile(r"[?&]training=agreement\b"))
        page.goto(page.url)
        expect(agreement).to_be_visible()

        page.get_by_role("button", name="Pause").click()
        expect(page.locator(".stMarkdownBadge:text-is('paused')")).to_be_visible()
        taken = re.compile(r"W3A3: ([\d,]+) of 5,000 steps")
        before = taken.search(progress.get_attribute("aria-label") or "")
        assert before is not None
        page.get_by_role("button", name="One step").click()
        one_more = f"{int(before[1].replace(',', '')) + 1:,} of 5,000 steps"
        expect(progress).to_have_attribute("aria-label", re.compile(one_more))
        # not Streamlit's own Stop, in the header while a script runs
        page.get_by_test_id("stMain").get_by_role("button", name="Stop", exact=True).click()
        expect(page.get_by_text("stopped", exact=True)).to_be_visible()
        expect(agreement).to_be_visible()
    assert problems == []
