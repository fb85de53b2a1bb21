"""Addresses of pages: what the server answers, with and without a path of its own."""

import pytest
import streamlit as st
from starlette.applications import Starlette
from starlette.testclient import TestClient

from dashboard.server import deep_links


@pytest.mark.parametrize(("base", "root"), [("", ""), ("lab/studio", "/lab/studio")])
def test_a_page_is_told_where_its_server_is(base, root, monkeypatch):
    monkeypatch.setattr(st, "get_option", lambda name: base if name == "server.baseUrlPath" else None)
    client = TestClient(Starlette(routes=deep_links.routes()))
    for page in ("quantize", "paper", "runs"):
        answer = client.get(f"{root}/{page}?run=1")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/html")
        # before the scripts of Streamlit, which read it when they are loaded
        before, _, _ = answer.text.partition('type="module"')
        assert f'BACKEND_BASE_URL: location.origin + "{root}/"' in before
        assert '<div id="root">' in answer.text
    assert client.get(f"{root}/nothing").status_code == 404
