"""Fixtures for real servers with their own stores, and for pages in a real browser."""

import re
import shutil

import pytest
from every_page import make_runs
from playwright.sync_api import expect, sync_playwright
from real_server import free_port, serving

from dashboard.pages import PAGES

ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run",
]  # fmt: skip


@pytest.fixture
def serve(tmp_path):
    """Starts a server, each time on the same store: `with serve() as (address, process)`."""
    return lambda: serving(tmp_path, free_port())


@pytest.fixture
def server(serve):
    """Address of a server with an empty store."""
    with serve() as (address, _):
        yield address


@pytest.fixture(scope="module")
def chromium():
    """The installed Chromium, or Playwright's own."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
        expect.set_options(timeout=60_000)
        yield browser
        browser.close()


# Opened at /quantize, Streamlit first looks for its server under that path, gets 404 twice, and then looks one level up
STREAMLIT_PROBES = re.compile(rf"/({'|'.join(page.name for page in PAGES)})/_stcore/(health|host-config)$")


def problems_of(page) -> list[str]:
    """A list that collects the page's console errors, script errors and failed requests, except Streamlit's own probes."""
    problems: list[str] = []

    def add(problem: str, url: str) -> None:
        if not STREAMLIT_PROBES.search(url):
            problems.append(problem)

    page.on("console", lambda message: add(message.text, message.location.get("url", "")) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("response", lambda response: add(f"{response.status} {response.url}", response.url) if response.status >= 400 else None)
    return problems


@pytest.fixture
def browser_page(chromium):
    """A Chromium page and its list of problems."""
    page = chromium.new_page(viewport={"width": 1440, "height": 1000})
    problems = problems_of(page)
    page.set_default_timeout(60_000)
    yield page, problems
    page.close()


@pytest.fixture(scope="session")
def full_server(tmp_path_factory):
    """Address of a server with a complete run and a failed one, shared by read-only tests."""
    folder = tmp_path_factory.mktemp("full")
    make_runs(folder)
    with serving(folder, free_port()) as (address, _):
        yield address


@pytest.fixture(scope="session")
def empty_server(tmp_path_factory):
    """Address of a server without runs, shared by read-only tests."""
    with serving(tmp_path_factory.mktemp("empty"), free_port()) as (address, _):
        yield address


@pytest.fixture(scope="module")
def context(chromium):
    """What the pages of a module share: above all a cache, since loading Streamlit's scripts takes a third of the time of a page."""
    with chromium.new_context(viewport={"width": 1280, "height": 900}) as context:
        context.set_default_timeout(60_000)
        yield context


@pytest.fixture
def phone(chromium):
    """A page on a phone with a touch screen, and its list of problems."""
    with chromium.new_page(viewport={"width": 390, "height": 844}, has_touch=True) as page:
        page.set_default_timeout(60_000)
        yield page, problems_of(page)


@pytest.fixture
def cached_page(context):
    """A page that shares its cache with the other tests of the module, and its list of problems."""
    with context.new_page() as page:
        yield page, problems_of(page)
