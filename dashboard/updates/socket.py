"""A WebSocket, in addition to Streamlit's, that sends pages the data of their elements that changed.

A page asks with the query of its own address (components/update_socket.js). With a rerun by Streamlit instead, the browser would process
all elements of the page several times before drawing anything.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any
from urllib.parse import urlencode

from starlette.routing import BaseRoute, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from dashboard.server import access, resources
from dashboard.updates import pace

_PATH = "follow"
_ALL = "all"  # a question for all values; any other is for "new" ones
_POLICY_VIOLATION = 1008  # close code of RFC 6455
_LONGEST_QUESTION = 4000  # characters; no address of a page is longer

# known to this process only, so that socket addresses can come only from pages of users who are logged in
_SECRET = secrets.token_hex(32)


def address(run_id: str, view: str) -> str:
    """Address from which the current page gets updates of a view of a run; valid as long as a login."""
    watcher = json.dumps([view, run_id, *pace.watcher()])
    return access.path(_PATH) + "?" + urlencode({"watcher": access.sign(watcher, _SECRET)})


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
        signed = access.signed_name(socket.query_params.get("watcher", ""), _SECRET)
        if not signed:
            await socket.close(_POLICY_VIOLATION)
            return
        view, run_id, *watcher = json.loads(signed)
        await socket.accept()
        sent: dict[str, int] = {}
        with suppress(WebSocketDisconnect):  # the page was closed
            while True:
                question = (view, run_id, pace.Watcher(*watcher), await socket.receive_text(), sent)
                await socket.send_text(await asyncio.get_running_loop().run_in_executor(pool, answer_to, *question))

    return [WebSocketRoute(access.path(_PATH), follow)]
