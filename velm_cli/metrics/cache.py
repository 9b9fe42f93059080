"""Files of velm's cache that scores are made of: used only while they are whole and nobody else can have changed them.

One changed byte of a parse moves SPICE by points without a word, and a cache may lie where others write. So each file
ends with the CRC-32 of what comes before, in the same file, which is replaced whole; and it counts only where its owner
is the user (or root) and nobody else may write it. A file that does not count costs the time to make it again.
"""

from __future__ import annotations

import os
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
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:  # a pipe would never end
        status = os.fstat(file.fileno())
        others_write = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if not stat.S_ISREG(status.st_mode) or others_write or status.st_uid not in (os.geteuid(), 0):
            raise ValueError(f"{path} can be changed by others")
        check, left = 0, status.st_size - SEAL_LENGTH
        while left > 0 and (piece := file.read(min(left, PIECE))):
            check, left = zlib.crc32(piece, check), left - len(piece)
            yield piece
        if left or file.read(SEAL_LENGTH + 1) != SEAL % check:
            raise ValueError(f"{path} has changed since it was written")
