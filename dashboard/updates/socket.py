"""A WebSocket, in addition to Streamlit's, that sends pages the data of their elements that changed.

A page asks with the query of its own address (components/update_socket.js). With a rerun by Streamlit instead, the browser would process
all elements of the page several times before drawing anything.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any
from urllib.parse import urlencode

from itsdangerous import BadData
from starlette.routing import BaseRoute, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from dashboard.server import logins, resources, settings
from dashboard.server.gate import POLICY_VIOLATION
from dashboard.updates import pace

_PATH = "follow"
_ALL = "all"  # a question for all values; any other is for "new" ones
_LONGEST_QUESTION = 4000  # characters; no address of a page is longer

# known to this process only, so that socket addresses come only from its pages. The gate asks for the login
_SIGNER = logins.serializer(secrets.token_hex(32), "socket")
_log = logging.getLogger(__name__)


def address(run_id: str, view: str) -> str:
    """Address from which the current page gets updates of a view of a run; valid as long as a login."""
    watcher = [view, run_id, *pace.watcher()]
    return settings.path(_PATH) + "?" + urlencode({"watcher": _SIGNER.dumps(watcher)})


def routes(collect: Callable[[str, str, str], dict[str, Any]]) -> list[BaseRoute]:
    """The route of the socket.

    collect(view, run id, query of the page's address): returns {"layout", "again", "values"} as live_view.collect_updates does. A page asks
    for "all" values, or for "new" ones, which changed since it last asked.
    """
    pool = ThreadPoolExecutor(2, "updates", initializer=resources.lower_priority)

    def answer_to(view: str, run_id: str, watcher: pace.Watcher, question: str, sent: dict[str, int]) -> str:
        with pace.asked_by(watcher):
            answer = collect(view, run_id, question[len(_ALL) : _LONGEST_QUESTION])
        if question.startswith(_ALL):
            sent.clear()
        new = {key: value for key, value in answer["values"].items() if sent.get(key) != hash(value)}
        sent.update((key, hash(value)) for key, value in new.items())
        return json.dumps({**answer, "values": new})

    async def follow(socket: WebSocket) -> None:
        try:
            view, run_id, *watcher = _SIGNER.loads(socket.query_params.get("watcher", ""), max_age=logins.SECONDS)
        except BadData:
            _log.warning("Refused a socket to %r: its address is not one of this server's, or it is too old", _PATH)
            await socket.close(POLICY_VIOLATION)
            return
        await socket.accept()
        sent: dict[str, int] = {}
        while (message := await socket.receive())["type"] == "websocket.receive":
            question = message.get("text")
            try:
                if question is None:
                    raise ValueError("questions are text, got bytes")
                asked = (view, run_id, pace.Watcher(*watcher), question, sent)
                answer = await asyncio.get_running_loop().run_in_executor(pool, answer_to, *asked)
            except Exception as error:  # of any kind: a page can ask anything
                _log.warning("Closed a socket to %r: question %r: %s: %s", _PATH, (question or "")[:100], type(error).__name__, error)
                await socket.close(POLICY_VIOLATION)
                return
            with suppress(WebSocketDisconnect):  # the page was closed meanwhile
                await socket.send_text(answer)

    return [WebSocketRoute(settings.path(_PATH), follow)]
