"""uvicorn as velm runs it: a deadline for headers, a bound on connections, and an end that exits with 0."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from velm_cli.errors import UserError
from velm_cli.schema import ServeConfig
from velm_cli.serving.figures import Figures
from velm_cli.serving.guard import TOO_MANY

STOPPING = (signal.SIGTERM, signal.SIGINT)
LINE_SECONDS = 60.0
_LINE = b'{"error":"the headers did not arrive in time"}'
LATE = (
    b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\n\r\n%s" % (len(_LINE), _LINE)
)


def listening(host: str, port: int) -> socket.socket:
    """A bound socket; UserError where the system refuses it. Made before the model is loaded, which takes longer."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise UserError(f"serve.host={host}: {error.strerror or error}") from None
    family, kind, protocol, _, address = found[0]
    made = socket.socket(family, kind, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except OSError as error:
        made.close()
        raise UserError(f"serve.port={port}: {error.strerror}; choose another, or 0 for a free one") from None
    return made


def allow_files(count: int) -> None:
    """Each connection is an open file, of which systems permit 1024 unless a program asks for more."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and wanted > soft:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def protocol_of(limits: ServeConfig) -> type[H11Protocol]:
    """uvicorn's protocol, which waits for ever for headers and takes any number of connections, with bounds on both.

    Connections beyond `serve.connections` get a 503 for an answer (guard.py), those beyond twice as many are closed.
    """

    class Bounded(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._deadline: asyncio.TimerHandle | None = None
            if len(self.connections) > 2 * limits.connections:
                transport.abort()
                return
            if len(self.connections) > limits.connections:
                self.app_state = {TOO_MANY: True}  # becomes the state of each request's scope
            self._expect_headers()

        def connection_lost(self, exc: Exception | None) -> None:
            self._disarm()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.conn.their_state is not h11.IDLE:  # the headers are there
                self._disarm()
            elif self._deadline is None:
                self._expect_headers()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._disarm()  # until the first byte of another request the keep-alive timeout holds

        def _expect_headers(self) -> None:
            self._deadline = self.loop.call_later(limits.head_seconds, self._cut_off)

        def _disarm(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _cut_off(self) -> None:
            self._deadline = None
            if not self.transport.is_closing():
                self.transport.write(LATE)
                self.transport.close()

    return Bounded


class Server(uvicorn.Server):
    """Runs until `stop`, or SIGTERM or SIGINT in the main thread; a second SIGINT ends it at once."""

    def __init__(self, app: Any, limits: ServeConfig) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                loop="asyncio",
                http=protocol_of(limits),
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="critical",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=int(limits.stop_seconds),
            )
        )
        self._told: signal.Signals | None = None

    @property
    def connections(self) -> int:
        return len(self.server_state.connections)

    @property
    def signal_name(self) -> str | None:
        """What has asked for the end."""
        return None if self._told is None else self._told.name

    def stop(self) -> None:
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, which raises the signal again at the end: the process would not exit with 0."""
        loop = asyncio.get_running_loop()
        added = []
        for number in STOPPING:
            with contextlib.suppress(RuntimeError, ValueError):  # not the main thread
                loop.add_signal_handler(number, self._stopped_by, number)
                added.append(number)
        try:
            yield
        finally:
            for number in added:
                loop.remove_signal_handler(number)

    def _stopped_by(self, number: signal.Signals) -> None:
        self.force_exit = self.should_exit and number == signal.SIGINT
        self._told = self._told or number
        self.should_exit = True


async def run(server: Server, at: socket.socket, figures: Figures, said: Callable[[str], None]) -> None:
    """Serve until it is stopped; `said` gets a line each minute in which there were requests."""
    lines = asyncio.ensure_future(_lines(figures, said))
    try:
        await server.serve(sockets=[at])
    finally:
        lines.cancel()
        if (line := figures.line()) is not None:
            said(line)


async def _lines(figures: Figures, said: Callable[[str], None]) -> None:
    while True:
        await asyncio.sleep(LINE_SECONDS)
        if (line := figures.line()) is not None:
            said(f"{time.strftime('%H:%M')}  {line}")
