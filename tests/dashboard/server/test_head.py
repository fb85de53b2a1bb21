"""The styles in the HTML of every page."""

import gzip

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import HTMLResponse, PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from dashboard.server.head import STYLES, Head

PAGE = "<!DOCTYPE html><html><head><style>p {}</style></head><body><p>é</p></body></html>"
HTML = {"accept": "text/html,*/*"}


async def page(request):
    if request.headers.get("if-none-match"):
        return HTMLResponse(status_code=304)
    if "gzip" in request.headers.get("accept-encoding", ""):
        return HTMLResponse(gzip.compress(PAGE.encode()), headers={"content-encoding": "gzip"})
    return HTMLResponse(PAGE, headers={"etag": '"1"', "cache-control": "no-cache"})


async def script(request):
    return PlainTextResponse("</body>", headers={"etag": '"1"'})


@pytest.fixture
def client():
    app = Starlette(routes=[Route("/", page), Route("/script", script)], middleware=[Middleware(Head)])
    return TestClient(app, headers=HTML)


def test_a_page_has_the_styles_at_its_end(client):
    answer = client.get("/")
    styles = f"<style>{STYLES.read_text(encoding='utf-8')}</style>"
    assert answer.text == PAGE.replace("</body>", styles + "</body>")
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert answer.headers["cache-control"] == "no-cache"


def test_a_browser_does_not_keep_older_styles(client):
    assert "etag" not in client.get("/").headers
    assert client.get("/", headers={"if-none-match": '"1"'}).status_code == 200


def test_other_answers_are_as_they_were(client):
    assert client.get("/script").text == "</body>"
    assert client.get("/script").headers["etag"] == '"1"'
    # a program that takes anything
    assert "<style>p {}</style></head><body><p>é</p></body>" in client.get("/", headers={"accept": "*/*"}).text


def test_an_answer_without_content_has_none(client):
    answer = client.head("/")
    assert answer.content == b""
    assert answer.status_code == 200
