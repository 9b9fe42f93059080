"""How a request is turned down: a status and one line of JSON, which the client gets to read."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import anyio
from starlette.responses import JSONResponse

# For what the client still sends: closed at once, the system would drop the answer with it. As nginx lingers.
LINGER_SECONDS, LINGER_SILENT = 30.0, 5.0  # at most; without a byte


class Refused(Exception):
    """A request that gets this status and this line."""

    def __init__(self, status: int, line: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(line)
        self.status, self.line, self.headers = status, line, dict(headers or {})


def error_response(status: int, line: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": line}, status, dict(headers or {}))


async def refuse(refused: Refused, scope: Any, receive: Any, send: Any, *, unread: bool) -> None:
    """Send the refusal. `unread`: the client may still be sending, so the connection ends here.

    The answer goes out at once; then what comes in is dropped for a while before the connection is closed.
    """
    response = error_response(refused.status, refused.line, refused.headers)
    headers = [*response.raw_headers, *([(b"connection", b"close")] if unread else [])]
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": response.body, "more_body": unread})
    if not unread:
        return
    with contextlib.suppress(TimeoutError):
        await _drop(scope, receive)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _drop(scope: Any, receive: Any) -> None:
    waits = any(name == b"expect" for name, _ in scope["headers"])  # then it sends nothing after this answer
    with anyio.move_on_after(0 if waits else LINGER_SECONDS):
        while True:
            with anyio.fail_after(LINGER_SILENT):
                message = await receive()
            if message["type"] != "http.request" or not message.get("more_body", False):
                break


def phrase(status: int) -> str:
    return HTTPStatus(status).phrase
