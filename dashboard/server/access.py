"""Access control: users on this machine need no login, everyone else does.

Two kinds of login, which can be combined: accounts of an OpenID Connect provider (`[auth]` in .streamlit/secrets.toml, through Streamlit's
`st.login`), and one token shared by the users of a lab machine, who each enter a name. `logins` keeps them, `gate` stands in front of
every request, and this file draws the login page.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

import streamlit as st
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from dashboard.server import logins, settings

LONGEST_NAME = 40
_NOT_IN_NAMES = "@()"  # they tell the names of accounts from those entered with the token
LOGIN_PATH = "login"
# the browser sends the login in a custom header, which another site cannot do without a CORS preflight
LOGIN_HEADER = "X-Dashboard-Login"


def objection() -> str:
    """Why this server must not start, in one sentence that says what to do; "" if it may."""
    return settings.objection() or (logins.prepare() if settings.have_logins() else "")


def refuse_to_start() -> None:
    """Exits with the objection on stderr, if there is one. Called when the server imports the app, before it listens."""
    if problem := objection():
        sys.exit(problem)


def routes() -> list[BaseRoute]:
    """The route that sets the login cookie: only an HTTP response can set a cookie that scripts cannot read."""
    return [Route(settings.path(LOGIN_PATH), _keep_login, methods=["POST"])]


def current_login() -> logins.Login | None:
    """The login of the session whose script runs; None if there is none, or it has ended."""
    return logins.login_in(st.context.cookies) if settings.have_logins() else None


def user() -> str:
    """Name of the user: from the account, or as entered with the token; "" if nobody is logged in or no login is configured."""
    login = current_login()
    return login.name if login is not None else ""


def admit() -> None:
    """Returns if the session is admitted; otherwise draws the login, or the reason why there is none, and stops the script."""
    if problem := objection():
        st.error(problem)  # reached only if the app is served without importing it first
        st.stop()
    if not settings.have_logins():
        return
    login = current_login()
    if login is not None:
        _draw_account(login)
        return
    account = logins.account_in(st.context.cookies)
    _draw_login(uninvited=account.name if account is not None else "")
    st.stop()


async def _keep_login(request: Request) -> Response:
    """Sets the cookie to the login in the header; an empty header ends the login in the cookie and deletes it."""
    value = request.headers.get(LOGIN_HEADER)
    if value is None or settings.token() is None:
        return Response(status_code=403)
    if value:
        if problem := logins.guesses.problem():
            return PlainTextResponse(problem, status_code=429)
        if logins.login_of(value) is None:
            return PlainTextResponse("This login was not issued by this server, or it has ended.", status_code=403)
    elif login := logins.login_in(request.cookies):
        logins.end(login)
    response = Response(status_code=204)
    response.set_cookie(
        settings.cookie_name(),
        value,
        max_age=logins.SECONDS if value else 0,
        path=settings.path(),
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )
    return response


def _send_login(login: str) -> None:
    """Makes the browser store the login as a cookie and reload the page, because a session keeps the cookies it started with."""
    address, header = json.dumps(settings.path(LOGIN_PATH)), json.dumps(LOGIN_HEADER)
    call = f"fetch({address}, {{method: 'POST', headers: {{{header}: {json.dumps(login)}}}}})"
    # after a log out, the server has closed the session, but the page must show the login even if the answer is lost
    st.html(f"<script>{call}.finally(() => location.reload())</script>", unsafe_allow_javascript=True)
    st.stop()


def _draw_login(uninvited: str) -> None:
    token, auth = settings.token(), settings.auth()
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
    problem = logins.token_problem(entered, token) or _name_problem(name)
    if problem:
        st.error(problem)
    else:
        _send_login(logins.issue(name))


def _name_problem(name: str) -> str:
    if not (0 < len(name) <= LONGEST_NAME and name.isprintable()):
        return f"The name must have 1 to {LONGEST_NAME} printable characters, got {len(name)}."
    if set(name) & set(_NOT_IN_NAMES):
        return "The name must not contain an at sign or parentheses."
    return ""


def _draw_account(login: logins.Login) -> None:
    # beside the page title in a wide window, above it on a phone
    st.html("<style>@media (min-width: 640px) { .st-key-account { margin-bottom: -4.5rem; z-index: 1; } }</style>")
    with st.container(horizontal=True, horizontal_alignment="right", vertical_alignment="center", key="account"):
        st.text(login.name, width="content")
        if st.button("Log out", type="tertiary", key="log out"):
            if login.by_account:
                st.logout()
                st.stop()
            else:
                _send_login("")
