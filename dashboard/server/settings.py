"""Who may log in, as set by the environment and by `[auth]` in .streamlit/secrets.toml; and the server's addresses."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from typing import Any

import streamlit as st
from streamlit.errors import StreamlitSecretNotFoundError

TOKEN_VARIABLE = "DASHBOARD_TOKEN"
USERS_VARIABLE = "DASHBOARD_USERS"
ADMINS_VARIABLE = "DASHBOARD_ADMINS"
UNPROTECTED_VARIABLE = "DASHBOARD_UNPROTECTED"

SHORTEST_SECRET = 16  # characters of the token and of cookie_secret, which must not be guessable


def token() -> str | None:
    """The token that users enter; None if there is no login by token."""
    return os.environ.get(TOKEN_VARIABLE)


def auth() -> Mapping[str, Any] | None:
    """The section [auth] of the secrets; None if there is no login by account. Raises StreamlitSecretNotFoundError for a bad file."""
    try:
        return st.secrets.get("auth")
    except StreamlitSecretNotFoundError as error:
        # a missing file is usual; an invalid one must not count as "no login", because a local proxy could then open the pages to all
        if error.error_id == "no-secrets-found":
            return None
        raise


def have_logins() -> bool:
    """Whether users have to log in. Secrets that cannot be read count as a login that nobody has."""
    if token() is not None:
        return True
    try:
        return auth() is not None
    except StreamlitSecretNotFoundError:
        return True


def entries(variable: str) -> set[str]:
    """The names, e-mail addresses and @domains that an environment variable lists, in lower case."""
    return {entry.strip().casefold() for entry in os.environ.get(variable, "").split(",")} - {""}


def objection() -> str:
    """Why this server must not start with these settings, in one sentence that says what to do; "" if it may."""
    secret = token()
    if secret is not None and (problem := _secret_problem(TOKEN_VARIABLE, secret)):
        return f"{problem}; python3 -c 'import secrets; print(secrets.token_urlsafe())' prints one."
    try:
        accounts = auth()
    except StreamlitSecretNotFoundError as error:
        return f"Cannot read the login settings: {error}"
    if accounts is not None and (
        problem := _secret_problem("cookie_secret of [auth] in secrets.toml", str(accounts.get("cookie_secret", "")))
    ):
        return f"{problem}."
    for variable in (USERS_VARIABLE, ADMINS_VARIABLE):
        if os.environ.get(variable) and not entries(variable):
            return f"{variable} must list e-mail addresses, @domains or names, separated by commas, got {os.environ[variable]!r}."
    address = st.get_option("server.address")
    if secret is None and accounts is None and not is_loopback(address) and os.environ.get(UNPROTECTED_VARIABLE) != "1":
        return (
            f"The address {address or '0.0.0.0'} is open to other machines and there is no login: set {TOKEN_VARIABLE}, or [auth] in "
            f".streamlit/secrets.toml, or {UNPROTECTED_VARIABLE}=1 to admit everyone who can reach it."
        )
    return ""


def _secret_problem(what: str, secret: str) -> str:
    if secret != secret.strip():
        return f"{what} must not begin or end with a space or line break"
    if len(secret) < SHORTEST_SECRET:
        return f"{what} must have at least {SHORTEST_SECRET} characters, got {len(secret)}"
    return ""


def is_loopback(address: str | None) -> bool:
    """Whether a server on this address can be reached from this machine only. None or "" is every address, Streamlit's default."""
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address or "").is_loopback
    except ValueError:
        return False


def path(name: str = "") -> str:
    """Path of `name` on this server, including Streamlit's base path."""
    base = (st.get_option("server.baseUrlPath") or "").strip("/")
    return f"/{base}/{name}" if base else f"/{name}"


def cookie_name() -> str:
    """Name of the cookie that holds the login by token."""
    # cookies are shared between ports: two dashboards on one machine would overwrite each other's login
    return f"dashboard_login_{st.get_option('server.port')}"
