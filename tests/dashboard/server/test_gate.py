"""The gate: what it lets through before the login, when it closes sockets, and which origins it refuses."""

import time

import pytest
from login_cookies import TOKEN, account_cookie, token_cookie
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect
from streamlit import config
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg

from dashboard.pages import PAGES
from dashboard.server import gate, logins, settings

STREAM = "/_stcore/stream"
POLICY = "frame-ancestors 'self'"


async def answer(request):
    return PlainTextResponse(f"{request.method} {len(await request.body())} bytes")


async def fail(request):
    raise RuntimeError("a fault")


async def echo(socket):
    """Sends back what it gets, after the subprotocols that it was asked for."""
    await socket.accept()
    await socket.send_text(socket.headers.get("sec-websocket-protocol", ""))
    try:
        while True:
            await socket.send_text(await socket.receive_text())
    except WebSocketDisconnect:
        echo.ended = time.monotonic()


@pytest.fixture
def client():
    """A browser of a server that answers every request, behind the gate. The settings are those at the first request."""
    routes = [
        WebSocketRoute("/{path:path}", echo),
        Route("/fail", fail),
        Mount("/", Route("/{path:path}", answer, methods=["GET", "POST", "PUT", "DELETE"])),
    ]
    with TestClient(Starlette(routes=routes, middleware=[Middleware(gate.Gate)]), raise_server_exceptions=False) as browser:
        yield browser


ALWAYS = [
    "/", "/index.html", "/favicon.png", "/manifest.json", "/static/js/main.js", "/_stcore/health", "/_stcore/host-config",
    "/auth/login", "/oauth2callback?code=1", *(f"/{page.name}" for page in PAGES), "/runs/", "/runs/_stcore/health",
]  # fmt: skip
NOT_BEFORE_THE_LOGIN = [
    "/media/0.png", "/_stcore/metrics", "/_stcore/upload_file/a/b", "/component/a", "/_stcore/bidi-components/a/b.js", "/plotly-6.js",
    "/_stcore/agent/mcp", "/app/static/file", "/runs/media", "//media/0.png", "/static", "/follow", "/login", "/unknown",
]  # fmt: skip


def test_before_the_login_only_the_login_page_answers(with_token, client):
    assert {client.get(path).status_code for path in ALWAYS} == {200}
    for path in NOT_BEFORE_THE_LOGIN:
        answer = client.get(path)
        assert (answer.status_code, answer.text) == (403, "Log in first."), path
    assert client.post("/login").status_code == 200
    client.cookies = token_cookie()
    assert {client.get(path).status_code for path in (*ALWAYS, *NOT_BEFORE_THE_LOGIN)} == {200}


@pytest.mark.parametrize("method", ["PUT", "POST", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("path", ["/", "/runs", "/_stcore/upload_file/a/b", "/static/a"])
def test_nothing_is_uploaded_before_the_login(method, path, with_token, client):
    assert client.request(method, path, content=b"x" * 1000).status_code == 403


def test_accounts_open_the_gate_and_logging_out_closes_it(with_accounts, client):
    assert client.get("/media/0.png").status_code == 403
    cookies = account_cookie(email="anna@lab.example")
    client.cookies = cookies
    assert client.get("/media/0.png").status_code == 200
    assert client.get("/auth/logout").status_code == 200
    client.cookies = cookies  # as somebody might who kept it
    assert client.get("/media/0.png").status_code == 403


def test_an_account_that_is_not_invited_stays_outside(monkeypatch, with_accounts, client):
    monkeypatch.setenv(settings.USERS_VARIABLE, "@else.example")
    client.cookies = account_cookie(email="anna@lab.example")
    assert client.get("/media/0.png").status_code == 403


def test_without_logins_everything_answers(client):
    assert {client.get(path).status_code for path in (*ALWAYS, *NOT_BEFORE_THE_LOGIN)} == {200}
    assert client.put("/_stcore/upload_file/a/b", content=b"x").text == "PUT 1 bytes"
    with client.websocket_connect("/follow", subprotocols=["streamlit", "xsrf", "session"]) as socket:
        assert socket.receive_text() == "streamlit, xsrf, session"


def test_removed_settings_do_not_open_a_server_that_has_logins(monkeypatch, with_token, client):
    assert client.get("/media/0.png").status_code == 403
    monkeypatch.delenv(settings.TOKEN_VARIABLE)
    assert client.get("/media/0.png").status_code == 403


def test_a_base_path_is_no_way_around(monkeypatch, with_token, client):
    before = config.get_option("server.baseUrlPath")
    config.set_option("server.baseUrlPath", "studio")
    try:
        paths = ("/studio", "/studio/", "/studio/runs", "/studio/static/a", "/studio/media/a", "/media/a", "/static/a", "/")
        assert [client.get(path).status_code for path in paths] == [200] * 4 + [403] * 4
    finally:
        config.set_option("server.baseUrlPath", before)


def test_no_other_site_may_frame_any_answer(with_token, client):
    for path in ("/", "/media/0.png", "/login"):
        assert client.get(path).headers["Content-Security-Policy"] == POLICY
    client.cookies = token_cookie()
    broken = client.get("/fail")
    assert (broken.status_code, broken.headers["Content-Security-Policy"]) == (500, POLICY)


ORIGINS = [
    ("http://testserver", True),
    ("http://testserver:80", True),
    ("http://TESTSERVER", True),
    ("http://testserver:8502", False),
    ("http://evil.example", False),
    ("http://testserver.evil.example", False),
    ("null", False),
    ("http://testserver:x", False),
    ("", False),
]


@pytest.mark.parametrize(("origin", "own"), ORIGINS)
@pytest.mark.parametrize("logged_in", [True, False], ids=["logged in", "no logins"])
def test_pages_of_other_origins_are_refused_ports_included(origin, own, logged_in, monkeypatch, client):
    if logged_in:
        monkeypatch.setenv(settings.TOKEN_VARIABLE, TOKEN)
        client.cookies = token_cookie()
    headers = {"Origin": origin}
    assert client.post("/login", headers=headers).status_code == (200 if own else 403)
    assert client.put("/_stcore/upload_file/a/b", headers=headers).status_code == (200 if own else 403)
    for path in ("/follow", STREAM):
        if own:
            with client.websocket_connect(path, headers=headers) as socket:
                socket.receive_text()
        else:
            with pytest.raises(WebSocketDisconnect) as refused, client.websocket_connect(path, headers=headers):
                pass
            assert refused.value.code == gate.POLICY_VIOLATION


def test_origins_that_the_settings_allow(client):
    before = config.get_option("server.corsAllowedOrigins")
    config.set_option("server.corsAllowedOrigins", ["https://lab.example:8443"])
    try:
        assert client.post("/login", headers={"Origin": "https://lab.example:8443"}).status_code == 200
        assert client.post("/login", headers={"Origin": "https://lab.example"}).status_code == 403
    finally:
        config.set_option("server.corsAllowedOrigins", before)


def closed_within(socket, seconds):
    """The close code that a socket gets within this time."""
    asked = time.monotonic()
    while time.monotonic() - asked < seconds:
        try:
            socket.receive_text()
        except WebSocketDisconnect as closed:
            return closed.code
    return None


@pytest.mark.parametrize("path", [STREAM, "/follow"])
def test_the_end_of_a_login_closes_its_sockets_within_a_second(path, with_token, client):
    anna, emma = token_cookie("Anna"), token_cookie("Emma")
    client.cookies = emma
    with client.websocket_connect(path) as other:
        client.cookies = anna
        with client.websocket_connect(path) as socket:
            echo.ended = None
            logins.end(logins.login_in(anna))
            assert closed_within(socket, 1) == gate.POLICY_VIOLATION
            time.sleep(0.1)
            assert echo.ended is not None  # so Streamlit ends the session
        with pytest.raises(WebSocketDisconnect), client.websocket_connect("/follow"):
            pass
        other.receive_text()
        other.send_text("still here")
        assert other.receive_text() == "still here"


def test_an_expired_login_closes_its_sockets_within_a_second(monkeypatch, with_token, client):
    client.cookies = token_cookie()
    with client.websocket_connect("/follow") as socket:
        later = time.time() + logins.SECONDS + 1
        monkeypatch.setattr(logins.time, "time", lambda: later)
        assert closed_within(socket, 1) == gate.POLICY_VIOLATION


@pytest.mark.parametrize("change", ["the token", "who is invited"])
def test_no_message_passes_after_the_settings_took_the_login_away(change, monkeypatch, with_token, with_accounts, client):
    client.cookies = token_cookie() if change == "the token" else account_cookie(email="anna@lab.example")
    with client.websocket_connect("/follow") as socket:
        socket.receive_text()
        if change == "the token":
            monkeypatch.setenv(settings.TOKEN_VARIABLE, TOKEN + "x")
        else:
            monkeypatch.setenv(settings.USERS_VARIABLE, "@else.example")
        socket.send_text("stop the run")
        assert closed_within(socket, 1) == gate.POLICY_VIOLATION


def test_before_the_login_only_the_login_page_has_a_socket(with_token, client, caplog):
    with pytest.raises(WebSocketDisconnect) as refused, client.websocket_connect("/follow"):
        pass
    assert refused.value.code == gate.POLICY_VIOLATION
    assert caplog.messages == ["Refused a socket to 'follow': it has no login"]
    with client.websocket_connect(STREAM, subprotocols=["streamlit", "xsrf"]) as socket:
        assert socket.receive_text() == "streamlit, xsrf"


def test_a_page_without_a_login_cannot_continue_a_session_and_loads_again(with_token, client):
    with client.websocket_connect(STREAM, subprotocols=["streamlit", "xsrf", "the session of somebody"]) as socket:
        message = ForwardMsg.FromString(socket.receive_bytes())
        assert message.WhichOneof("type") == "auth_redirect"
        assert closed_within(socket, 1) == gate.POLICY_VIOLATION


def test_sockets_of_login_pages_are_bounded_in_size_number_and_time(monkeypatch, with_token, client):
    with client.websocket_connect(STREAM) as socket:
        socket.send_text("x" * gate.GUEST_BYTES)
        socket.send_text("x" * (gate.GUEST_BYTES + 1))
        assert closed_within(socket, 1) == gate.POLICY_VIOLATION
    with client.websocket_connect(STREAM) as socket:
        for _ in range(gate.GUEST_MESSAGES):
            socket.send_text("x")
        assert closed_within(socket, 1) == gate.POLICY_VIOLATION
    monkeypatch.setattr(gate, "GUEST_SECONDS", 0.1)
    with client.websocket_connect(STREAM) as socket:
        assert closed_within(socket, 1) == gate.POLICY_VIOLATION
    client.cookies = token_cookie()
    with client.websocket_connect(STREAM) as socket:
        socket.receive_text()
        for _ in range(2 * gate.GUEST_MESSAGES):
            socket.send_text("x" * 2 * gate.GUEST_BYTES)
            assert len(socket.receive_text()) == 2 * gate.GUEST_BYTES


def test_the_newest_login_pages_keep_their_sockets(monkeypatch, with_token, client):
    monkeypatch.setattr(gate, "GUESTS", 2)
    with client.websocket_connect(STREAM) as first, client.websocket_connect(STREAM) as second, client.websocket_connect(STREAM) as third:
        assert closed_within(first, 1) == gate.TOO_MANY
        for socket in (second, third):
            socket.receive_text()
            socket.send_text("still here")
            assert socket.receive_text() == "still here"


def test_login_pages_that_open_too_many_sockets_are_refused(with_token, client):
    def opens():
        try:
            with client.websocket_connect(STREAM) as socket:
                socket.receive_text()
            return True
        except WebSocketDisconnect:
            return False

    opened = [opens() for _ in range(gate.GUEST_OPENINGS + 5)]
    assert opened == [True] * (gate.GUEST_OPENINGS - 1) + [False] * 6
    client.cookies = token_cookie()
    assert opens()
