"""What is new of a run, to the pages that follow it, by a socket beside Streamlit's.

A page asks with its own address whenever it is time, and is told what changed of its elements (see components/live.js). When Streamlit
refreshes a region, the browser goes through all elements of the page several times, before it draws what is new.
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

from dashboard import session
from dashboard.server import access

_PATH = "follow"
_ALL = "all"  # pieces; otherwise "new" ones
_POLICY_VIOLATION = 1008  # of RFC 6455
_LONGEST_QUESTION = 4000  # characters: what is longer is no address that a page of ours has

# known to this process only: an address can be had from a page that was let in, and in no other way
_SECRET = secrets.token_hex(32)


def address(run_id: str, part: str) -> str:
    """Where the page whose script runs, which was let in, hears of a part of a run (see live.Part); as long as a login holds."""
    watcher = json.dumps([part, run_id, *session.watcher()])
    return access.path(_PATH) + "?" + urlencode({"watcher": access.sign(watcher, _SECRET)})


def routes(news: Callable[[str, str, session.Watcher, str], dict[str, Any]]) -> list[BaseRoute]:
    """What the server must answer besides Streamlit's own.

    news: from the name of a part, the id of a run, who asks and what stands behind the path in the page's address, to `phase` of the run,
    milliseconds until it is to be asked for `again`, and `pieces`: key of an element -> JSON of what is new of it. A page asks for "all"
    pieces, or for the "new" ones, that have changed since it last asked.
    """
    pool = ThreadPoolExecutor(2, "stream", initializer=session.give_way)

    def answer(part: str, run_id: str, watcher: session.Watcher, question: str, sent: dict[str, int]) -> str:
        known = news(part, run_id, watcher, question[len(_ALL) : _LONGEST_QUESTION])
        if question.startswith(_ALL):
            sent.clear()
        new = {key: piece for key, piece in known["pieces"].items() if sent.get(key) != hash(piece)}
        sent.update((key, hash(piece)) for key, piece in new.items())
        return json.dumps({**known, "pieces": new})

    async def follow(socket: WebSocket) -> None:
        known = access.signed_name(socket.query_params.get("watcher", ""), _SECRET)
        if not known:
            await socket.close(_POLICY_VIOLATION)
            return
        part, run_id, *watcher = json.loads(known)
        await socket.accept()
        sent: dict[str, int] = {}
        with suppress(WebSocketDisconnect):  # the page was left
            while True:
                asked = (part, run_id, session.Watcher(*watcher), await socket.receive_text(), sent)
                await socket.send_text(await asyncio.get_running_loop().run_in_executor(pool, answer, *asked))

    return [WebSocketRoute(access.path(_PATH), follow)]
