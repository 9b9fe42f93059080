"""The body of a request: read within limits of size and time, all of it in memory, never on a disk."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from velm_cli.schema import ServeConfig
from velm_cli.serving.options import MOST_IMAGES, MOST_TEXTS
from velm_cli.serving.refusing import Refused

TAKEN = "an image (image/jpeg, image/png ...), multipart/form-data or application/json"


class Gone(Exception):
    """The client has closed the connection."""


class Bodies:
    """How many bytes all requests together hold."""

    def __init__(self, limits: ServeConfig) -> None:
        self._each, self._together = int(limits.body_mb * 1e6), int(limits.bodies_mb * 1e6)
        self._seconds = limits.read_seconds
        self.held = 0

    @contextlib.asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """The body, which counts as held within the block. Raises Refused (408, 411, 413, 503) or Gone."""
        told = request.headers.get("content-length")
        if told is not None and int(told) > self._each:
            raise self._too_large()
        with self._held() as hold:
            hold(int(told or 0))
            parts, size = [], 0
            try:
                with anyio.fail_after(self._seconds):
                    while True:
                        message = await request.receive()
                        if message["type"] == "http.disconnect":
                            raise Gone
                        if part := message.get("body", b""):
                            parts.append(part)
                            size += len(part)
                            if size > self._each:
                                raise self._too_large()
                            hold(size)
                        if not message.get("more_body", False):
                            break
            except TimeoutError:
                raise Refused(408, f"the request did not arrive within {self._seconds:g} seconds") from None
            yield parts[0] if len(parts) == 1 else b"".join(parts)

    def _too_large(self) -> Refused:
        return Refused(413, f"the request is larger than {self._each / 1e6:g} MB")

    @contextlib.contextmanager
    def _held(self) -> Iterator[Any]:
        mine = 0

        def hold(size: int) -> None:
            nonlocal mine
            more = max(0, size - mine)
            if self.held + more > self._together:
                raise Refused(503, "too many large requests at once", {"Retry-After": "1"})
            self.held += more
            mine += more

        try:
            yield hold
        finally:
            self.held -= mine


async def given_in(request: Request, body: bytes) -> list[tuple[str, Any]]:
    """(option, value) of a query and a body. Raises Refused (415, 422) with one line."""
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refused(415, "compressed requests are not taken: send the body as it is")
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    given: list[tuple[str, Any]] = list(request.query_params.multi_items())
    if kind == "application/json":
        return given + _of_json(body)
    if kind == "multipart/form-data":
        return given + await _of_form(request, body)
    if kind.startswith("image/") or kind == "application/octet-stream":
        return [*given, ("image", body)]
    if not kind and not body:
        return given
    raise Refused(415, f"content type {kind[:40] or 'missing'}: send {TAKEN}")


def _of_json(body: bytes) -> list[tuple[str, Any]]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(422, "the body is not valid JSON") from None
    if not isinstance(value, dict):
        raise Refused(422, 'the body must be a JSON object, for example {"image": "<base64>"}')
    return list(value.items())


async def _of_form(request: Request, body: bytes) -> list[tuple[str, Any]]:
    async def stream() -> AsyncIterator[bytes]:
        yield body

    parser = MultiPartParser(request.headers, stream(), max_files=MOST_IMAGES, max_fields=MOST_TEXTS + 20)  # type: ignore[arg-type]
    parser.spool_max_size = len(body) + 1  # larger files would go to a disk: none is
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise Refused(422, f"the form cannot be read: {error.message}") from None
    found: list[tuple[str, Any]] = []
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            found.append((name, await value.read()))
            await value.close()
        else:
            found.append((name, value))
    return found
