"""Styles in the HTML of every page: Streamlit sends those of `st.html` with the first elements, which would then move."""

from __future__ import annotations

from pathlib import Path

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

STYLES = Path(__file__).parents[1] / "page.css"
_END = b"</body>"  # behind the styles that Streamlit adds to the head, so that rules of equal weight win
# a compressed answer, or none because the browser has it, could not be completed
_NOT_PASSED_ON = (b"accept-encoding", b"if-none-match", b"if-modified-since")


class Head:
    """ASGI middleware that adds page.css to answers in HTML."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._styles = b"<style>" + STYLES.read_bytes() + b"</style>"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request; one that does not accept HTML is passed on."""
        if scope["type"] != "http" or "text/html" not in Headers(scope=scope).get("accept", ""):
            await self._app(scope, receive, send)
            return
        start: Message | None = None
        body = b""

        async def send_with_styles(message: Message) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start" and Headers(raw=message["headers"]).get("content-type", "").startswith("text/html"):
                start = message
            elif start is None:
                await send(message)
            else:
                body += message.get("body", b"")
                if not message.get("more_body", False):
                    whole = body.replace(_END, self._styles + _END, 1)
                    headers = MutableHeaders(scope=start)
                    del headers["etag"], headers["last-modified"]
                    if scope["method"] != "HEAD":
                        headers["content-length"] = str(len(whole))
                    await send(start)
                    await send({**message, "body": whole})

        headers = [(name, value) for name, value in scope["headers"] if name not in _NOT_PASSED_ON]
        await self._app({**scope, "headers": headers}, receive, send_with_styles)
