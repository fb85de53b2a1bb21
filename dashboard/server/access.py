"""Who may come in: everybody on this machine, nobody else without a login.

Two logins, either or both: accounts of an OpenID Connect provider (`[auth]` in .streamlit/secrets.toml, by Streamlit's `st.login`), and one
token for a lab machine, shared by its users, who each give a name. The name is kept in a signed cookie; nothing about it is stored here.
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
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from streamlit.errors import StreamlitSecretNotFoundError

TOKEN_VARIABLE = "DASHBOARD_TOKEN"
USERS_VARIABLE = "DASHBOARD_USERS"
UNPROTECTED_VARIABLE = "DASHBOARD_UNPROTECTED"

SHORTEST_SECRET = 16  # characters of the token and of cookie_secret: whoever guesses one is in
LONGEST_NAME = 40
LOGIN_SECONDS = 7 * 24 * 3600

# of the whole server, whoever asks: a guesser has as many addresses and sessions as he likes
WRONG_TOKENS = 10
WRONG_TOKENS_SECONDS = 60
_wrong_tokens: deque[float] = deque(maxlen=WRONG_TOKENS)
_wrong_tokens_lock = threading.Lock()

# the browser hands the login over in a header, which no other site can send without being asked first (CORS)
LOGIN_HEADER = "X-Dashboard-Login"


def is_loopback(address: str | None) -> bool:
    """Whether a server that listens there is reached from this machine only. Streamlit listens everywhere where no address is set."""
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address or "").is_loopback
    except ValueError:
        return False


def objection() -> str:
    """Why this server must not serve, in one sentence that says what to do; "" where nothing speaks against it."""
    token = _token()
    if token is not None and len(token) < SHORTEST_SECRET:
        return (
            f"{TOKEN_VARIABLE} has {len(token)} characters: needed are at least {SHORTEST_SECRET}, "
            "as printed by python3 -c 'import secrets; print(secrets.token_urlsafe())'."
        )
    try:
        auth = _auth()
    except StreamlitSecretNotFoundError as error:
        return f"Whether there is a login cannot be told: {error}"
    if auth is not None and len(str(auth.get("cookie_secret", ""))) < SHORTEST_SECRET:
        return (
            f"cookie_secret of [auth] in secrets.toml has {len(str(auth.get('cookie_secret', '')))} characters: "
            f"needed are at least {SHORTEST_SECRET}."
        )
    address = st.get_option("server.address")
    if token is None and auth is None and not is_loopback(address) and os.environ.get(UNPROTECTED_VARIABLE) != "1":
        return (
            f"The address {address or '0.0.0.0'} is open to others and there is no login: set {TOKEN_VARIABLE}, or [auth] in "
            f".streamlit/secrets.toml, or {UNPROTECTED_VARIABLE}=1 to let everybody in who reaches it."
        )
    return ""


def refuse_to_start() -> None:
    """Ends the process with the objection on stderr, if there is one. Called when the server imports the app, before it serves."""
    if problem := objection():
        sys.exit(problem)


def routes() -> list[BaseRoute]:
    """What the server must answer besides Streamlit's own: only an HTTP response can set a cookie that no script can read."""
    return [Route(path("login"), _keep_login, methods=["POST"])]


def user() -> str:
    """Name of who is logged in: of the account, or as typed with the token; "" where nobody is or there is no login."""
    account = _account()
    return account if account and _is_invited() else _name_in_cookie()


def admit() -> None:
    """Returns when the session may go on; otherwise draws the login, or why there is none, and ends the script."""
    if problem := objection():
        st.error(problem)  # reached only where the app was served by something that did not import it first
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
        # no file is the usual case; one with a mistake in it is not "no login": the pages would stand open to a proxy on this machine
        if error.error_id == "no-secrets-found":
            return None
        raise


def _account() -> str:
    if _auth() is None or not st.user.get("is_logged_in"):
        return ""
    return next((str(st.user[claim]) for claim in ("email", "name", "preferred_username", "sub") if st.user.get(claim)), "")


def _is_invited() -> bool:
    """Whether the e-mail of the account, or @ and its domain, is among those named; all accounts are where none is."""
    invited = {entry.strip().casefold() for entry in os.environ.get(USERS_VARIABLE, "").split(",")} - {""}
    if not invited:
        return True
    email = str(st.user.get("email") or "").casefold()
    return st.user.get("email_verified") is not False and bool({email, "@" + email.rpartition("@")[2]} & invited)


def path(name: str = "") -> str:
    """Where the server answers to this name, also where it is told to serve below a path of its host."""
    base = (st.get_option("server.baseUrlPath") or "").strip("/")
    return f"/{base}/{name}" if base else f"/{name}"


def _cookie_name() -> str:
    # browsers do not tell ports apart: two dashboards on one machine would log each other out
    return f"dashboard_login_{st.get_option('server.port')}"


def sign(name: str, token: str, until: float) -> str:
    """A login as text for a cookie: name and expiry (seconds since 1970), with a signature that only who has the token can make."""
    payload = json.dumps([name, until]).encode().hex()
    return f"{payload}.{_signature(payload, token)}"


def signed_name(login: str, token: str) -> str:
    """The name in a login that was signed with this token and has not expired; "" for any other text."""
    payload, _, signature = login.partition(".")
    if not hmac.compare_digest(signature.encode(), _signature(payload, token).encode()):
        return ""
    name, until = json.loads(bytes.fromhex(payload))
    return name if time.time() < until else ""


def _signature(payload: str, token: str) -> str:
    key = hmac.digest(token.encode(), b"dashboard login", hashlib.sha256)
    return hmac.new(key, payload.encode(), hashlib.sha256).hexdigest()


def _name_in_cookie() -> str:
    token = _token()
    return signed_name(st.context.cookies.get(_cookie_name(), ""), token) if token is not None else ""


async def _keep_login(request: Request) -> Response:
    """Puts the signed login of the header into a cookie; an empty one takes the cookie away."""
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
    """Has the browser put this login into its cookie, then load the page anew: a session knows the cookies it began with."""
    call = f"fetch({json.dumps(path('login'))}, {{method: 'POST', headers: {{{json.dumps(LOGIN_HEADER)}: {json.dumps(login)}}}}})"
    st.html(f"<script>{call}.then(() => location.reload())</script>", unsafe_allow_javascript=True)
    st.stop()


def token_problem(entered: str, token: str) -> str:
    """What is wrong with an entered token; "" if it is the right one. While there were too many wrong ones, none is looked at."""
    with _wrong_tokens_lock:
        now = time.monotonic()
        if len(_wrong_tokens) == WRONG_TOKENS and (wait := _wrong_tokens[0] + WRONG_TOKENS_SECONDS - now) > 0:
            return f"There were {WRONG_TOKENS} wrong tokens within {WRONG_TOKENS_SECONDS} seconds: try again in {math.ceil(wait)}."
        if hmac.compare_digest(entered.encode(), token.encode()):
            return ""
        _wrong_tokens.append(now)
    return "That is not the token of this server."


def _draw_login(uninvited: str) -> None:
    token, auth = _token(), _auth()
    with st.container(horizontal_alignment="center"), st.container(width=420):
        st.title("Log in")
        st.caption("Data-free quantization, live in the browser")
        if uninvited:
            st.text(f"{uninvited} is not among the users of this server.")
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
        name = st.text_input("Your name", max_chars=LONGEST_NAME, help="The runs that you start carry it, for all to see").strip()
        entered = st.text_input("Token", type="password", help="Whoever started this server has it")
        if not st.form_submit_button("Log in", type="primary", width="stretch"):
            return
    # what was typed is in none of these sentences: they are drawn as Markdown
    problem = token_problem(entered, token)
    if not problem and not (0 < len(name) <= LONGEST_NAME and name.isprintable()):
        problem = f"A name has 1 to {LONGEST_NAME} printable characters, this one has {len(name)}."
    if problem:
        st.error(problem)
    else:
        _send_login(sign(name, token, time.time() + LOGIN_SECONDS))


def _draw_account(name: str) -> None:
    # beside the title of the page where there is room for both, above it on a telephone
    st.html("<style>@media (min-width: 640px) { .st-key-account { margin-bottom: -4.5rem; z-index: 1; } }</style>")
    with st.container(horizontal=True, horizontal_alignment="right", vertical_alignment="center", key="account"):
        st.text(name, width="content")
        if st.button("Log out", type="tertiary", key="log out"):
            if _account():
                st.logout()
                st.stop()
            else:
                _send_login("")
