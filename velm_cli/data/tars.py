"""Reading a tar of samples forward, from anything that can be read: nothing is ever written to a disk.

A sample is a run of members with one key: `00012.jpg`, `00012.txt` and `00012.json` (img2dataset's and
WebDataset's convention; the key is everything before the first dot of the file name). Python's tarfile would believe
any size that a header claims; this reader takes no more than a limit into memory.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from velm_cli.data.sources import SourceError

MAX_MEMBER = 256 << 20  # bytes; a larger image or caption is not read
MAX_HEADER = 1 << 20  # bytes of a long name or of pax records
SKIP = 1 << 20  # bytes read at once over a member that nobody wants
KEY = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.S)
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}


@dataclass
class Sample:
    """Members of one key: extension (lower case) -> content; None for what is too large to be read."""

    key: str
    parts: dict[str, bytes | None] = field(default_factory=dict)


Refuse = Callable[[str, str], None]  # name of a member, why it is left aside


def samples(
    file: BinaryIO, wants: Callable[[int, str], bool], refuse: Refuse | None = None
) -> Iterator[tuple[int, Sample]]:
    """(number of the sample in the tar from 0, sample) in the order of the tar, with the parts that `wants` asks for.

    `wants(number, extension)` is asked before a member is read. Members that belong to no sample are told to
    `refuse`. Raises SourceError where the tar is damaged or ends before its end.
    """
    number = -1
    current: Sample | None = None
    for name, member in members(file):
        match = KEY.fullmatch(name)
        if match is None or name.startswith("/") or ".." in name.split("/"):
            if refuse is not None:
                refuse(name, "name: " + ("leads out of the shard" if match or ".." in name else "is not KEY.extension"))
            continue
        key, extension = match[1], match[2].lower()
        if current is None or key != current.key:
            if current is not None:
                yield number, current
            number, current = number + 1, Sample(key)
        if wants(number, extension):
            current.parts[extension] = member.read() if member.size <= MAX_MEMBER else None
    if current is not None:
        yield number, current


class _Member:
    """The content of the member whose header was read last."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self.size = file, size
        self._left = size + -size % tarfile.BLOCKSIZE

    def read(self) -> bytes:
        content = _exactly(self._file, self._left)
        self._left = 0
        return content[: self.size]

    def skip(self) -> None:
        # Reading on is quicker than seeking for anything but large members of local files.
        while self._left:
            self._left -= len(_exactly(self._file, min(self._left, SKIP)))


def members(file: BinaryIO) -> Iterator[tuple[str, _Member]]:
    """(name, content) of the regular files. The content must be read before the next one is asked for, or never."""
    long_name: str | None = None
    long_size: int | None = None
    first = True
    while True:
        block = _read(file, tarfile.BLOCKSIZE)
        if len(block) < tarfile.BLOCKSIZE:
            raise SourceError("truncated: the tar ends without its end mark")
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            if not any(block):
                if not first:
                    return
                raise SourceError("empty: the tar has no members") from None
            packed = next((name for magic, name in COMPRESSED.items() if first and block.startswith(magic)), None)
            what = f"compressed with {packed}: velm reads plain tars" if packed else f"damaged: {error}"
            raise SourceError(what) from None
        first = False
        size = header.size if long_size is None else long_size
        if size < 0:
            raise SourceError("damaged: a member of negative size")
        member = _Member(file, size)
        if header.type in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
            if header.size > MAX_HEADER:
                raise SourceError(f"damaged: a name of {header.size:,} bytes")
            content = _Member(file, header.size).read()
            if header.type == tarfile.GNUTYPE_LONGNAME:
                long_name = content.rstrip(b"\0").decode("utf-8", "surrogateescape")
            else:
                records = _pax(content)
                long_name = records.get("path", long_name)
                try:
                    long_size = int(records["size"]) if "size" in records else long_size
                except ValueError:
                    raise SourceError("damaged: a size that is no number") from None
            continue
        name = header.name if long_name is None else long_name
        long_name = long_size = None
        if header.type in tarfile.REGULAR_TYPES:
            yield name, member
        elif header.type in (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE):
            continue  # of these a size says nothing of the tar
        member.skip()


def _pax(content: bytes) -> dict[str, str]:
    """The `LENGTH KEY=VALUE` records of a pax header."""
    records: dict[str, str] = {}
    while content and content[0]:
        digits, _, _ = content.partition(b" ")
        length = int(digits) if digits.isdigit() and len(digits) < 19 else 0
        if length <= len(digits):  # it would never end
            raise SourceError("damaged: pax records")
        key, equals, value = content[len(digits) + 1 : length - 1].partition(b"=")
        if not equals:
            raise SourceError("damaged: pax records")
        records[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        content = content[length:]
    return records


def _read(file: BinaryIO, count: int) -> bytes:
    """Up to `count` bytes, fewer only at the end."""
    try:
        data = file.read(count)
        while len(data) < count and (more := file.read(count - len(data))):
            data += more
        return data
    except Exception as error:  # each protocol has exceptions of its own
        text = " ".join(str(error).split()) or type(error).__name__
        raise SourceError(f"unreadable: {text[:300]}") from error


def _exactly(file: BinaryIO, count: int) -> bytes:
    data = _read(file, count)
    if len(data) < count:
        raise SourceError("truncated: the tar ends within a member")
    return data
