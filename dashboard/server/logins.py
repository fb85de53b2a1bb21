"""Logins: how the server issues, recognizes and ends them, and how it counts guesses.

A login by token is a cookie signed with a key that only the server knows, so that nobody can make one up, and nobody can find out by
trying whether a guessed token is right. It holds a name, an id, and which token it was issued for. A login by account is Streamlit's
cookie, signed with `cookie_secret`. The key and the ids of ended logins are in `logins.json` in the run store's folder, so that a restart
ends no login and revives none.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import os
import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock
from itsdangerous import BadData, URLSafeTimedSerializer
from streamlit.auth_util import get_cookie_with_chunks
from streamlit.errors import StreamlitSecretNotFoundError

from core.runs.store import default_folder
from dashboard.server import settings

SECONDS = 7 * 24 * 3600  # that a login lasts
FILE = "logins.json"
_FILE_AGE = 0.5  # seconds after which the file is looked at again, because another server may have ended a login
_ACCOUNT_COOKIE = "_streamlit_user"


class Login(NamedTuple):
    """A login that has not ended."""

    id: str
    name: str  # shown to all
    until: float  # when it expires, in seconds since 1970
    by_account: bool = False
    email: str = ""  # the verified address of an account


# guesses


class Guesses:
    """Counts wrong tokens and wrongly signed logins, for the whole server: an attacker can use any number of addresses and sessions."""

    MOST = 10
    SECONDS = 60
    _KNOWN = 1000  # wrong cookies that are remembered: a browser sends the same one with every request

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=self.MOST)
        self._known: OrderedDict[bytes, None] = OrderedDict()
        self._lock = threading.Lock()

    def problem(self) -> str:
        """Why no login is accepted now; "" if one is."""
        with self._lock:
            wait = self._times[0] + self.SECONDS - time.monotonic() if len(self._times) == self.MOST else 0.0
        return f"{self.MOST} wrong tokens within {self.SECONDS} seconds: try again in {math.ceil(wait)} seconds." if wait > 0 else ""

    def count(self) -> None:
        """Counts one wrong guess, unless no login is accepted anyway."""
        if not self.problem():
            with self._lock:
                self._times.append(time.monotonic())

    def count_cookie(self, cookie: str) -> None:
        """Counts a wrongly signed cookie once, however often it is sent: nothing is learned from sending it again."""
        digest = hashlib.sha256(cookie.encode("utf-8", "surrogateescape")).digest()
        with self._lock:
            if digest in self._known:
                return
            self._known[digest] = None
            while len(self._known) > self._KNOWN:
                self._known.popitem(last=False)
        self.count()

    def clear(self) -> None:
        """Forgets all guesses."""
        with self._lock:
            self._times.clear()
            self._known.clear()


guesses = Guesses()


def token_problem(entered: str, token: str) -> str:
    """Why an entered token is refused; "" if it is correct. After too many wrong guesses, all are refused for a while."""
    if problem := guesses.problem():
        return problem
    if hmac.compare_digest(entered.encode(), token.encode()):
        return ""
    guesses.count()
    return "Wrong token."


# the file


class _File:
    """The key and the ended logins, in one file that only this user can read. Shared with other servers on the same run store."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._looked = -math.inf
        self._version: tuple[int, int] | None = None
        self._key = ""
        self._ended: dict[str, float] = {}

    def key(self) -> str:
        """The key that logins by token are signed with; created at the first call. Raises OSError."""
        self._refresh()
        if not self._key:
            self._change(lambda content: content)
        return self._key

    def has_ended(self, login_id: str) -> bool:
        """Whether this login was ended."""
        self._refresh()
        return login_id in self._ended

    def end(self, login_id: str, until: float) -> None:
        """Ends a login, which would expire at `until`. It has ended on this server even if an OSError is raised."""
        self._ended = {**self._ended, login_id: until}
        self._change(lambda content: {**content, "ended": {**content["ended"], login_id: until}})

    def _refresh(self) -> None:
        if time.monotonic() - self._looked < _FILE_AGE:
            return
        with self._lock:
            self._looked = time.monotonic()
            try:
                status = self._path.stat()
            except OSError:  # the folder was removed under a running server: what is known still holds
                return
            if self._version != (version := (status.st_mtime_ns, status.st_ino)):
                self._take(self._read())
                self._version = version

    def _take(self, content: Mapping[str, Any]) -> None:
        self._key = content["key"]
        self._ended = {**self._ended, **content["ended"]}

    def _read(self) -> dict[str, Any]:
        try:
            return json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {"key": self._key or secrets.token_hex(32), "ended": self._ended}

    def _change(self, change: Any) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._lock, FileLock(self._path.with_name(f".{FILE}.lock"), timeout=10):
            content = change(self._read())
            now = time.time()
            content["ended"] = {login_id: until for login_id, until in content["ended"].items() if until > now}
            partial = self._path.with_name(f".{FILE}.new")
            # not core.files.atomic_write, whose files everyone on the machine can read
            with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
                json.dump(content, file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self._path)
            self._take(content)


_files: dict[Path, _File] = {}


def _file() -> _File:
    path = default_folder().absolute() / FILE
    return _files.setdefault(path, _File(path))


def prepare() -> str:
    """Creates the file; why that is impossible, in one sentence, or ""."""
    try:
        _file().key()
    except (OSError, ValueError, KeyError) as error:
        return f"Cannot keep logins in {default_folder().absolute() / FILE}: {type(error).__name__}: {error}"
    return ""


# logins


def serializer(key: str, salt: str) -> URLSafeTimedSerializer:
    """Signs values with the time. Nobody without the key can sign one."""
    return URLSafeTimedSerializer(key, salt=salt, signer_kwargs={"key_derivation": "hmac", "digest_method": hashlib.sha256})


def issue(name: str) -> str:
    """A new login by token, as the value of its cookie. Called once the token was entered correctly."""
    return _serializer().dumps([name, secrets.token_hex(16), _token_mark()])


def _serializer() -> URLSafeTimedSerializer:
    return serializer(_file().key(), f"login/{settings.cookie_name()}")


def _token_mark() -> str:
    return hmac.digest(_file().key().encode(), (settings.token() or "").encode(), "sha256").hex()


def login_in(cookies: Mapping[str, str]) -> Login | None:
    """The login that a browser sends. A wrongly signed one is counted as a guess; one that expired or ended is not."""
    return _by_account(cookies) or _by_token(cookies.get(settings.cookie_name(), ""), guesses.count_cookie)


def login_of(value: str) -> Login | None:
    """The login by token with this cookie value. A wrongly signed one is counted as a guess."""
    return _by_token(value, lambda _: guesses.count())


def end(login: Login) -> None:
    """Ends a login everywhere, also after a restart. Raises OSError if it cannot be stored; it has ended on this server all the same."""
    _file().end(login.id, login.until)


def _by_token(value: str, wrong: Any) -> Login | None:
    if settings.token() is None or not value:
        return None
    try:
        (name, login_id, mark), signed_at = _serializer().loads(value, return_timestamp=True)
    except BadData:
        wrong(value)
        return None
    login = Login(login_id, name, signed_at.timestamp() + SECONDS)
    return login if hmac.compare_digest(mark, _token_mark()) and lasts(login) else None


def lasts(login: Login) -> bool:
    """Whether a login has neither expired nor ended."""
    return time.time() < login.until and not _file().has_ended(login.id)


def account_in(cookies: Mapping[str, str]) -> Login | None:
    """The login by account that a browser sends, also of an account that is not invited. A wrongly signed one is counted as a guess."""
    if not cookies.get(_ACCOUNT_COOKIE):
        return None
    try:
        auth = settings.auth()
    except StreamlitSecretNotFoundError:
        return None
    if auth is None:
        return None
    signed_at: list[float] = []

    def decoded(name: str) -> bytes | None:
        value = cookies.get(name, "")
        try:
            # signed by Streamlit, with the name of the cookie as its salt
            part, at = URLSafeTimedSerializer(str(auth.get("cookie_secret", "")), salt=name).loads(value, return_timestamp=True)
        except BadData:
            guesses.count_cookie(value)
            return None
        signed_at.append(at.timestamp())
        return str(part).encode()

    text = get_cookie_with_chunks(decoded, _ACCOUNT_COOKIE)
    claims = json.loads(text) if text else {}
    origin = "/".join(str(auth.get("redirect_uri", "")).split("/")[:3])
    if not claims.get("is_logged_in") or claims.get("origin") != origin:
        return None
    email = str(claims.get("email") or "") if claims.get("email_verified") is not False else ""
    # its owner chooses the name, but not the provider's id
    shown = next((str(claims[claim]) for claim in ("name", "preferred_username") if claims.get(claim)), "account")
    name = email or f"{shown} ({claims.get('sub', '')})"
    # of the signed text, not of the cookie, whose last character can be changed without changing what it says
    login = Login(hashlib.sha256(text or b"").hexdigest(), name, min(signed_at) + SECONDS, True, email)
    return login if lasts(login) else None


def is_invited(login: Login) -> bool:
    """Whether USERS_VARIABLE lists the account's verified e-mail address or its @domain; if it is empty, every account is invited."""
    invited = settings.entries(settings.USERS_VARIABLE)
    return not invited or is_listed(login, invited)


def is_listed(login: Login, listed: set[str]) -> bool:
    """Whether a list has the account's verified e-mail address or its @domain, or the name entered with the token."""
    if not login.by_account:
        return login.name.casefold() in listed
    email = login.email.casefold()
    return bool(email) and bool({email, "@" + email.rpartition("@")[2]} & listed)


def _by_account(cookies: Mapping[str, str]) -> Login | None:
    login = account_in(cookies)
    return login if login is not None and is_invited(login) else None
