"""Standard output and error are not the work: a reader that goes away, a full disk or a lost terminal ends no training.

`endure` wraps both once, at the entry of the command line. From then on writing never raises: what nobody takes is
dropped, and the first reason is remembered. A command whose work *is* its output ends with the exit code that the
system's own tools have then; one that makes files is not changed by it, and notes it in its run's log.txt.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from velm_cli.errors import StageError, UserError
from velm_cli.files import write_bytes

CLOSED_PIPE = 128 + 13  # of a program that SIGPIPE has ended, as a shell sees it

_wrapped: list[_Enduring] = []
_works = False  # whether this command makes files


class _Enduring(io.RawIOBase):
    """A descriptor that takes everything."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.lost: OSError | None = None  # why something was not written, the first time

    def write(self, data) -> int:  # bytes of any kind -> how many were taken: all of them, or what the system took
        while True:
            try:
                return os.write(self._descriptor, data)
            except BlockingIOError:  # a pipe or terminal that somebody has set so, and that is full
                select.select([], [self._descriptor], [])
            except OSError as error:
                self.lost = self.lost or error
                return len(data)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)


def endure() -> None:
    """Wrap this process's own standard output and error; what a caller has put in their place stays."""
    for descriptor in range(3):  # closed ones would be given to files that velm opens, and printed into
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        stream, own = getattr(sys, name), getattr(sys, f"__{name}__")
        if stream is None or (stream is own and type(stream) is io.TextIOWrapper):
            setattr(sys, name, wrapped := _wrap(1 if name == "stdout" else 2, stream))
            setattr(sys, f"__{name}__", wrapped)


def _wrap(descriptor: int, stream: io.TextIOWrapper | None) -> io.TextIOWrapper:
    raw = _Enduring(descriptor)
    _wrapped.append(raw)
    if stream is not None:
        stream.flush()
    encoding = "utf-8" if stream is None else stream.encoding
    # Whole lines at once, so that `| tee` and a batch system's file show them when they are said; and what the terminal
    # cannot show, or is no character at all (a file's name may be any bytes), as its escape.
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, "backslashreplace", line_buffering=True)


def work_is_in_files() -> None:
    """From now on this command makes files, and its exit code says whether it made them."""
    global _works
    _works = True


def lost() -> str | None:
    """Why something could not be said on the console, in words; None if all of it was."""
    return next((raw.lost.strerror or str(raw.lost) for raw in _wrapped if raw.lost is not None), None)


def exit_code() -> int:
    """Of a command that did what it was asked: 0, unless its output was the work and got lost."""
    error = _wrapped[0].lost if _wrapped and not _works else None
    if error is None:
        return 0
    if error.errno in (errno.EPIPE, errno.EIO):
        return CLOSED_PIPE
    print(f"velm: cannot write to standard output: {error.strerror}", file=sys.stderr)
    return 1


class _Kept(io.TextIOBase):
    """A stream whose lines also go to a file, each with the time of the day."""

    def __init__(self, stream: TextIO, file: TextIO) -> None:
        self._stream, self._file = stream, file
        self._line = ""
        self._told = False

    def write(self, text: str) -> int:
        self._stream.write(text)
        *whole, self._line = (self._line + text).split("\n")
        if not self._told and (why := lost()):
            self._told = True
            whole.append(f"note: nothing more could be written to the console ({why}); the work goes on")
        for line in whole:
            self.note(line.rpartition("\r")[2])
        return len(text)

    def note(self, line: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # a full disk ends the work where it matters
            self._file.write(f"{time.strftime('%H:%M:%S')}  {line}\n" if line else "\n")
            self._file.flush()

    def flush(self) -> None:
        self._stream.flush()

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding


@contextlib.contextmanager
def kept_in(path: Path, heading: str) -> Iterator[None]:
    """Within the block standard output is also appended to `path`, after the date and a heading.

    It is for people, like the console, and never read back. The failure that ends the block is its last line, with the
    traceback where nothing else explains it.
    """
    with contextlib.suppress(OSError):  # replaced, not written into: it may have another name in somebody's home
        write_bytes(path, [path.read_bytes() if path.exists() else b""])
    stream = sys.stdout
    try:
        file = open(path, "a", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
    except OSError:  # of a full disk: what must be written will say so
        yield
        return
    with file:
        kept = _Kept(stream, file)
        kept.note(f"{time.strftime('%Y-%m-%d %z')}  {heading}")
        sys.stdout = kept
        try:
            yield
        except Exception as error:
            kept.note(f"failed: {error or type(error).__name__}")
            if not isinstance(error, (UserError, StageError)):
                import traceback

                kept.note("".join(traceback.format_exception(error)).rstrip())
            raise
        finally:
            sys.stdout = stream
