"""Worker processes of preprocessing, which end with whoever started them."""

from __future__ import annotations

import os
import signal
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait


def available_cores() -> int:
    """Cores this process may use (a SLURM job or a container often has fewer than the machine)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def new_pool(workers: int) -> ProcessPoolExecutor:
    """A pool of so many processes (0 = one a core)."""
    # spawn: the same on every system, and safe beside the threads of whoever calls. It starts from the main
    # module's file, which a program read from standard input (`python - <<END`) does not have.
    file = getattr(sys.modules["__main__"], "__file__", None)
    method = "spawn" if file is None or os.path.isfile(file) else "fork"
    return ProcessPoolExecutor(
        workers or available_cores(), mp_context=get_context(method), initializer=_prepare_worker
    )


def _prepare_worker() -> None:
    """Ctrl-C is the parent's business; a parent that was killed must not leave workers behind."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def die_with_parent() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=die_with_parent, daemon=True).start()
