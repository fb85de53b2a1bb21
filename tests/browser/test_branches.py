"""Trying other values from an iteration of a run, in a real browser."""

import hashlib
import re

import pytest
from computed_runs import computed
from playwright.sync_api import expect
from waiting import wait_until

from core.config import EvaluationConfig, GenerationConfig, MachineConfig, RunConfig
from core.models.registry import CIFAR10_CLASSES
from core.runs.branches import branches
from core.runs.state import RunState
from core.runs.store import RunStore
from dashboard.images.contact_sheet import sheet

CONFIG = RunConfig(
    machine=MachineConfig(device="cpu", threads=1),
    generation=GenerationConfig(images=20, iterations=8, batch_size=10, snapshots=1),
    bits=(),
    evaluation=EvaluationConfig(encoder=""),
)

SHOWS = """([name, source]) => [...document.querySelectorAll('*')].some(element => element.shadowRoot &&
    [...element.shadowRoot.querySelectorAll('img')].some(image => image.alt === name && image.src === source))"""


def hashes(folder):
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def picture(page, name):
    return page.get_by_alt_text(name, exact=True).get_attribute("src")


@pytest.mark.slow
def test_a_branch_is_started_compared_reloaded_and_removed(tmp_path, serve, browser_page):
    page, problems = browser_page
    store = RunStore(tmp_path / "runs")
    run_id = computed(store, CONFIG, "to be branched")
    before = hashes(store.run_folder(run_id)), store.results(run_id)
    with serve() as (address, _):
        page.goto(f"{address}/?run={run_id}&at=11")  # iteration 3 of batch 2
        page.get_by_role("button", name="Try other values").click()
        expect(page.get_by_role("button", name="Start", exact=True)).to_be_disabled()
        slider = page.get_by_role("slider", name="MI-FGSM step ε")
        slider.focus()
        slider.press("ArrowRight")
        page.get_by_role("button", name=re.compile("^Start: ε 0.105 from iteration 3 of batch 2")).click()

        beside = page.get_by_alt_text("MI-FGSM, branch A, batch 2", exact=True)
        expect(page.get_by_text("A: ε 0.105 from iteration 3 of batch 2")).to_be_visible()
        expect(beside).to_be_visible()
        # up to where it leaves the run it has its images, after that it has not
        assert picture(page, "MI-FGSM, branch A, batch 2") == picture(page, "MI-FGSM, batch 2")
        page.keyboard.press("Escape")
        page.keyboard.press("End")
        (branch,) = branches(store, run_id)
        wait_until(lambda: store.run(branch.id).state is RunState.COMPLETE)
        frames = [store.frames.read(of, "mi-fgsm", 16) for of in (run_id, branch.id)]
        of_run, of_branch = (sheet(frame, CIFAR10_CLASSES).picture for frame in frames)
        assert of_run != of_branch
        page.wait_for_function(SHOWS, arg=["MI-FGSM, batch 2", of_run])
        page.wait_for_function(SHOWS, arg=["MI-FGSM, branch A, batch 2", of_branch])
        page.locator('[class*="st-key-figure-branches"]').first.scroll_into_view_if_needed()  # a chart out of sight is not drawn
        page.wait_for_function(
            """() => { const curves = [...document.querySelectorAll('.js-plotly-plot')].flatMap(chart => chart.data)
                 .filter(trace => trace.name === 'MI-FGSM branch A' && trace.xaxis === 'x');
               return curves.length === 1 && JSON.stringify([...curves[0].x]) === '[11,12,13,14,15,16]' }"""
        )
        page.reload()
        page.wait_for_function(SHOWS, arg=["MI-FGSM, branch A, batch 2", of_branch])
        assert (hashes(store.run_folder(run_id)), store.results(run_id)) == before

        # an image of the branch is enlarged as one of the run is
        page.get_by_role("grid", name="MI-FGSM, branch A, batch 2", exact=True).get_by_role("gridcell").nth(1).click()
        expect(page.get_by_text(re.compile("^MI-FGSM, branch A, image 1:"))).to_be_visible()
        expect(page).to_have_url(re.compile(f"method=mi-fgsm&image=1&beside={branch.id}$"))
        strips = page.get_by_role("button", name=re.compile("^show iteration 4:"))
        expect(strips).to_have_count(2)
        strips.last.click()
        expect(page.get_by_role("slider", name="Iteration", exact=True)).to_have_attribute("aria-valuetext", re.compile("iteration 4 of 8"))
        page.get_by_role("grid", name="MI-FGSM, branch A, batch 2", exact=True).get_by_role("gridcell").nth(1).click()
        expect(strips).to_have_count(0)
        expect(page).not_to_have_url(re.compile("image="))

        page.get_by_role("button", name="Remove").click()
        expect(beside).to_have_count(0)
        expect(page.get_by_role("button", name="Try other values")).to_be_enabled()
        assert branches(store, run_id) == []
        assert not store.run_folder(branch.id).exists()
    store.close()
    assert problems == []
