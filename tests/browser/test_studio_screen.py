"""The Studio as one screen: what fits into the window while a run is active, the sliders, and that nothing moves when generation ends."""

import re
from collections.abc import Iterator
from dataclasses import replace

import pytest
from computed_runs import computed, few_images
from every_page import settle
from playwright.sync_api import Page, expect
from real_server import free_port, serving
from test_accessibility import findings

from core.config import EvaluationConfig, GenerationConfig, MachineConfig, RunConfig, TrainingConfig
from core.runs.state import RunState
from core.runs.store import RunStore

CONFIG = RunConfig(
    machine=MachineConfig(device="cpu", threads=1),
    # 64 images at a time as in the preset quick: seven rows of ten classes
    generation=GenerationConfig(images=6400, iterations=50, batch_size=64, snapshots=1),
    bits=(),
    evaluation=EvaluationConfig(encoder=""),
)
METHODS = {1: ("mi-fgsm",), 2: ("mi-fgsm", "adam"), 5: ("mi-fgsm", "adam", "zeroq", "dsg", "intraq")}
WINDOWS = ((1440, 900), (1920, 1080))

# kind -> boxes of all elements of this kind, also of those in the shadow roots of components
BOXES = """() => {
    const all = root => [...root.querySelectorAll('*')].flatMap(e => e.shadowRoot ? [e, ...all(e.shadowRoot)] : [e]);
    const kinds = {
        images: '[role=grid]', curves: '.js-plotly-plot', sliders: '.knob input[type=range]', traces: '.knob .trace',
        player: '.player', buttons: '.st-key-run-buttons button', progress: '[role=progressbar]',
    };
    const elements = all(document).filter(e => e.checkVisibility({visibilityProperty: true}) && e.getBoundingClientRect().width > 1);
    return Object.fromEntries(Object.entries(kinds).map(([kind, selector]) => [kind, elements.filter(e => e.matches(selector)).map(e => {
        const box = e.getBoundingClientRect();
        return [box.left, box.top, box.right, box.bottom].map(Math.round);
    })]));
}"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("screen")


@pytest.fixture(scope="module")
def server(folder):
    """Address of a server with the runs in `folder`."""
    with serving(folder, free_port()) as (address, _):
        yield address


def resumable(folder, config: RunConfig, name: str) -> str:
    """The id of a new run that can be resumed, so that the server computes it."""
    store = RunStore(folder / "runs")
    run_id = store.create(config, name)
    store.set_state(run_id, RunState.STOPPED)
    store.close()
    return run_id


def started(page: Page, server: str, run_id: str, methods: int) -> None:
    """Opens a run, and resumes it until there are images of all methods."""
    page.goto(f"{server}/?run={run_id}")
    page.get_by_role("button", name="Resume", exact=True).click()
    expect(page.get_by_role("grid")).to_have_count(methods)
    expect(page.locator(".js-plotly-plot .main-svg").first).to_be_attached()


def press(page: Page, name: str) -> None:
    """Presses a button of the run, not Streamlit's own Stop, which is in the header while a script runs."""
    page.get_by_test_id("stMain").get_by_role("button", name=name, exact=True).click()


@pytest.fixture
def paused(folder, server, browser_page, request) -> Iterator[Page]:
    """A page with a paused run of as many methods as the test's parameter says, or of two."""
    page, problems = browser_page
    methods = METHODS[getattr(request, "param", 2)]
    started(page, server, resumable(folder, replace(CONFIG, methods=methods), f"{len(methods)} methods"), len(methods))
    press(page, "Pause")
    expect(page.locator(".stMarkdownBadge:text-is('paused')")).to_be_visible()
    settle(page)
    yield page
    press(page, "Stop")
    expect(page.get_by_text("stopped", exact=True)).to_be_visible()
    assert problems == []


@pytest.mark.slow
@pytest.mark.parametrize("paused", METHODS, indirect=True)
def test_images_curves_and_sliders_fit_into_the_window(paused, request):
    page, count = paused, request.node.callspec.params["paused"]
    sliders = {1: 5, 2: 6, 5: 14}[count]
    wrong = []
    for width, height in WINDOWS:
        page.set_viewport_size({"width": width, "height": height})
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            settle(page)
            boxes = page.evaluate(BOXES)
            expected = {"images": count, "curves": 1, "sliders": sliders, "traces": sliders, "player": 1, "buttons": 4, "progress": 1}
            assert {kind: len(found) for kind, found in boxes.items()} == expected, boxes
            wrong += [
                f"{kind} at {box} in {width} x {height}, {scheme}"
                for kind, found in boxes.items()
                for box in found
                if not (0 <= box[0] < box[2] <= width and 60 <= box[1] < box[3] <= height)  # below the navigation
            ]
            assert min(box[3] - box[1] for box in boxes["images"]) > 120
            assert boxes["curves"][0][3] - boxes["curves"][0][1] > 200
            wrong += findings(page, [] if scheme == "light" else ["color-contrast"])
    assert wrong == []


@pytest.mark.slow
def test_controls_and_sliders_stay_while_the_rest_scrolls(paused):
    page = paused
    page.set_viewport_size({"width": 1280, "height": 720})
    page.goto(f"{page.url}&view=loss")
    expect(page.locator(".js-plotly-plot .main-svg").first).to_be_attached()
    settle(page)
    before = page.evaluate(BOXES)
    page.get_by_test_id("stMain").evaluate("e => e.scrollTo(0, e.scrollHeight)")
    settle(page)
    after = page.evaluate(BOXES)
    assert after["images"][0][1] < before["images"][0][1] - 50
    assert (after["buttons"], after["sliders"]) == (before["buttons"], before["sliders"])

    page.set_viewport_size({"width": 390, "height": 844})
    settle(page)
    boxes = page.evaluate(BOXES)
    assert all(box[3] <= 844 and box[1] > 700 for box in boxes["buttons"])
    assert boxes["images"][0][3] < boxes["curves"][0][1] < boxes["sliders"][0][1]


@pytest.mark.slow
def test_a_slider_marks_the_curves_at_once_and_can_be_undone(paused):
    page = paused
    iteration = int(
        re.findall(r"iteration (\d+)", page.get_by_role("slider", name="Iteration", exact=True).get_attribute("aria-valuetext"))[0]
    )
    epsilon = page.get_by_role("slider", name="MI-FGSM step ε", exact=True)
    row = epsilon.locator("xpath=..")
    undo, start = row.get_by_role("button", name=re.compile("^Undo")), row.get_by_role("button", name=re.compile("^Back to 0.1,"))
    expect(undo).to_be_disabled()
    expect(start).to_be_disabled()

    def marks(name: str) -> list[list]:
        """Position and dash of the marks on the first curve."""
        return page.evaluate(
            """name => document.querySelector('.js-plotly-plot').layout.shapes.filter(s => (s.name ?? '') === name && s.xref === 'x')
                .map(s => [s.x0, s.line.dash])""",
            name,
        )

    epsilon.press("ArrowRight")
    expect(row.locator("output")).to_have_text(f"0.105 from {iteration + 1}, batch 1")  # before the run has taken the step
    page.wait_for_function("() => document.querySelector('.js-plotly-plot').layout.shapes.some(s => s.name === 'pending')")
    assert marks("pending") == [[iteration, "dot"]]
    assert marks("") == []
    press(page, "One step")
    expect(row.locator("output")).to_have_text(f"0.105 since {iteration + 1}, batch 1")
    page.wait_for_function("() => document.querySelector('.js-plotly-plot').layout.shapes.some(s => !s.name)")
    assert (marks("pending"), marks("")) == ([], [[iteration, "dot"]])
    expect(row.get_by_role("img")).to_have_attribute("aria-label", "MI-FGSM step ε over the iterations: 1 change")
    assert len({point.split(",")[1] for point in row.locator("polyline").get_attribute("points").split()}) == 2

    epsilon.press("ArrowRight")
    press(page, "One step")
    expect(row.locator("output")).to_have_text(f"0.11 since {iteration + 2}, batch 1")
    undo.click()
    press(page, "One step")
    expect(row.locator("output")).to_have_text(f"0.105 since {iteration + 3}, batch 1")
    start.click()
    press(page, "One step")
    expect(row.locator("output")).to_have_text(f"0.1 since {iteration + 4}, batch 1")
    expect(start).to_be_disabled()

    # only one of the methods
    page.get_by_label("Apply to").select_option("Adam")
    beta = page.get_by_role("slider", name="Labels β", exact=True)
    beta.press("ArrowRight")
    press(page, "One step")
    expect(beta.locator("xpath=..").locator("output")).to_have_text(f"2 since {iteration + 5}, batch 1")
    page.get_by_label("Apply to").select_option("MI-FGSM")
    expect(beta.locator("xpath=..").locator("output")).to_have_text("1")


@pytest.mark.slow
def test_nothing_moves_when_the_generation_ends(folder, server, browser_page):
    page, problems = browser_page
    config = replace(
        CONFIG.with_knobs({"data": few_images(folder / "data"), "images": 64, "iterations": 30, "steps": 5000}),
        training=TrainingConfig(steps=5000, training_batch_size=40),
        bits=(4,),
    )
    started(page, server, resumable(folder, config, "ends"), 2)
    during = page.evaluate(BOXES)
    expect(page.get_by_role("button", name="Last", exact=True)).to_be_visible()
    expect(page.get_by_text(re.compile("^Now training"))).to_be_visible()
    settle(page)
    after = page.evaluate(BOXES)
    assert during.pop("sliders") != []
    assert after.pop("sliders") == []
    assert [box[:2] for box in after.pop("curves")] == [box[:2] for box in during.pop("curves")]
    for kind in ("images", "player", "buttons", "progress"):
        assert after[kind] == during[kind], kind
    press(page, "Stop")
    expect(page.get_by_text("stopped", exact=True)).to_be_visible()
    assert problems == []


@pytest.mark.slow
def test_what_a_finished_run_achieved_leaves_room_for_images_and_curves(folder, server, browser_page):
    page, problems = browser_page
    config = CONFIG.with_knobs({"data": few_images(folder / "few"), "images": 64, "iterations": 4, "steps": 2, "training_batch_size": 16})
    store = RunStore(folder / "runs")
    run_id = computed(store, replace(config, bits=(4, 8)), "a network that is called by a long name, mi-fgsm + adam, W4A4 W8A8")
    store.close()
    page.goto(f"{server}/?run={run_id}")
    expect(page.get_by_role("button", name="All 4 networks")).to_be_visible()
    for width, height in WINDOWS:
        page.set_viewport_size({"width": width, "height": height})
        settle(page)
        boxes = page.evaluate(BOXES)
        assert (len(boxes["images"]), len(boxes["curves"])) == (2, 1)
        assert all(box[3] <= height for kind in ("images", "curves", "player") for box in boxes[kind]), boxes
    page.get_by_role("button", name="All 4 networks").click()
    expect(page.get_by_role("table", name=re.compile("networks")).locator("tbody tr")).to_have_count(4)
    assert problems == []
