"""Names with markup, links, formulas or scripts are shown as typed in a real browser."""

import json
import re
from dataclasses import asdict, replace
from urllib.parse import quote, urlsplit

import pytest
from computed_runs import computed, few_images
from every_page import settle
from playwright.sync_api import expect
from real_server import free_port, serving
from safetensors.torch import load_file, save_file

from core.config import EvaluationConfig, GenerationConfig, MachineConfig, RunConfig, TrainingConfig
from core.errors import CoreError
from core.models.registry import MODELS
from core.runs.state import RunState
from core.runs.store import RunStore

HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "[x](javascript:alert(1))",
    "$\\LaTeX$ $$x$$",
    ":red[x] :smile: :material/home:",
    '<a href="https://e.example">y</a>',
    "https://e.example www.e.example m@e.example",
    "`code` **b** _i_ ~~s~~ # h",
    "![i](https://e.example/i.png) &lt;b&gt; &amp;",
    "a -> b -- c <= d",
    "<script>alert(1)</script><b>t</b><br>",
)
NAME = " | ".join(HOSTILE)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A store with a complete and a failed run whose names are all hostile: its folder, both ids, and the error of the failed run."""
    folder = tmp_path_factory.mktemp("hostile")
    path, spec = MODELS["resnet20_cifar10"]
    network = folder / "[x](javascript:alert(1)) :red[f] $a$ <b>.safetensors"
    spec = replace(spec, name=NAME[:200], classes=HOSTILE, trained_on=NAME)
    save_file(load_file(path), network, metadata={"spec": json.dumps(asdict(spec))})
    data = few_images(folder / "<img src=x onerror=alert(2)> :red[d] $b$ https:")
    store = RunStore(folder / "runs")
    config = RunConfig(
        model=str(network),
        machine=MachineConfig(device="cpu"),
        generation=GenerationConfig(images=40, iterations=2, batch_size=20, snapshots=1),
        training=TrainingConfig(steps=2, training_batch_size=20),
        bits=(4,),
        evaluation=EvaluationConfig(data=data),
    )
    complete = computed(store, config, NAME)
    with pytest.raises(CoreError, match=re.escape(HOSTILE[0])):
        computed(store, config.with_knobs({"encoder": NAME}), NAME)
    failed = store.runs()[0]
    assert failed.state is RunState.FAILED
    store.close()
    return folder / "runs", complete, failed.id, failed.error


@pytest.fixture(scope="module")
def server(runs):
    """Address of a server with that store."""
    with serving(runs[0].parent, free_port()) as (address, _):
        yield address


def is_outside(url: str) -> bool:
    return urlsplit(url).hostname not in ("127.0.0.1", None)  # data: and blob: have no host


@pytest.fixture
def page(context):
    """A page that records dialogs and requests to other machines."""
    page = context.new_page()
    page.dialogs, page.outside = [], []
    page.on("dialog", lambda dialog: (page.dialogs.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: page.outside.append(request.url) if is_outside(request.url) else None)
    yield page
    page.close()


def unhidden(text: str) -> str:
    """The text in one line, without the invisible characters that break up links."""
    return re.sub(r"\s+", " ", text.replace("\u2060", ""))


def injected(page) -> list[str]:
    """Elements injected by a name."""
    return page.evaluate(
        """() => [...document.querySelectorAll('.stApp *')].filter(e =>
            (e.tagName == 'IMG' && !(e.getAttribute('src') || '').startsWith('data:image/png')) ||
            (e.tagName == 'SCRIPT' && !e.closest('.st-key-download-buttons')) || e.hasAttribute('onerror') ||
            (e.tagName.toUpperCase() == 'A' && e.href && new URL(e.href.baseVal ?? e.href, location.href).origin != location.origin) ||
            ((e.className.baseVal ?? e.className) + '').includes('katex') ||
            (['B', 'CODE', 'DEL', 'EM'].includes(e.tagName) && ['b', 't', 'code', 's', 'i', 'x'].includes(e.textContent))
        ).map(e => e.outerHTML.slice(0, 200))"""
    )


@pytest.mark.slow
@pytest.mark.parametrize(("name", "charts"), [("", 1), ("quantize", 7), ("diversity", 3)], ids=["studio", "quantize", "diversity"])
def test_names_are_shown_as_typed(server, runs, page, name, charts):
    page.goto(f"{server}/{name}?run={runs[1]}")
    expect(page.locator(".stMarkdownBadge:text-is('complete')")).to_be_visible()
    expect(page.locator(".js-plotly-plot .main-svg").first).to_be_visible()
    expect(page.locator(".js-plotly-plot")).to_have_count(charts)
    settle(page)
    headline = page.locator("[data-testid=stMarkdownContainer] strong").first
    assert unhidden(headline.inner_text()) == NAME
    assert injected(page) == []
    assert page.get_by_test_id("stException").count() == 0
    body = unhidden(page.locator("body").inner_text())
    if name == "":
        for one in HOSTILE:
            assert one in body, one
    if name == "diversity":
        ticks = {unhidden(text) for text in page.locator(".xtick text").all_text_contents()}
        assert {one for one in HOSTILE if len(one) <= 40} <= ticks
    if name == "quantize":
        assert "<img src=x onerror=alert(2)> :red[d] $b$ https:" in body
    assert page.dialogs == []
    assert page.outside == []


@pytest.mark.slow
def test_error_of_a_run_is_shown_as_text(server, runs, page):
    page.goto(f"{server}/?run={runs[2]}")
    expect(page.get_by_text("failed", exact=True)).to_be_visible()
    settle(page)
    assert unhidden(runs[3]) in unhidden(page.get_by_test_id("stAlert").inner_text())
    assert injected(page) == []
    assert page.dialogs == page.outside == []


@pytest.mark.slow
def test_list_of_runs_shows_names_as_typed(server, runs, page):
    page.goto(f"{server}/runs")
    page.get_by_role("grid", name="Runs").get_by_role("checkbox").first.click()
    expect(page.get_by_role("button", name="Pin as baseline")).to_be_visible()
    settle(page)
    assert unhidden(page.locator("[data-testid=stMarkdownContainer] strong").first.inner_text()) == NAME
    assert injected(page) == []
    assert page.dialogs == page.outside == []


IMAGE = "run=" + quote("<img src=x onerror=alert(1)>")
QUERIES = {  # page -> queries; every page reads the run in the same way
    "": [
        "run=../../etc/passwd",
        "run=" + "x" * 6000,
        "run=a&run=b&run=%2Fetc%2Fpasswd",
        "run=%00%0a%1b[2J%e2%80%ae",
        "run=' OR 1=1 --",
        "run=%ff%fe",
        "run=&other=" + quote(NAME),
        "run",
        IMAGE,
    ],
    "quantize": [IMAGE, "from=" + quote(NAME), "run=%00%0a%1b[2J%e2%80%ae"],
    "compare": [IMAGE, "runs=" + quote(f"{NAME},x,,") + "&curve=%00&x=7&smoothing=nan&methods=" + quote(NAME)],
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "query"), [(name, query) for name, queries in QUERIES.items() for query in queries])
def test_hostile_addresses(server, runs, page, query, name):
    page.goto(f"{server}/{name}?{query}")
    expect(page.get_by_role("heading", name=name.capitalize() or "Studio", exact=True)).to_be_visible()
    page.wait_for_timeout(300)
    assert page.get_by_test_id("stException").count() == 0
    assert injected(page) == []
    assert page.dialogs == page.outside == []
