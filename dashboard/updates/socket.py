"""A WebSocket beside Streamlit's that sends pages what changed of a run.

A page asks with its own address when it is due, and is sent the changed data of its elements (components/update_socket.js). A refresh by
Streamlit would have the browser go through all elements of the page several times before it draws anything.
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
_ALL = "all"  # values; otherwise "new" ones
_POLICY_VIOLATION = 1008  # of RFC 6455
_LONGEST_QUESTION = 4000  # characters: no address of our pages is longer

# known to this process only, so that an address can be had only from a page that was let in
_SECRET = secrets.token_hex(32)


def address(run_id: str, view: str) -> str:
    """Where the page whose script runs, which was let in, gets updates of a view of a run; valid as long as a login."""
    watcher = json.dumps([view, run_id, *pace.watcher()])
    return access.path(_PATH) + "?" + urlencode({"watcher": access.sign(watcher, _SECRET)})


def routes(collect: Callable[[str, str, str], dict[str, Any]]) -> list[BaseRoute]:
    """The route that the server answers besides Streamlit's own.

    collect(view, run id, query of the page's address) -> {"layout", "again", "values": key of an element -> JSON}, as
    live_view.collect_updates returns it. A page asks for "all" values, or for "new" ones, which have changed since it last asked.
    """
    pool = ThreadPoolExecutor(2, "updates", initializer=resources.lower_priority)

    def answer(view: str, run_id: str, watcher: pace.Watcher, question: str, sent: dict[str, int]) -> str:
        with pace.asked_by(watcher):
            known = collect(view, run_id, question[len(_ALL) : _LONGEST_QUESTION])
        if question.startswith(_ALL):
            sent.clear()
        new = {key: value for key, value in known["values"].items() if sent.get(key) != hash(value)}
        sent.update((key, hash(value)) for key, value in new.items())
        return json.dumps({**known, "values": new})

    async def follow(socket: WebSocket) -> None:
        known = access.signed_name(socket.query_params.get("watcher", ""), _SECRET)
        if not known:
            await socket.close(_POLICY_VIOLATION)
            return
        view, run_id, *watcher = json.loads(known)
        await socket.accept()
        sent: dict[str, int] = {}
        with suppress(WebSocketDisconnect):  # the page was left
            while True:
                asked = (view, run_id, pace.Watcher(*watcher), await socket.receive_text(), sent)
                await socket.send_text(await asyncio.get_running_loop().run_in_executor(pool, answer, *asked))

    return [WebSocketRoute(access.path(_PATH), follow)]
