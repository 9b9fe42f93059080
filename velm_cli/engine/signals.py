"""SIGTERM and its kin, and the first Ctrl-C, ask the loop to save and stop; the second Ctrl-C just stops.

Its kin: SIGUSR1 and SIGUSR2 of batch systems, SIGXCPU where the time is over, SIGHUP of a terminal that goes away.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU, signal.SIGHUP)


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


_open: list[StopRequest] = []  # of the blocks that are being executed: a sweep's, and that of its point


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Within the block signals set the request, and those of blocks around it.

    Outside it the former handlers are back, or the signals ignored if one of them has made a request.
    """
    request = StopRequest()

    def handle(number: int, frame) -> None:
        if number == signal.SIGINT and request:
            raise KeyboardInterrupt
        for each in _open:
            each.signal_name = each.signal_name or signal.Signals(number).name
        if request.raises:
            request.raises = False  # once: of ten signals in a row the others must not disturb the cleaning up
            raise Stopped

    if threading.current_thread() is not threading.main_thread():  # signals reach the main thread only
        yield request
        return
    _open.append(request)
    # nohup: who has the terminal's end ignored wants the work to go on.
    asking = [each for each in ASKING if each != signal.SIGHUP or signal.getsignal(each) != signal.SIG_IGN]
    former = {number: signal.signal(number, handle) for number in asking}
    try:
        yield request
    finally:
        _open.remove(request)
        for number, handler in former.items():
            # A request has been obeyed, and the process is about to end well: repetitions must not change that.
            repeated = request and number != signal.SIGINT
            signal.signal(number, signal.SIG_IGN if repeated else handler)
