"""Temporary folders for Java programs, which do not pile up where velm is killed.

Each holds a locked file, and the system ends the lock with its owner: a folder whose lock is free was left behind, and
the next one that is made removes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from velm_cli.files import lock as take

LOCK = ".velm-lock"


@contextlib.contextmanager
def work_folder(name: str) -> Iterator[Path]:
    """A folder `velm-NAME-*` of one's own, which is gone after the block. Raises OSError."""
    prefix = f"velm-{name}-"
    for left in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            _remove_if_left(left)
    with tempfile.TemporaryDirectory(prefix=prefix) as folder, open(Path(folder, LOCK + ".new"), "wb") as lock:
        take(lock, fcntl.LOCK_EX)
        os.rename(lock.name, Path(folder, LOCK))  # nobody sees it unlocked
        yield Path(folder)


def _remove_if_left(folder: Path) -> None:
    if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
        return
    with open(os.open(folder / LOCK, os.O_RDONLY | os.O_NOFOLLOW), "rb") as lock:  # none: nothing of ours
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
