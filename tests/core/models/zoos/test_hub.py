import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants, hf_hub_download

from core.models.zoos import hub
from core.models.zoos.hub import hub_asked_once


@pytest.fixture(autouse=True)
def _online(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.fixture
def answering(request, monkeypatch):
    """A hub that answers every request with one status; the list of its requests."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            asked.append(self.path)
            self.send_response(request.param)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield asked
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("answering", [200, 401, 404], indirect=True)
def test_a_hub_that_answers_is_used(answering):
    with hub_asked_once():
        assert not constants.HF_HUB_OFFLINE
    assert len(answering) == 1
    with pytest.raises(KeyError, match="kept"), hub_asked_once():
        raise KeyError("kept")


@pytest.mark.parametrize("answering", [429, 502, 503], indirect=True)
def test_a_failing_hub_is_not_asked_again(answering):
    with pytest.raises(ConnectionError, match=r"does not answer: status (429|502|503)$"), hub_asked_once():
        hf_hub_download("an/unknown-network", "model.safetensors")
    assert len(answering) == 1
    assert not constants.HF_HUB_OFFLINE


def test_a_hub_that_never_answers_has_a_time_limit(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(hub, "SECONDS", 0.3)
        began = time.monotonic()
        with pytest.raises(ConnectionError, match=r"does not answer: "), hub_asked_once():
            hf_hub_download("an/unknown-network", "model.safetensors")
        assert time.monotonic() - began < 5


def test_what_was_downloaded_is_used_without_the_hub(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    kept = tmp_path / "models--an--network"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("0" * 40, encoding="utf-8")
    (kept / "snapshots" / ("0" * 40)).mkdir(parents=True)
    (kept / "snapshots" / ("0" * 40) / "model.safetensors").write_bytes(b"weights")
    with hub_asked_once():
        found = hf_hub_download("an/network", "model.safetensors", cache_dir=tmp_path)
    assert Path(found).read_bytes() == b"weights"
