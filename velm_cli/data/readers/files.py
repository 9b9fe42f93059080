"""Opening annotation files: what is wrong with one is said as file, place and reason, in one line."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from velm_cli.errors import UserError

UNPACKED_AT_LEAST, UNPACKED_TIMES = 64 << 20, 50  # bytes, and times the packed size; captions come to 10 or 20 times

Refused = list[tuple[str, str]]  # (image id or file:line, reason) pairs, as in `Corpus.refused`


def read_bytes(path: Path) -> bytes:
    """The content of a file, unpacked if its name ends in .gz."""
    try:
        data = path.read_bytes()
        return _unpacked(data) if path.suffix == ".gz" else data
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def most_unpacked(packed: int) -> int:
    """The bytes that `packed` bytes may become: 3 MB of packed blanks would be 3 GB."""
    return UNPACKED_AT_LEAST + UNPACKED_TIMES * packed


def _unpacked(data: bytes) -> bytes:
    """What gzip packed. ValueError for more than any file of captions becomes."""
    most, left = most_unpacked(len(data)), most_unpacked(len(data))
    parts: list[bytes] = []
    with gzip.open(io.BytesIO(data)) as file:
        while piece := file.read(1 << 20):
            parts.append(piece)
            left -= len(piece)
            if left < 0:
                raise ValueError(f"it unpacks to more than {most >> 20} MB, {UNPACKED_TIMES} times its size")
    return b"".join(parts)


def parse_json(data: bytes, where: str, reduce: Callable[[dict], Any] | None = None) -> Any:
    """The JSON value in `data`. `reduce` replaces each object as soon as it is parsed, to save memory."""
    try:
        return json.loads(data, object_hook=reduce)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise UserError(f"{where} is broken JSON at {place}: {error.msg}; is the file complete?") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 text (byte {error.start}); is it a JSON file?") from None
    except RecursionError:
        raise UserError(f"{where} is nested too deeply to be an annotation file") from None
    except ValueError as error:  # a number of more digits than Python reads
        raise UserError(f"{where} is no annotation file: {error}") from None


def load_json(path: Path, reduce: Callable[[dict], Any] | None = None) -> Any:
    """`parse_json` of a .json or .json.gz file."""
    return parse_json(read_bytes(path), str(path), reduce)


def text_lines(path: Path, refused: Refused) -> Iterator[tuple[int, str]]:
    """(number from 1, line without its end) of the lines that are not blank; undecodable ones are refused."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    with file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                refused.append((f"{path}:{number}", f"not UTF-8 text (byte {error.start + 1} of the line)"))
                continue
            if text.strip():
                yield number, text
