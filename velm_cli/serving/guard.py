"""Who may use the service, and what every answer carries. Checked before anything of the body is read.

A server on 127.0.0.1 is reached by every web page that its user opens. Three rules keep those pages out:
- The name in `Host` must be ours: an address, localhost or one of serve.hosts. A page that makes its own name point to
  127.0.0.1 (DNS rebinding) still sends that name.
- A request that a browser sends for a page (`Origin`) must come from our page; so must what it marks as cross-site
  (`Sec-Fetch-Site`), unless it only opens the page.
- No answer permits other origins to read it (CORS), so a page elsewhere sees nothing.
With a token, all but the page, its documents and /health need it.
"""

from __future__ import annotations

import hmac
import ipaddress
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import anyio
from starlette.requests import Request
from starlette.responses import Response

from velm_cli.errors import on_one_line
from velm_cli.schema import ServeConfig
from velm_cli.serving.bodies import Gone
from velm_cli.serving.figures import Figures
from velm_cli.serving.refusing import Refused, error_response, refuse

Handler = Callable[[Request], Awaitable[Response]]

OPEN = {"/", "/health", "/openapi.json", "/docs"}  # what needs no token: nothing in them is secret
TOO_MANY = "too many connections"  # in the state of a scope whose connection is one too many
CLOSED = 499  # in the counts: the client was gone before its answer
HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"x-frame-options", b"DENY"),
    (b"permissions-policy", b"camera=(self), microphone=(), geolocation=()"),
    (b"cache-control", b"no-store"),
]
NO_CONTENT = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")


class Guard:
    """The ASGI application: rules, routes, deadline, counts. Raises nothing; what fails is a line and a status."""

    def __init__(
        self,
        routes: Mapping[tuple[str, str], Handler],
        limits: ServeConfig,
        token: str | None,
        figures: Figures,
        why_not: Mapping[str, str],
    ) -> None:
        """`routes`: by (method, path). `why_not`: paths that this model cannot serve, and why."""
        self._routes, self._limits, self._figures = routes, limits, figures
        self._token = None if token is None else token.encode()
        self._hosts = {"localhost", *(name.lower() for name in limits.hosts)}
        self._why_not = why_not
        self._paths = {path for _, path in routes}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        began, status, complete = time.monotonic(), 0, scope["method"] in ("GET", "HEAD")

        async def receiving() -> Any:
            nonlocal complete
            message = await receive()
            complete = complete or not message.get("more_body", False)
            return message

        async def sending(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                named = {name.lower() for name, _ in message["headers"]}
                extra = [pair for pair in [*HEADERS, NO_CONTENT] if pair[0] not in named]
                message = message | {"headers": [*message["headers"], *extra]}
            await send(message)

        try:
            with anyio.fail_after(self._limits.request_seconds):
                handler = self._allowed(scope)
                response = await handler(Request(scope, receiving))
                await response(scope, receiving, sending)
        except Refused as refused:
            await refuse(refused, scope, receiving, sending, unread=not complete)
        except Gone:
            status = CLOSED
        except TimeoutError:
            line = f"no answer within {self._limits.request_seconds:g} seconds"
            if not status:  # else the client does not take its answer: the connection is closed
                await refuse(Refused(504, line, {"Retry-After": "5"}), scope, receiving, sending, unread=not complete)
        except Exception as error:
            report(f"{scope['method']} {scope['path']}", error)
            if not status:
                await error_response(500, "the server failed; its log has the reason")(scope, receiving, sending)
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            seconds = time.monotonic() - began
            self._figures.request(path, status or CLOSED, seconds)
            if self._limits.access_log:
                client = (scope.get("client") or ("-",))[0]
                line = f"{client} {scope['method']} {scope['path']} {status or CLOSED} {1000 * seconds:.0f} ms"
                print(f"{time.strftime('%H:%M:%S')}    {on_one_line(line)}")

    def _allowed(self, scope: Any) -> Handler:
        """Raises Refused with what is wrong with the request line and its headers."""
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        path, method = scope["path"], "GET" if scope["method"] == "HEAD" else scope["method"]
        if TOO_MANY in scope.get("state", ()):
            raise Refused(503, TOO_MANY, {"Retry-After": "1"})
        self._check_host(headers.get(b"host", ""))
        self._check_origin(headers, opens_a_page=method == "GET" and path == "/")
        if self._token is not None and path not in OPEN:
            self._check_token(headers.get(b"authorization", ""))
        if (handler := self._routes.get((method, path))) is not None:
            return handler
        if (why := self._why_not.get(path)) is not None:
            raise Refused(404, why)
        if path in self._paths:
            allowed = ", ".join(sorted(method for method, known in self._routes if known == path))
            raise Refused(405, f"{path} takes {allowed}", {"Allow": allowed})
        raise Refused(404, "no such page; GET /docs lists what there is")

    def _check_host(self, host: str) -> None:
        name = _hostname(f"//{host}")
        if name in self._hosts or _is_address(name):
            return
        raise Refused(421, f"this server is not known as {name[:100]!r}: start it with serve.hosts=[{name[:100]}]")

    def _check_origin(self, headers: Mapping[bytes, str], *, opens_a_page: bool) -> None:
        origin, host = headers.get(b"origin"), headers.get(b"host", "")
        if origin is not None and origin.partition("://")[2].lower() != host.lower():
            raise Refused(403, "requests of other web pages are not taken")
        site = headers.get(b"sec-fetch-site", "none")
        if site not in ("none", "same-origin") and not opens_a_page:
            raise Refused(403, "requests of other web pages are not taken")

    def _check_token(self, given: str) -> None:
        assert self._token is not None
        scheme, _, token = given.partition(" ")
        right = hmac.compare_digest(token.strip().encode("latin-1", "replace"), self._token)
        if scheme.lower() != "bearer" or not right:
            line = "this server needs its token: Authorization: Bearer TOKEN" if not given else "wrong token"
            raise Refused(401, line, {"WWW-Authenticate": "Bearer"})


def _hostname(address: str) -> str:
    try:
        return (urlsplit(address).hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def report(what: str, error: BaseException) -> None:
    """A failure of the service's own, on standard error: a line, and where it happened."""
    where = traceback.extract_tb(error.__traceback__)
    place = f" ({where[-1].filename}:{where[-1].lineno})" if where else ""
    line = f"{what}: {type(error).__name__}: {error}{place}"
    print(f"velm: {time.strftime('%H:%M:%S')} {on_one_line(line)[:2000]}", file=sys.stderr)
