"""Worker processes of preprocessing, which end with whoever started them, and outlive what kills one of them."""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context, parent_process, util
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any, TypeVar

from velm_cli.errors import StageError

AHEAD = 8  # items a worker is sent before it has answered: hides the way to it
WINDOW = 64  # items a worker that are under way or wait for their turn, so that a slow one holds up few others
TRIES = 3  # of an item over which a worker dies by no limit of ours: the machine may have been short of memory
PATIENCE = 10  # an item may take this many times its seconds by the clock, for a busy machine or a slow disk

Item = TypeVar("Item")
Result = TypeVar("Result")

# multiprocessing starts its helpers by `python -c`, which looks for modules in the working folder first; a folder of
# photos may hold a signal.py. -P turns that off. Python 3.10 has only -I, which also ignores PYTHONPATH; the helpers
# import only the standard library before they are sent the sys.path of this process.
SAFE_FLAG = "-P" if sys.version_info >= (3, 11) else "-I"
_usual_flags = util._args_from_interpreter_flags  # type: ignore[attr-defined]
util._args_from_interpreter_flags = lambda: [*_usual_flags(), SAFE_FLAG]  # type: ignore[attr-defined]


def available_cores() -> int:
    """Cores this process may use (a SLURM job or a container often has fewer than the machine)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def new_pool(workers: int) -> ProcessPoolExecutor:
    """A pool of so many processes (0 = one a core), for work that no input can break."""
    return ProcessPoolExecutor(workers or available_cores(), mp_context=_context(), initializer=_prepare_worker)


@dataclass(frozen=True)
class Limits:
    """What one item may take; None: no limit.

    `seconds` of the processor: a worker that uses them up, or PATIENCE times as many by the clock, is ended
    by the system. `memory` in bytes, beyond what a worker has after its start: more of it raises MemoryError
    there (on Linux; other systems do not count it).
    """

    seconds: float | None = None
    memory: int | None = None


@dataclass(frozen=True)
class Died:
    """Stands for the result of an item over which its worker died; `signal` killed it (None: it exited)."""

    signal: int | None

    @property
    def too_slow(self) -> bool:
        """Whether `Limits.seconds` ended it."""
        return self.signal in (signal.SIGPROF, signal.SIGALRM)


@dataclass
class _Worker:
    process: Any  # of the context's own type
    connection: Connection
    sent: deque[tuple[int, Any]] = field(default_factory=deque)  # (number, item), in the order they are worked on
    ready: bool = False  # has begun


def work_in_order(
    items: Iterable[Item], work: Callable[[Item], Result], workers: int, limits: Limits
) -> Generator[Result | Died, None, None]:
    """`work` of every item, in order, by `workers` processes (0 = one a core); few items are under way at a time.

    `work` must not raise. A worker answers each item by itself, so it is known over which it died: this one is
    tried again unless it was too slow, and the others it had been sent are another's. Raises StageError if
    workers die before they begin.
    """
    crew: dict[Connection, _Worker] = {}
    new = enumerate(items)
    again: deque[tuple[int, Item]] = deque()  # were sent to a worker that died
    tries: dict[int, int] = {}
    done: dict[int, Result | Died] = {}
    given = taken = stillborn = 0
    workers = workers or available_cores()
    try:
        while True:
            while given in done:
                yield done.pop(given)
                given += 1
            while (worker := _least_busy(crew, workers)) is None or len(worker.sent) < AHEAD:
                job = again.popleft() if again else next(new, None) if taken - given < WINDOW * workers else None
                if job is None:
                    break
                taken = max(taken, job[0] + 1)
                if worker is None:
                    worker = _start(work, limits)
                    crew[worker.connection] = worker
                worker.sent.append(job)
                try:
                    worker.connection.send(job[1])
                except OSError:
                    break  # it is dead, which shows below
            if given == taken:
                return
            for connection in wait(list(crew)):
                assert isinstance(connection, Connection)
                worker = crew[connection]
                try:
                    answer = connection.recv()
                except (EOFError, OSError):
                    del crew[connection]
                    died = _end(worker)
                    if not worker.ready:
                        stillborn += 1
                        if stillborn == TRIES:
                            raise StageError(f"worker processes die at their start ({_words(died)})") from None
                    elif worker.sent:
                        number, _ = job = worker.sent.popleft()
                        tries[number] = tries.get(number, 0) + 1
                        if died.too_slow or tries[number] == TRIES:
                            done[number] = died
                        else:
                            again.append(job)
                    again.extend(worker.sent)
                    continue
                if worker.ready:
                    done[worker.sent.popleft()[0]] = answer
                worker.ready, stillborn = True, 0
    finally:
        for worker in crew.values():
            worker.process.kill()
        for worker in crew.values():
            _end(worker)


def _least_busy(crew: dict[Connection, _Worker], workers: int) -> _Worker | None:
    """Who is to get the next item; None: someone new."""
    worker = min(crew.values(), key=lambda one: len(one.sent), default=None)
    return None if worker is not None and worker.sent and len(crew) < workers else worker


def _start(work: Callable[[Any], Any], limits: Limits) -> _Worker:
    ours, theirs = Pipe()
    process = _context().Process(target=_serve, args=(theirs, work, limits), daemon=True)
    process.start()
    theirs.close()  # or nobody would see it closed when the worker dies
    return _Worker(process, ours)


def _end(worker: _Worker) -> Died:
    """What a dead worker died of; nothing is left of it."""
    worker.process.join()
    code = worker.process.exitcode
    worker.process.close()
    worker.connection.close()
    return Died(-code if code < 0 else None)


def _words(died: Died) -> str:
    return "exit" if died.signal is None else signal.Signals(died.signal).name


def _serve(connection: Connection, work: Callable[[Any], Any], limits: Limits) -> None:
    _prepare_worker()
    for stop in (signal.SIGPROF, signal.SIGALRM):  # no handler: Python's would wait for the decoder's return
        signal.signal(stop, signal.SIG_DFL)
    if limits.memory is not None:
        _limit_memory(limits.memory)
    connection.send(None)
    while True:
        item = connection.recv()
        if limits.seconds is not None:
            signal.setitimer(signal.ITIMER_PROF, limits.seconds)
            signal.setitimer(signal.ITIMER_REAL, PATIENCE * limits.seconds)
        answer = work(item)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        connection.send(answer)


def _limit_memory(more: int) -> None:
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    for line in lines:
        if line.startswith("VmData:"):
            limit = 1024 * int(line.split()[1]) + more
            hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
            if hard == resource.RLIM_INFINITY or limit < hard:
                resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def _context() -> Any:
    # spawn: the same on every system, and safe beside the threads of whoever calls. It starts from the main
    # module's file, which a program read from standard input (`python - <<END`) does not have.
    file = getattr(sys.modules["__main__"], "__file__", None)
    return get_context("spawn" if file is None or os.path.isfile(file) else "fork")


def _prepare_worker() -> None:
    """Ctrl-C is the parent's business; a parent that was killed must not leave workers behind."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def die_with_parent() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=die_with_parent, daemon=True).start()
