"""SIGTERM, SIGUSR1 and the first Ctrl-C ask the loop to save and stop; the second Ctrl-C just stops."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


class Stopped(BaseException):
    """A signal ended work that may end at any moment."""


class StopRequest:
    """True once a signal has asked for a stop."""

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self.raises = False

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Within the block a signal raises `Stopped`: for long work that loses nothing by it, and never asks."""
        if self:
            raise Stopped
        self.raises = True
        try:
            yield
        finally:
            self.raises = False

    def __bool__(self) -> bool:
        return self.signal_name is not None


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Within the block signals set the request; outside it the former handlers are back."""
    request = StopRequest()

    def handle(number: int, frame) -> None:
        if number == signal.SIGINT and request:
            raise KeyboardInterrupt
        request.signal_name = signal.Signals(number).name
        if request.raises:
            raise Stopped

    if threading.current_thread() is not threading.main_thread():  # signals reach the main thread only
        yield request
        return
    former = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    try:
        yield request
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
