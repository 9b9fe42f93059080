"""Counts of what the service has done: for /metrics (Prometheus), and for a line a minute on the console."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)  # upper bounds of the buckets


class Figures:
    """Counts since the start. Requests are counted in the event loop, batches in the model's thread."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()  # (path, status)
        self._buckets = [0] * len(SECONDS)
        self._seconds = 0.0
        self._count = 0
        self._batches = self._items = 0
        self._busy = 0.0
        self._lock = threading.Lock()
        self._since = (time.monotonic(), Counter[int]())  # of the line before

    def request(self, path: str, status: int, seconds: float) -> None:
        """`path` is one of the service's own, or "other": what clients make up must not grow the table."""
        self.requests[path, status] += 1
        if status < 400:
            self._count += 1
            self._seconds += seconds
            for place, most in enumerate(SECONDS):
                if seconds <= most:
                    self._buckets[place] += 1

    def batch(self, items: int, seconds: float) -> None:
        with self._lock:
            self._batches += 1
            self._items += items
            self._busy += seconds

    def line(self) -> str | None:
        """What came since the line before; None if nothing did."""
        began, before = self._since
        now = Counter[int]()
        for (_, status), count in self.requests.items():
            now[status] += count
        self._since = (time.monotonic(), now)
        new = now - before
        if not new:
            return None
        statuses = ", ".join(f"{count:,} x {status}" for status, count in sorted(new.items()))
        return f"{sum(new.values()):,} requests in {time.monotonic() - began:.0f} s: {statuses}"

    def text(self, now: dict[str, float]) -> str:
        """In the text format of Prometheus (version 0.0.4); `now` are gauges with their values."""
        return "\n".join(self._lines(now)) + "\n"

    def _lines(self, now: dict[str, float]) -> Iterator[str]:
        yield from _head("velm_requests_total", "counter", "Requests that got an answer.")
        for (path, status), count in sorted(self.requests.items()):
            yield f'velm_requests_total{{path="{path}",status="{status}"}} {count}'
        yield from _head("velm_request_seconds", "histogram", "Seconds of requests that succeeded.")
        for most, count in zip(SECONDS, self._buckets, strict=True):
            yield f'velm_request_seconds_bucket{{le="{most:g}"}} {count}'
        yield f'velm_request_seconds_bucket{{le="+Inf"}} {self._count}'
        yield f"velm_request_seconds_sum {self._seconds:.6f}"
        yield f"velm_request_seconds_count {self._count}"
        with self._lock:
            batches, items, busy = self._batches, self._items, self._busy
        for name, value, meaning in (
            ("velm_batches_total", batches, "Batches that the model has processed."),
            ("velm_batched_requests_total", items, "Requests in these batches."),
            ("velm_model_seconds_total", round(busy, 6), "Seconds that the model took for them."),
        ):
            yield from _head(name, "counter", meaning)
            yield f"{name} {value}"
        for name, gauge in now.items():
            yield from _head(f"velm_{name}", "gauge", name.replace("_", " ") + ", now.")
            yield f"velm_{name} {gauge:g}"


def _head(name: str, kind: str, meaning: str) -> Iterator[str]:
    yield f"# HELP {name} {meaning}"
    yield f"# TYPE {name} {kind}"


def resident_bytes() -> int:
    """Memory of this process; 0 where the system does not tell it in /proc."""
    import resource

    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * resource.getpagesize()
