"""PNG files whose pixels are whole though something else in them is not: what Pillow is given instead.

Pillow refuses a file for a wrong checksum of a comment and for a comment or a colour profile above 1 MB, as drawing
programs write them, and it does not compare the checksum of the pixels. Here the pixels decide.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import BinaryIO

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MOST = 1 << 20  # bytes of a comment or profile that Pillow takes, unpacked
MOST_TEXT = 32 << 20  # of all comments together: half of what it takes
PACKED_A_BYTE = 1 << 10  # zlib packs at most about so many bytes into one
SHOWN = (b"IHDR", b"PLTE", b"tRNS", b"IDAT")  # what the pixels are made of
KEPT = (*SHOWN, b"eXIf", b"IEND")  # eXIf: which side is up


class DamagedPng(ValueError):
    """Bytes that the pixels are made of have changed since they were written."""


def pixels_only(file: BinaryIO) -> io.BytesIO | None:
    """The PNG in `file` with nothing but its pixels and EXIF block, where Pillow would fail for something else.

    None where Pillow may have the file as it is, as it may have whatever is no PNG or is cut off.
    Raises DamagedPng where a checksum of the pixels is wrong. The position in `file` is 0 afterwards.
    """
    try:
        if file.read(len(SIGNATURE)) != SIGNATURE:
            return None
        return _copy(file) if _fails(file) else None
    finally:
        file.seek(0)


def _fails(file: BinaryIO) -> bool:
    """Whether Pillow fails for a chunk that has no pixels."""
    fails, text = False, 0
    while (head := file.read(8)) and len(head) == 8:
        length, kind = struct.unpack(">I4s", head)
        if not kind.isalpha():
            return False  # no chunk: the rest is no PNG, of which Pillow says more
        checksum = zlib.crc32(kind)
        first, left = b"", length
        while left:
            piece = file.read(min(left, MOST))
            if not piece:
                return fails
            checksum, left, first = zlib.crc32(piece, checksum), left - len(piece), first or piece
        end = file.read(4)
        if len(end) < 4:
            return fails
        if checksum != int.from_bytes(end, "big"):
            if kind in SHOWN:
                raise DamagedPng(f"the checksum of its {kind.decode()} chunk is wrong")
            fails = True
        if kind in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            text += _unpacked(kind, first) if length <= MOST else MOST + 1
            fails |= text > MOST_TEXT or length > MOST or _unpacked(kind, first) > MOST
        if kind == b"IEND":
            break
    return fails


def _unpacked(kind: bytes, data: bytes) -> int:
    """Bytes of a chunk of text when it is unpacked; more than MOST is MOST + 1."""
    if kind == b"tEXt" or (len(data) * PACKED_A_BYTE < MOST and kind != b"iTXt"):
        return len(data)
    packed = data.partition(b"\0")[2]
    if kind == b"iTXt":
        if packed[:1] != b"\1":
            return len(data)
        packed = packed[1:].partition(b"\0")[2].partition(b"\0")[2]
    try:
        return len(zlib.decompressobj().decompress(packed[1:] if kind != b"iTXt" else packed, MOST + 1))
    except zlib.error:
        return MOST + 1


def _copy(file: BinaryIO) -> io.BytesIO:
    file.seek(len(SIGNATURE))
    copy = io.BytesIO()
    copy.write(SIGNATURE)
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        content = file.read(length + 4)
        right = zlib.crc32(kind + content[:-4]) == int.from_bytes(content[-4:], "big")
        if kind in KEPT and (right or kind in SHOWN):
            copy.write(head + content)
        if kind == b"IEND":
            if not right:
                copy.write(struct.pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND")))
            break
    copy.seek(0)
    return copy
