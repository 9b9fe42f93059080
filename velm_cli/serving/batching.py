"""Requests that arrive together are processed together: one thread owns the model and takes what waits.

No request waits for others to come while the model is idle. Only when further requests are already being prepared
(their images are being decoded) does the thread wait for them, and not longer than `wait` seconds.

A batch has as many items as the model handles in `longest` seconds, by what the batch before took: a slow model with
large batches would answer nobody in time.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

FIRST = 8  # items at most, while nothing is known of the model's speed
Work = Callable[[Any, Sequence[Any]], Sequence[Any]]


class Full(Exception):
    """As many requests wait as may."""


@dataclass(slots=True, eq=False)
class _Job:
    key: Hashable
    item: Any
    future: Future[Any] = field(default_factory=Future)


class Batches:
    """`submit(key, item)` gives a future; items with equal keys (the same task and options) share a batch."""

    def __init__(
        self,
        work: Work,
        *,
        batch_size: int,
        wait: float,
        queue: int,
        longest: float,
        ready: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
        noted: Callable[[int, float], None] = lambda items, seconds: None,
    ) -> None:
        """`work(key, items)` returns a result for each item. `ready` is entered once, in the thread that works.

        `noted(items, seconds)` is called after each batch.
        """
        self._work, self._ready, self._noted = work, ready, noted
        self._batch_size, self._wait, self._queue = batch_size, wait, queue
        self._longest = longest
        self._most: dict[type, int] = {}  # items of a batch, by the kind of what is asked
        self._waiting: deque[_Job] = deque()
        self._admitted = 0  # requests that wait, are prepared or are worked on
        self._preparing = 0
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """What waits is still done, if it takes no longer than that."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(seconds)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def admitted(self) -> int:
        """Requests that have a place in the queue, those that are being worked on included."""
        return self._admitted

    @property
    def full(self) -> bool:
        return self._admitted >= self._queue

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """A place in the queue, for as long as the block lasts. Raises Full."""
        with self._changed:
            if self.full:
                raise Full
            self._admitted += 1
        try:
            yield
        finally:
            with self._changed:
                self._admitted -= 1

    @contextlib.contextmanager
    def preparing(self) -> Iterator[None]:
        """Within the block an item is made that will be submitted: a batch waits for it, a little."""
        with self._changed:
            self._preparing += 1
        try:
            yield
        finally:
            with self._changed:
                self._preparing -= 1
                self._changed.notify_all()

    def submit(self, key: Hashable, item: Any) -> Future[Any]:
        """The future may be cancelled until its batch has begun: the item is then left out."""
        job = _Job(key, item)
        with self._changed:
            if self._closed:
                raise Full
            self._waiting.append(job)
            self._changed.notify_all()
        return job.future

    def _run(self) -> None:
        with self._ready():
            while jobs := self._next():
                self._do([job for job in jobs if job.future.set_running_or_notify_cancel()])

    def _next(self) -> list[_Job]:
        """The oldest job and those that go with it; nothing at the end."""
        with self._changed:
            while not self._waiting:
                if self._closed:
                    return []
                self._changed.wait()
            key, until = self._waiting[0].key, time.monotonic() + self._wait
            most = self._most.get(type(key), min(FIRST, self._batch_size))
            while self._preparing and sum(job.key == key for job in self._waiting) < most:
                left = until - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    break
            taken: list[_Job] = []
            kept: deque[_Job] = deque()
            for job in self._waiting:
                (taken if job.key == key and len(taken) < most else kept).append(job)
            self._waiting = kept
            return taken

    def _do(self, jobs: list[_Job]) -> None:
        if not jobs:
            return
        began = time.monotonic()
        try:
            results = self._work(jobs[0].key, [job.item for job in jobs])
            assert len(results) == len(jobs)
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].future.set_exception(error)
            else:  # one of them is at fault, and the others are not to suffer for it
                for job in jobs:
                    self._do([job])
            return
        seconds = time.monotonic() - began
        self._noted(len(jobs), seconds)
        fit = int(self._longest * len(jobs) / max(seconds, 1e-6))
        self._most[type(jobs[0].key)] = max(1, min(fit, self._batch_size))
        for job, result in zip(jobs, results, strict=True):
            job.future.set_result(result)
