"""PNG files with something wrong beside their pixels: the pixels decide."""

from __future__ import annotations

import io
import struct
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from velm_cli.data.images import ImageRefused, check_image, normalise_image

normalise = partial(normalise_image, image_size=64, quality=90, max_pixels=10_000_000)


def chunk(kind: bytes, data: bytes, wrong: bool = False) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) ^ wrong)


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    at, found = 8, []
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def written(parts: list[bytes]) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.fixture
def plain() -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (50, 70, 4), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG", exif=exif)
    return file.getvalue()


BIG = zlib.compress(b"a workflow of a drawing program, " * 50_000)
OTHERS = {
    "a flipped bit in a comment": chunk(b"tEXt", b"Author\0somebody", wrong=True),
    "a flipped bit in an unknown chunk": chunk(b"prVw", b"preview", wrong=True),
    "a packed comment above 1 MB": chunk(b"zTXt", b"workflow\0\0" + BIG),
    "a packed international comment above 1 MB": chunk(b"iTXt", b"workflow\0\1\0en\0\0" + BIG),
    "a colour profile above 1 MB": chunk(b"iCCP", b"profile\0\0" + BIG),
    "a colour profile that is not packed": chunk(b"iCCP", b"profile\0\0" + b"x" * 2000),
    "comments above 64 MB": b"".join(chunk(b"tEXt", b"a\0" + b"x" * 1_000_000) for _ in range(70)),
}


@pytest.mark.parametrize("after", [False, True], ids=["before the pixels", "after them"])
@pytest.mark.parametrize("other", OTHERS)
def test_the_pixels_decide(plain, other, after, tmp_path):
    first, *middle, last = [chunk(*part) for part in chunks(plain)]
    parts = [first, *middle, OTHERS[other], last] if after else [first, OTHERS[other], *middle, last]
    (path := tmp_path / "x.png").write_bytes(written(parts))
    expected = normalise(plain)
    assert (expected.width, expected.height) == (50, 70), "turned by its EXIF"
    assert normalise(path) == normalise(path.read_bytes()) == expected
    check_image(path.read_bytes(), max_pixels=10_000_000)


@pytest.mark.parametrize("kind", [b"IHDR", b"IDAT"])
def test_a_wrong_checksum_of_pixels_is_refused_with_its_reason(plain, kind):
    parts = [chunk(name, data, wrong=name == kind) for name, data in chunks(plain)]
    with pytest.raises(ImageRefused, match=f"^damaged: the checksum of its {kind.decode()} chunk is wrong$"):
        normalise(written(parts))


def test_truncated_pixels_stay_refused(plain):
    parts = [chunk(b"tEXt", b"Author\0somebody", wrong=True), *(chunk(*part) for part in chunks(plain))]
    whole = written([parts[1], parts[0], *parts[2:]])
    with pytest.raises(ImageRefused):
        normalise(whole[: len(whole) // 2])
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_heic_and_its_like_are_named(tmp_path):
    path: Path = tmp_path / "x.jpg"
    path.write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 40)
    with pytest.raises(ImageRefused, match=r"^unsupported: HEIC, as iPhones write it; convert it to JPEG"):
        normalise(path)
    path.write_bytes(b"qoif" + b"\0" * 40)
    with pytest.raises(ImageRefused, match=r"^unsupported: QOI; convert it to JPEG or PNG$"):
        normalise(path)
