"""Opening files that people wrote: what is wrong with one is said as file, place and reason, in one line.

The one reader of lines and of JSON, so that a file reads alike wherever it is given. A line ends with LF, CR LF or,
in files that have no LF, with CR; never with U+2028 or U+0085, which may stand in a caption.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from velm_cli.errors import UserError

UNPACKED_AT_LEAST, UNPACKED_TIMES = 64 << 20, 50  # bytes, and times the packed size; captions come to 10 or 20 times
NOT_UTF8 = "save the file as UTF-8 (in Excel: CSV UTF-8)"

Refused = list[tuple[str, str]]  # (image id or file:line, reason) pairs, as in `Corpus.refused`


def read_bytes(path: Path) -> bytes:
    """The content of a file, unpacked if its name ends in .gz."""
    with opened(path) as file:
        return b"".join(iter(lambda: file.read(1 << 20), b""))


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A file to read bytes from, unpacked if its name ends in .gz. UserError for whatever goes wrong with it."""
    try:
        with path.open("rb") as file:
            if path.suffix.lower() != ".gz":
                yield file
                return
            with gzip.open(file) as packed:
                bounded = _Bounded(packed, most_unpacked(path.stat().st_size))
                yield io.BufferedReader(bounded, 1 << 20)  # type: ignore[type-var]
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (OSError, EOFError, _TooMuch, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def most_unpacked(packed: int) -> int:
    """The bytes that `packed` bytes may become: 3 MB of packed blanks would be 3 GB."""
    return UNPACKED_AT_LEAST + UNPACKED_TIMES * packed


class _TooMuch(Exception):
    """More was packed than any file of captions holds."""


class _Bounded(io.RawIOBase):
    """What gzip packed, up to `most` bytes."""

    def __init__(self, packed: gzip.GzipFile, most: int) -> None:
        self.packed, self.most, self.left = packed, most, most

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self.packed.readinto(buffer)
        self.left -= count
        if self.left < 0:
            raise _TooMuch(f"it unpacks to more than {self.most >> 20} MB, {UNPACKED_TIMES} times its size")
        return count


def parse_json(data: bytes, where: str, reduce: Callable[[dict], Any] | None = None) -> Any:
    """The JSON value in `data`. `reduce` replaces each object as soon as it is parsed, to save memory."""
    try:
        return json.loads(data.removeprefix(codecs.BOM_UTF8), object_hook=reduce)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        if error.msg == "Extra data" and data[error.pos : error.pos + 1] == b"{":
            raise UserError(
                f"{where} holds several JSON values, the second from {place}: write each on a line of its own "
                "(JSON lines; jq -c), or all as one list"
            ) from None
        raise UserError(f"{where} is broken JSON at {place}: {error.msg}; is the file complete?") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 text (byte {error.start}); is it a JSON file?") from None
    except RecursionError:
        raise UserError(f"{where} is nested too deeply to be an annotation file") from None
    except ValueError as error:  # a number of more digits than Python reads
        raise UserError(f"{where} is no annotation file: {error}") from None


def not_the_file(start: bytes) -> str | None:
    """What a file that begins so is instead of the data that it was taken for, as the end of a sentence."""
    if start.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer and not the file itself: run git lfs pull where it was cloned"
    if start.lstrip()[:15].lower().startswith((b"<!doctype", b"<html", b"<head")):
        return "a web page: a download that went wrong, or needs a login; fetch it again"
    return None


def load_json(path: Path, reduce: Callable[[dict], Any] | None = None) -> Any:
    """`parse_json` of a .json or .json.gz file."""
    return parse_json(read_bytes(path), str(path), reduce)


def text_lines(path: Path, refused: Refused) -> Iterator[tuple[int, str]]:
    """(number from 1, line without its end) of the lines that are not blank, of a file that may be .gz.

    UTF-8, or UTF-16 and UTF-32 that say so by their first bytes. Lines that are no UTF-8 are refused.
    """
    with opened(path) as file:
        first = file.readline()
        wide = _wide_encoding(first)
        if wide:
            yield from _wide_lines(path, first, file, wide)
            return
        first = first.removeprefix(codecs.BOM_UTF8)
        if b"\r" in first.rstrip(b"\r\n") and not first.endswith(b"\n"):
            lines: Iterator[bytes] = iter(first.split(b"\r"))  # an old Mac's: a file without any LF
        else:
            lines = _chain(first, file)
        for number, line in enumerate(lines, start=1):
            try:
                text = line.decode().rstrip("\r\n")
            except UnicodeDecodeError as error:
                refused.append((f"{path}:{number}", f"not UTF-8 text: byte {error.start + 1} of the line; {NOT_UTF8}"))
                continue
            if text.strip():
                yield number, text


def json_lines(path: Path, refused: Refused) -> Iterator[tuple[int, Any]]:
    """(line number, value) of a file with a JSON value a line; lines that are no JSON are refused.

    A comma after the value, as in lines cut out of a list, is passed over.
    """
    for number, line in text_lines(path, refused):
        try:
            yield number, json.loads(line)
        except json.JSONDecodeError as error:
            bare = line.rstrip()
            if error.msg == "Extra data" and bare.endswith(",") and error.pos == len(bare) - 1:
                yield number, json.loads(bare[:-1])
                continue
            refused.append((f"{path}:{number}", f"not JSON: {error.msg} (column {error.colno})"))
        except RecursionError:
            refused.append((f"{path}:{number}", "not JSON: nested too deeply"))
        except ValueError as error:  # a number of more digits than Python reads
            refused.append((f"{path}:{number}", f"not JSON: {error}"))


def _chain(first: bytes, rest: BinaryIO) -> Iterator[bytes]:
    if first:
        yield first
    yield from rest


def _wide_encoding(start: bytes) -> str | None:
    if start.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    return "utf-16" if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else None


def _wide_lines(path: Path, first: bytes, rest: BinaryIO, encoding: str) -> Iterator[tuple[int, str]]:
    decoder = codecs.getincrementaldecoder(encoding)()
    number, left = 0, ""
    try:
        for piece in _pieces(first, rest):
            *whole, left = (left + decoder.decode(piece)).split("\n")
            for text in whole:
                number += 1
                if text.strip():
                    yield number, text.rstrip("\r")
        left += decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not whole {encoding.upper()} text: {error.reason}; {NOT_UTF8}") from None
    if left.strip():
        yield number + 1, left.rstrip("\r")


def _pieces(first: bytes, rest: BinaryIO) -> Iterator[bytes]:
    yield first
    while piece := rest.read(1 << 20):
        yield piece
