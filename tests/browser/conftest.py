"""A real server on a store of its own, and a page of a real browser."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect, sync_playwright

ROOT = Path(__file__).parents[2]
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run",
]  # fmt: skip


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def serving(runs: Path, log_path: Path) -> Iterator[tuple[str, subprocess.Popen]]:
    """Address and process of a server; ended afterwards, if it still lives."""
    port = free_port()
    with log_path.open("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "streamlit", "run", "--server.port", str(port)],
            cwd=ROOT,
            env={**os.environ, "RUNS_DIR": str(runs)},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        address = f"http://127.0.0.1:{port}"
        try:
            for _ in range(120):
                assert process.poll() is None, log_path.read_text()
                try:
                    urllib.request.urlopen(f"{address}/_stcore/health", timeout=1)
                    break
                except OSError:
                    time.sleep(0.5)
            yield address, process
        finally:
            process.terminate()
            process.wait(60)


@pytest.fixture
def serve(tmp_path):
    """Starts a server on one store, again where one was killed: `with serve() as (address, process)`."""
    return lambda: serving(tmp_path / "runs", tmp_path / "log")


@pytest.fixture
def server(serve):
    """Address of a server on an empty store."""
    with serve() as (address, _):
        yield address


@pytest.fixture
def browser_page():
    """A page of Chromium: Debian's where it is installed, else playwright's own; and what went wrong in it."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1440, "height": 1000})
        problems: list[str] = []
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("response", lambda response: problems.append(f"{response.status} {response.url}") if response.status >= 400 else None)
        page.set_default_timeout(60_000)
        expect.set_options(timeout=60_000)
        yield page, problems
        browser.close()
