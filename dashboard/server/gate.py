"""The gate in front of every request: before the login, nothing but the login page answers.

Streamlit itself accepts uploads and sockets of any session. The gate refuses them without a login, closes the sockets of a login that
has ended, bounds what the login page's sockets may do, and refuses pages of other origins, ports included.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from streamlit import config
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg

from dashboard.pages import PAGES
from dashboard.server import access, logins, settings

POLICY_VIOLATION = 1008  # close code of RFC 6455
TOO_MANY = 1013

# sockets of login pages, for the whole server
GUESTS = 64  # open at a time: each takes up to four of the files that the server may open
GUEST_SECONDS = 300  # without a message, after which one is closed; the browser opens it again
GUEST_OPENINGS, GUEST_MESSAGES = 50, 50  # per period, of all login pages and of one
GUEST_PERIOD = 10  # seconds
GUEST_BYTES = 1 << 16  # of one message

_SWEEP_SECONDS = 0.25  # between two checks of all open sockets, so that the end of a login closes them within a second
_STREAM = "_stcore/stream"
_LOG_OUT = "auth/logout"
_PROBES = ("_stcore/health", "_stcore/host-config")
_log = logging.getLogger(__name__)


class _Socket:
    """An open WebSocket. login: None for a login page, and on a server without logins. closing: its result is the close code."""

    def __init__(self, cookies: dict[str, str], login: logins.Login | None, guest: bool) -> None:
        self.cookies, self.login, self.guest = cookies, login, guest
        self.closing: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.heard = time.monotonic()
        self._messages: deque[float] = deque(maxlen=GUEST_MESSAGES)

    def close(self, code: int = POLICY_VIOLATION) -> None:
        if not self.closing.done():
            self.closing.set_result(code)

    def check(self) -> None:
        """Closes the socket if its login has ended, or its login page has been idle. Takes a microsecond."""
        idle = self.guest and time.monotonic() - self.heard > GUEST_SECONDS
        if idle or (self.login is not None and not logins.lasts(self.login)):
            self.close()

    def hear(self, message: Message) -> None:
        """Closes the socket if it may not send this message."""
        self.heard = time.monotonic()
        # unlike `check`, this also notices changed settings
        if self.login is not None and logins.login_in(self.cookies) != self.login:
            self.close()
        if self.guest:
            self._messages.append(self.heard)
            size = len(message.get("bytes") or b"") + len(message.get("text") or "")
            if size > GUEST_BYTES or _too_often(self._messages):
                _log.warning(
                    "Closed the socket of a login page: it may send %d messages within %d seconds, of at most %d bytes each",
                    GUEST_MESSAGES, GUEST_PERIOD, GUEST_BYTES,
                )  # fmt: skip
                self.close()


def _too_often(times: deque[float]) -> bool:
    return len(times) == times.maxlen and times[-1] - times[0] < GUEST_PERIOD


class Gate:
    """ASGI middleware. A server that started with logins never answers without one, even if its settings are removed."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._guarded = settings.have_logins()
        self._looked = time.monotonic()
        self._sockets: set[_Socket] = set()
        self._openings: deque[float] = deque(maxlen=GUEST_OPENINGS)
        self._sweeper: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or passes it on."""
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _has_logins(self) -> bool:
        if not self._guarded and time.monotonic() - self._looked > 1:  # looking for secrets that are not there takes 0.3 ms
            self._guarded, self._looked = settings.have_logins(), time.monotonic()
        return self._guarded

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def send_with_policy(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message).append("Content-Security-Policy", "frame-ancestors 'self'")
            await send(message)

        if refusal := self._refusal(scope):
            await PlainTextResponse(refusal, status_code=403)(scope, receive, send_with_policy)
            return
        try:
            await self._app(scope, receive, send_with_policy)
        except Exception:
            if not started:  # otherwise Starlette would answer, outside of the gate
                await PlainTextResponse("Internal Server Error", status_code=500)(scope, receive, send_with_policy)
            raise

    def _refusal(self, scope: Scope) -> str:
        """Why a request is refused, in one sentence; "" if it is not. The login that a request to log out ends has ended afterwards."""
        if scope["method"] not in ("GET", "HEAD", "OPTIONS") and not _is_own_origin(Headers(scope=scope)):
            return "This page is on another server."
        if not self._has_logins():
            return ""
        name, cookies = _name(scope), HTTPConnection(scope).cookies
        login = logins.login_in(cookies)
        if name == _LOG_OUT and (account := logins.account_in(cookies)):
            logins.end(account)
        return "" if login is not None or _is_public(scope["method"], name) else "Log in first."

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        name, cookies = _name(scope), dict(HTTPConnection(scope).cookies)
        login = logins.login_in(cookies) if self._has_logins() else None
        guest = self._has_logins() and login is None
        refusal = ""
        if not _is_own_origin(Headers(scope=scope)):
            refusal = "its page is on another server"
        elif guest and name != _STREAM:
            refusal = "it has no login"
        elif guest and not self._has_room():
            refusal = f"login pages opened {GUEST_OPENINGS} within {GUEST_PERIOD} seconds"
        if refusal:
            _log.warning("Refused a socket to %r: %s", name[:100], refusal)
            await send({"type": "websocket.close", "code": POLICY_VIOLATION})
            return
        if guest and len(scope["subprotocols"]) > 2:  # the third is the session that a page wants to continue
            await _reload_page(scope, receive, send)
            return
        await self._connected(_Socket(cookies, login, guest), scope, receive, send)

    def _has_room(self) -> bool:
        """Whether one more login page may open a socket; closes the one that has been silent for longest if there are many."""
        self._openings.append(time.monotonic())
        if _too_often(self._openings):
            return False
        guests = sorted((socket for socket in self._sockets if socket.guest), key=lambda socket: socket.heard)
        for socket in guests[: len(guests) - GUESTS + 1]:
            socket.close(TOO_MANY)
        return True

    async def _connected(self, socket: _Socket, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a socket on until one side closes it, or it may not stay open."""
        connecting, closed = True, False

        async def receive_while_admitted() -> Message:
            nonlocal connecting, closed
            if connecting:
                connecting = False
                return await receive()
            coming = asyncio.ensure_future(receive())
            try:
                either: set[asyncio.Future[Any]] = {coming, socket.closing}
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                if coming.done():
                    message = coming.result()
                    if message["type"] == "websocket.receive":
                        socket.hear(message)
                    if not socket.closing.done():
                        return message
            finally:
                coming.cancel()
            if not closed:
                closed = True
                with suppress(RuntimeError, OSError):  # the browser has closed it meanwhile
                    await send({"type": "websocket.close", "code": socket.closing.result()})
            return {"type": "websocket.disconnect", "code": socket.closing.result()}

        async def send_while_admitted(message: Message) -> None:
            if not closed:
                await send(message)

        self._sockets.add(socket)
        if self._sweeper is None or self._sweeper.done():
            self._sweeper = asyncio.create_task(self._sweep())
        try:
            await self._app(scope, receive_while_admitted, send_while_admitted)
        finally:
            self._sockets.discard(socket)

    async def _sweep(self) -> None:
        while self._sockets:
            await asyncio.sleep(_SWEEP_SECONDS)
            for socket in list(self._sockets):
                socket.check()


def _name(scope: Scope) -> str:
    """The requested path below Streamlit's base path."""
    return scope["path"].removeprefix(settings.path()) if scope["path"] + "/" != settings.path() else ""


def _is_public(method: str, name: str) -> bool:
    """Whether the login page, or a browser on the way to it, asks for this."""
    if method == "POST":
        return name == access.LOGIN_PATH
    if method not in ("GET", "HEAD"):
        return False
    folders = ["", *(f"{page.name}/" for page in PAGES)]
    pages = {*folders, *(page.name for page in PAGES)}
    probes = {f"{folder}{probe}" for folder in folders for probe in _PROBES}
    files = {"index.html", "favicon.png", "manifest.json"}
    return name.startswith("static/") or name in pages | probes | files | {"auth/login", _LOG_OUT, "oauth2callback"}


def _is_own_origin(headers: Headers) -> bool:
    """Whether the page that sends a request is one of this server, or of one that `server.corsAllowedOrigins` lists.

    Browsers name the page's origin in every request that could do harm; other programs need not. Another port is another origin.
    """
    origin = headers.get("origin")
    if origin is None or not config.get_option("server.enableCORS"):
        return True
    allowed = {_host_and_port(f"//{headers.get('host', '')}", urlsplit(origin).scheme)}
    if config.is_manually_set("browser.serverAddress"):  # behind a proxy that does not pass on the name
        port = f":{config.get_option('browser.serverPort')}" if config.is_manually_set("browser.serverPort") else ""
        allowed.add(_host_and_port(f"//{config.get_option('browser.serverAddress')}{port}", urlsplit(origin).scheme))
    return origin in (config.get_option("server.corsAllowedOrigins") or ()) or _host_and_port(origin, "") in allowed - {None}


def _host_and_port(address: str, scheme: str) -> tuple[str, int | None] | None:
    try:
        parts = urlsplit(address)
        port = parts.port or {"https": 443, "http": 80}.get(parts.scheme or scheme)
    except ValueError:
        return None
    return (parts.hostname, port) if parts.hostname else None


async def _reload_page(scope: Scope, receive: Receive, send: Send) -> None:
    """Makes a page load again that wants to continue its session without a login, so that it shows the login and not what it had."""
    reload = ForwardMsg()
    reload.auth_redirect.url = ""  # relative to the page
    await receive()
    await send({"type": "websocket.accept", "subprotocol": scope["subprotocols"][0]})
    await send({"type": "websocket.send", "bytes": reload.SerializeToString()})
    await send({"type": "websocket.close", "code": POLICY_VIOLATION})
