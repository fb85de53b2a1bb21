"""What somebody without a login can do to a real server: nothing that stays."""

import asyncio
import os
import resource
import sys
import time
from pathlib import Path

import httpx
import pytest
import websockets
from real_server import free_port, serving

from dashboard.server.access import LOGIN_HEADER

TOKEN = "correct horse battery"
FILES = 1024


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Address and process of a server with a login that may open 1,024 files, which is the usual limit."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(FILES, before[1]), before[1]))
    try:
        with serving(tmp_path_factory.mktemp("login"), free_port(), DASHBOARD_TOKEN=TOKEN) as running:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
            yield running
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def browser(address):
    return httpx.Client(base_url=address, trust_env=False, timeout=60)


def stream(address):
    return websockets.connect(address.replace("http", "ws") + "/_stcore/stream", proxy=None, open_timeout=60)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of the process from /proc")
def test_uploads_before_the_login_take_no_memory(server):
    address, process = server

    def megabytes():
        lines = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024

    async def upload():
        async with stream(address):  # a session of the login page, as an attacker has one
            content = b"x" * (100 << 20)
            with browser(address) as client:
                for number in range(5):
                    try:
                        answer = client.put(f"/_stcore/upload_file/{'0' * 36}/{number}", content=content)
                        assert (answer.status_code, answer.text) == (403, "Log in first.")
                    except (httpx.WriteError, httpx.ReadError):
                        pass  # the server hung up before it had read the file

    before = megabytes()
    asyncio.run(upload())
    assert megabytes() - before < 30


@pytest.mark.slow
def test_four_hundred_silent_sockets_before_the_login_do_not_stop_the_server(server):
    address, process = server

    async def attack():
        opened, refused = [], 0
        for _ in range(400):
            try:
                opened.append(await stream(address))
            except websockets.InvalidStatus:
                refused += 1
        if sys.platform == "linux":
            assert len(os.listdir(f"/proc/{process.pid}/fd")) < FILES / 2
        with browser(address) as client:
            assert client.get("/_stcore/health").text == "ok"
            assert "<html" in client.get("/runs").text
        for socket in opened:
            await socket.close()
        return len(opened), refused

    opened, refused = asyncio.run(attack())
    assert opened < 100
    assert opened + refused == 400


@pytest.mark.slow
def test_ten_guesses_a_minute_and_no_more(server):
    address, _ = server
    with browser(address) as client:
        began, statuses = time.monotonic(), []
        for number in range(100):
            statuses.append(client.post("/login", headers={LOGIN_HEADER: f"a.guess.{number}"}).status_code)
        assert time.monotonic() - began < 60
        assert statuses == [403] * 10 + [429] * 90
        assert "10 wrong tokens within 60 seconds" in client.post("/login", headers={LOGIN_HEADER: "a.guess.100"}).text
