"""A file of results or references as somebody gives it: its bytes, once it is clear that they are text."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

from velm_cli.errors import UserError
from velm_cli.lines import not_the_file, read_bytes
from velm_cli.metrics.scores import check_vouched

# First bytes of what is no text -> what it is, and what to do.
NO_TEXT = {
    b"PK\x03\x04": "a zip archive or spreadsheet: unpack it and give the file in it, or save the sheet as CSV (UTF-8)",
    b"PAR1": "parquet: turn it into JSON with pandas.read_parquet(FILE).to_json(OUT, orient='records')",
    b"\x80": "a pickle or other binary data, which velm never reads: write JSON",
    b"\x93NUMPY": "an array of numpy: write JSON",
    b"\x1f\x8b": "packed by gzip: its name must end in .gz",
    b"\x89HDF": "HDF5: write JSON",
}


def given_text(path: Path, option: str, of: str) -> tuple[bytes, str]:
    """(content, digest of it). UserError for what is no text, is empty, or is velm's own and has changed.

    `of`: what the file holds, in words.
    """
    named = f"{option}={path}"
    if path.is_dir():
        raise UserError(f"{named} is a folder: give a file of {of} in it")
    try:
        data = read_bytes(path)
    except UserError as error:
        raise UserError(f"{option}={error}") from None
    check_vouched(path)
    if other := not_the_file(data[:4096]):
        raise UserError(f"{named} is {other}")
    for start, kind in NO_TEXT.items():
        if data.startswith(start):
            raise UserError(f"{named} is {kind}")
    if not data.strip():
        raise UserError(f"{named} is empty")
    return data, digest_of(data)


def digest_of(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def keys_again(data: bytes, value: Any, items: int) -> list[str]:
    """Keys that an object of this JSON has more than once: a parser keeps the last of them.

    Looked for where `items` have ids for their keys: in the parsed `value` itself, or in what it wraps.
    """
    wrapped = list(value.values()) if isinstance(value, dict) else []
    if not any(isinstance(each, dict) and len(each) == items for each in (value, *wrapped)):
        return []
    twice: list[str] = []

    def seen(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice.extend(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        return found

    json.loads(data.removeprefix(b"\xef\xbb\xbf"), object_pairs_hook=seen)
    return twice
