"""What has been done of long work on many images, kept line by line: after a kill the same command goes on from it.

A line is a chunk of rows, sealed; the last one may be torn by a kill, and is then done again. Rows are JSON objects
with the image's name under `image`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from velm_cli.errors import UserError
from velm_cli.files import lock, sealed, unsealed, writing_through_no_link

Row = Mapping[str, Any]


class Journal:
    """A file that only grows. Made by `open_journal`."""

    def __init__(self, file: BinaryIO, path: Path, chunks: int, done: set[str]) -> None:
        self._file, self.path, self.chunks, self.done = file, path, chunks, done

    def append(self, rows: Sequence[Row]) -> None:
        """One chunk, on the disk when this returns."""
        self._file.write((json.dumps(sealed({"rows": list(rows)})) + "\n").encode())
        self._file.flush()
        os.fsync(self._file.fileno())
        self.chunks += 1
        self.done.update(row["image"] for row in rows)

    def rows(self) -> Iterator[dict[str, Any]]:
        """All that have been appended, in their order."""
        with self.path.open("rb") as file:
            next(file)
            for line in file:
                yield from unsealed(json.loads(line))["rows"]


@contextlib.contextmanager
def open_journal(path: Path, about: Mapping[str, Any], *, fresh: bool = False) -> Iterator[Journal]:
    """The journal in `path`, which nobody else may use meanwhile; a new one where there is none, or with `fresh`.

    `about`: what its rows depend on, JSON values. UserError where it was begun with another one, or is not velm's.
    """
    with contextlib.ExitStack() as open_files:
        file = open_files.enter_context(os.fdopen(writing_through_no_link(path), "rb+", buffering=0))
        try:
            lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{path}: another velm is at work on it; wait for it, or give another out=") from None
        chunks, done = _read(file, path, about, fresh)
        yield Journal(file, path, chunks, done)  # type: ignore[arg-type]


def _read(file: Any, path: Path, about: Mapping[str, Any], fresh: bool) -> tuple[int, set[str]]:
    """What is whole in the file, behind which it then ends."""
    lines = file.readall().split(b"\n")
    if lines == [b""] or (len(lines) == 1 and _is_beginning(lines[0])):  # new, or killed at once
        begun = None
    else:
        begun = _unsealed(lines[0])
        if begun is None or begun.get("made_by") != "velm":
            raise UserError(f"{path} is there and was not written by velm: move it, or give another out=")
    whole = len(lines[0]) + 1
    if begun is None or fresh:
        file.seek(0)
        file.truncate()
        head = (json.dumps(sealed({"made_by": "velm", "about": dict(about)})) + "\n").encode()
        file.write(head)
        os.fsync(file.fileno())
        return 0, set()
    if (before := begun.get("about")) != dict(about):
        changed = next(
            (key for key in (*about, *(before or ())) if (before or {}).get(key) != about.get(key)), "its options"
        )
        raise UserError(
            f"{path} holds work that was begun with another {changed}: give the same, another out=, or fresh=true to "
            "begin anew"
        )
    chunks, done = 0, set[str]()
    for number, line in enumerate(lines[1:], 2):
        found = _unsealed(line)
        if found is None:
            if number < len(lines) - 1:
                raise UserError(f"{path}: line {number} is damaged; fresh=true begins anew")
            break  # torn by a kill
        done.update(row["image"] for row in found["rows"])
        chunks += 1
        whole += len(line) + 1
    file.truncate(whole)
    file.seek(0, os.SEEK_END)
    return chunks, done


def _unsealed(line: bytes) -> dict[str, Any] | None:
    try:
        return unsealed(json.loads(line))
    except (ValueError, AttributeError, RecursionError):
        return None


def _is_beginning(line: bytes) -> bool:
    """Of a first line that a kill has torn."""
    return line.startswith(b'{"made_by": "velm"')
