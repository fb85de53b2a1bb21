"""Access control: users on this machine need no login, everyone else does.

Two kinds of login, which can be combined: accounts of an OpenID Connect provider (`[auth]` in .streamlit/secrets.toml, through Streamlit's
`st.login`), and one token shared by the users of a lab machine, who each enter a name. The name is kept in a signed cookie; the server
stores nothing about it.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

import streamlit as st
from itsdangerous import BadData, URLSafeTimedSerializer
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from streamlit.errors import StreamlitSecretNotFoundError

TOKEN_VARIABLE = "DASHBOARD_TOKEN"
USERS_VARIABLE = "DASHBOARD_USERS"
UNPROTECTED_VARIABLE = "DASHBOARD_UNPROTECTED"

SHORTEST_SECRET = 16  # characters of the token and of cookie_secret, which must not be guessable
LONGEST_NAME = 40
LOGIN_SECONDS = 7 * 24 * 3600

# counted for the whole server, because an attacker can use any number of addresses and sessions
WRONG_TOKENS = 10
WRONG_TOKENS_SECONDS = 60
_wrong_tokens: deque[float] = deque(maxlen=WRONG_TOKENS)
_wrong_tokens_lock = threading.Lock()

# the browser sends the login in a custom header, which another site cannot do without a CORS preflight
LOGIN_HEADER = "X-Dashboard-Login"


def is_loopback(address: str | None) -> bool:
    """Whether a server on this address can be reached from this machine only. None or "" is every address, Streamlit's default."""
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address or "").is_loopback
    except ValueError:
        return False


def objection() -> str:
    """Why this server must not start, in one sentence that says what to do; "" if it may."""
    token = _token()
    if token is not None and len(token) < SHORTEST_SECRET:
        return (
            f"{TOKEN_VARIABLE} must have at least {SHORTEST_SECRET} characters, got {len(token)}; "
            "python3 -c 'import secrets; print(secrets.token_urlsafe())' prints one."
        )
    try:
        auth = _auth()
    except StreamlitSecretNotFoundError as error:
        return f"Cannot read the login settings: {error}"
    if auth is not None and len(str(auth.get("cookie_secret", ""))) < SHORTEST_SECRET:
        return (
            f"cookie_secret of [auth] in secrets.toml must have at least {SHORTEST_SECRET} characters, "
            f"got {len(str(auth.get('cookie_secret', '')))}."
        )
    address = st.get_option("server.address")
    if token is None and auth is None and not is_loopback(address) and os.environ.get(UNPROTECTED_VARIABLE) != "1":
        return (
            f"The address {address or '0.0.0.0'} is open to other machines and there is no login: set {TOKEN_VARIABLE}, or [auth] in "
            f".streamlit/secrets.toml, or {UNPROTECTED_VARIABLE}=1 to admit everyone who can reach it."
        )
    return ""


def refuse_to_start() -> None:
    """Exits with the objection on stderr, if there is one. Called when the server imports the app, before it listens."""
    if problem := objection():
        sys.exit(problem)


def routes() -> list[BaseRoute]:
    """The route that sets the login cookie: only an HTTP response can set a cookie that scripts cannot read."""
    return [Route(path("login"), _keep_login, methods=["POST"])]


def user() -> str:
    """Name of the user: from the account, or as entered with the token; "" if nobody is logged in or no login is configured."""
    account = _account()
    return account if account and _is_invited() else _name_in_cookie()


def admit() -> None:
    """Returns if the session is admitted; otherwise draws the login, or the reason why there is none, and stops the script."""
    if problem := objection():
        st.error(problem)  # reached only if the app is served without importing it first
        st.stop()
    if _token() is None and _auth() is None:
        return
    if name := user():
        _draw_account(name)
        return
    _draw_login(uninvited=_account())
    st.stop()


def _token() -> str | None:
    return os.environ.get(TOKEN_VARIABLE)


def _auth() -> Mapping[str, Any] | None:
    try:
        return st.secrets.get("auth")
    except StreamlitSecretNotFoundError as error:
        # a missing file is usual; an invalid one must not count as "no login", because a local proxy could then open the pages to all
        if error.error_id == "no-secrets-found":
            return None
        raise


def _account() -> str:
    if _auth() is None or not st.user.get("is_logged_in"):
        return ""
    return next((str(st.user[claim]) for claim in ("email", "name", "preferred_username", "sub") if st.user.get(claim)), "")


def _is_invited() -> bool:
    """Whether USERS_VARIABLE lists the account's e-mail address or @domain; if it is empty, every account is invited."""
    invited = {entry.strip().casefold() for entry in os.environ.get(USERS_VARIABLE, "").split(",")} - {""}
    if not invited:
        return True
    email = str(st.user.get("email") or "").casefold()
    return st.user.get("email_verified") is not False and bool({email, "@" + email.rpartition("@")[2]} & invited)


def path(name: str = "") -> str:
    """Path of `name` on this server, including Streamlit's base path."""
    base = (st.get_option("server.baseUrlPath") or "").strip("/")
    return f"/{base}/{name}" if base else f"/{name}"


def _cookie_name() -> str:
    # cookies are shared between ports: two dashboards on one machine would overwrite each other's login
    return f"dashboard_login_{st.get_option('server.port')}"


def sign(name: str, token: str) -> str:
    """A login, as text for a cookie or URL: the name and the current time, signed with the token. Valid for LOGIN_SECONDS."""
    return _serializer(token).dumps(name)


def signed_name(login: str, token: str) -> str:
    """The name in a login that was signed with this token and has not expired; "" for any other text."""
    try:
        return _serializer(token).loads(login, max_age=LOGIN_SECONDS)
    except BadData:
        return ""


def _serializer(token: str) -> URLSafeTimedSerializer:
    options = {"key_derivation": "hmac", "digest_method": hashlib.sha256}
    return URLSafeTimedSerializer(token, salt="dashboard login", signer_kwargs=options)


def _name_in_cookie() -> str:
    token = _token()
    return signed_name(st.context.cookies.get(_cookie_name(), ""), token) if token is not None else ""


async def _keep_login(request: Request) -> Response:
    """Sets the cookie to the signed login in the header; an empty header deletes the cookie."""
    login, token = request.headers.get(LOGIN_HEADER), _token()
    if login is None or token is None or (login and not signed_name(login, token)):
        return Response(status_code=403)
    response = Response(status_code=204)
    response.set_cookie(
        _cookie_name(),
        login,
        max_age=LOGIN_SECONDS if login else 0,
        path=path(),
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )
    return response


def _send_login(login: str) -> None:
    """Makes the browser store the login as a cookie and reload the page, because a session keeps the cookies it started with."""
    call = f"fetch({json.dumps(path('login'))}, {{method: 'POST', headers: {{{json.dumps(LOGIN_HEADER)}: {json.dumps(login)}}}}})"
    st.html(f"<script>{call}.then(() => location.reload())</script>", unsafe_allow_javascript=True)
    st.stop()


def token_problem(entered: str, token: str) -> str:
    """Why an entered token is refused; "" if it is correct. After WRONG_TOKENS wrong ones, all are refused for a while."""
    with _wrong_tokens_lock:
        now = time.monotonic()
        if len(_wrong_tokens) == WRONG_TOKENS and (wait := _wrong_tokens[0] + WRONG_TOKENS_SECONDS - now) > 0:
            return f"{WRONG_TOKENS} wrong tokens within {WRONG_TOKENS_SECONDS} seconds: try again in {math.ceil(wait)} seconds."
        if hmac.compare_digest(entered.encode(), token.encode()):
            return ""
        _wrong_tokens.append(now)
    return "Wrong token."


def _draw_login(uninvited: str) -> None:
    token, auth = _token(), _auth()
    with st.container(horizontal_alignment="center"), st.container(width=420):
        st.title("Log in")
        st.caption("Data-free quantization, live in the browser")
        if uninvited:
            st.text(f"{uninvited} has no access to this server.")
            if st.button("Log out"):
                st.logout()
        elif auth is not None:
            _draw_providers(auth)
        if token is not None:
            _draw_token_form(token)


def _draw_providers(auth: Mapping[str, Any]) -> None:
    if "client_id" in auth and st.button("Log in with your account", type="primary", width="stretch"):
        st.login()
    for name, section in auth.items():
        if isinstance(section, Mapping) and "client_id" in section and st.button(f"Log in with {name}", type="primary", width="stretch"):
            st.login(name)


def _draw_token_form(token: str) -> None:
    with st.form("login"):
        name = st.text_input("Your name", max_chars=LONGEST_NAME, help="Shown to all users beside the runs that you start").strip()
        entered = st.text_input("Token", type="password", help="Ask the person who started this server")
        if not st.form_submit_button("Log in", type="primary", width="stretch"):
            return
    # these messages are rendered as Markdown, so they must not contain what was entered
    problem = token_problem(entered, token)
    if not problem and not (0 < len(name) <= LONGEST_NAME and name.isprintable()):
        problem = f"The name must have 1 to {LONGEST_NAME} printable characters, got {len(name)}."
    if problem:
        st.error(problem)
    else:
        _send_login(sign(name, token))


def _draw_account(name: str) -> None:
    # beside the page title in a wide window, above it on a phone
    st.html("<style>@media (min-width: 640px) { .st-key-account { margin-bottom: -4.5rem; z-index: 1; } }</style>")
    with st.container(horizontal=True, horizontal_alignment="right", vertical_alignment="center", key="account"):
        st.text(name, width="content")
        if st.button("Log out", type="tertiary", key="log out"):
            if _account():
                st.logout()
                st.stop()
            else:
                _send_login("")
