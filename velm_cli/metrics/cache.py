"""Files of velm's cache that scores are made of: used only while they are whole and nobody else can have changed them.

One changed byte of a parse moves SPICE by points without a word, and a cache may lie where others write. So each file
ends with the CRC-32 of what comes before, in the same file, which is replaced whole; and it counts only where its owner
is the user (or root) and nobody else may write it. A file that does not count costs the time to make it again.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from velm_cli.files import unique

SEAL = b"\nvelm crc32 %08x\n"
SEAL_LENGTH = len(SEAL % 0)
PIECE = 1 << 20
OWNERS_WRITE_ONLY = 0o644


def keep(path: Path, parts: Iterable[bytes]) -> None:
    """Replace `path` by the parts in a row, sealed; whole or not at all. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{unique()}.part")
    # EXCL: in a folder of many users the name could be a link to something that must not be written.
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, OWNERS_WRITE_ONLY)
    try:
        with open(descriptor, "wb") as file:
            check = 0
            for part in parts:
                check = zlib.crc32(part, check)
                file.write(part)
            file.write(SEAL % check)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_pieces(path: Path) -> Iterator[bytes]:
    """What was kept, in pieces; ValueError after the last of them when it is something else: use none of it then.

    Raises FileNotFoundError where there is nothing, other OSErrors and ValueError where it cannot be trusted.
    """
    with open(path, "rb", opener=_no_link_and_no_wait) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or _others_write(status):
            raise ValueError(f"{path} can be changed by others")
        check, left = 0, status.st_size - SEAL_LENGTH
        while left > 0 and (piece := file.read(min(left, PIECE))):
            check, left = zlib.crc32(piece, check), left - len(piece)
            yield piece
        if left or file.read(SEAL_LENGTH + 1) != SEAL % check:
            raise ValueError(f"{path} has changed since it was written")


def _no_link_and_no_wait(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)  # a pipe would be waited for


def can_be_changed_by_others(path: Path) -> bool:
    """Whether a file, or what is in a folder, may be another user's: root's and one's own count as one's own."""
    return any(_others_write(part.stat()) for part in (path, *(path.iterdir() if path.is_dir() else ())))


def _others_write(status: os.stat_result) -> bool:
    if status.st_uid not in (os.geteuid(), 0) or status.st_mode & stat.S_IWOTH:
        return True
    return bool(status.st_mode & stat.S_IWGRP) and not _is_of_one(status.st_gid, status.st_uid)


def _is_of_one(group: int, user: int) -> bool:
    """Whether a group is the user's private one, which many systems give everybody, with files writable to it."""
    try:
        entry, name = grp.getgrgid(group), pwd.getpwuid(user).pw_name
    except KeyError:
        return False
    return entry.gr_name == name and set(entry.gr_mem) <= {name}
