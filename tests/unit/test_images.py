"""Every kind of file that data sets hold: usable ones come out right, the others are refused by name."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import signal
import struct
import time
import warnings
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from velm_cli.data.images import ImageRefused, NormalisedImage, normalise_image, normalise_many
from velm_cli.data.processes import Limits
from velm_cli.errors import StageError

NO_LIMITS = Limits()
normalise = partial(normalise_image, image_size=256, quality=95, max_pixels=10_000_000)


def blocks(rng: np.random.Generator, height: int, width: int, channels: int, side: int = 16) -> np.ndarray:
    """uint8 [height, width, channels] of one-coloured squares, which JPEG keeps nearly exact inside."""
    coarse = rng.integers(0, 256, (height // side, width // side, channels), np.uint8)
    return coarse.repeat(side, 0).repeat(side, 1)


def centres(pixels: np.ndarray, side: int = 16) -> np.ndarray:
    return pixels[side // 2 :: side, side // 2 :: side].astype(float)


def decoded(image: NormalisedImage) -> np.ndarray:
    with Image.open(io.BytesIO(image.jpeg)) as opened:
        assert (opened.format, opened.mode, opened.size) == ("JPEG", "RGB", (image.width, image.height))
        return np.asarray(opened)


def assert_looks_like(image: NormalisedImage, expected: np.ndarray, tolerance: float = 6) -> None:
    """The colours in the middle of the blocks of `expected` (uint8 or float [height, width, 3])."""
    assert (image.height, image.width) == expected.shape[:2]
    assert np.abs(centres(decoded(image)) - centres(expected)).max() <= tolerance


# ---------------------------------------------------------------------------------- usable files

# From the EXIF standard: orientation -> the visual side of row 0, and that of column 0.
SIDES = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}


def stored_as(upright: np.ndarray, orientation: int) -> np.ndarray:
    """The array a camera writes with this orientation when the scene looks like `upright`."""
    row_side, column_side = SIDES[orientation]
    seen = upright
    if "bottom" in (row_side, column_side):
        seen = seen[::-1]
    if "right" in (row_side, column_side):
        seen = seen[:, ::-1]
    return seen if row_side in ("top", "bottom") else seen.swapaxes(0, 1)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation, suffix):
    upright = blocks(np.random.default_rng(), 96, 64, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / f"photo.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {"quality": 95, "subsampling": 0}
    options = {} if suffix in ("png", "tiff") else options
    Image.fromarray(np.ascontiguousarray(stored_as(upright, orientation))).save(file, exif=exif, **options)
    assert_looks_like(normalise(file), upright)


@pytest.mark.parametrize("suffix", ["jpg", "tiff"])  # Adobe stores the inks of a JPEG inverted
@pytest.mark.parametrize("profile", [None, "of RGB", "broken"])
def test_cmyk(tmp_path, suffix, profile):
    inks = blocks(np.random.default_rng(), 64, 96, 4)
    file = tmp_path / f"print.{suffix}"
    options = {"quality": 95, "subsampling": 0} if suffix == "jpg" else {}
    if profile == "of RGB":
        options["icc_profile"] = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    elif profile == "broken":
        options["icc_profile"] = b"no profile" * 20
    Image.fromarray(inks, "CMYK").save(file, **options)
    light = 255 - inks.astype(float)
    assert_looks_like(normalise(file), light[..., :3] * light[..., 3:] / 255, tolerance=8)


@pytest.mark.parametrize("suffix", ["png", "tiff", "big-endian.tiff", "pgm"])
def test_16_bits_are_scaled_not_clipped(tmp_path, suffix):
    values = np.random.default_rng().integers(0, 65536, (4, 6), np.uint16).repeat(16, 0).repeat(16, 1)
    file = tmp_path / f"depth.{suffix}"
    if suffix == "big-endian.tiff":
        Image.frombytes("I;16B", (96, 64), values.astype(">u2").tobytes()).save(file)
    elif suffix == "pgm":
        file.write_bytes(b"P5 96 64 65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(file)
    assert_looks_like(normalise(file), np.stack([values / 257.0] * 3, -1), tolerance=4)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_becomes_white(tmp_path, mode):
    pixels = blocks(np.random.default_rng(), 64, 96, len(mode))
    Image.fromarray(pixels, mode).save(tmp_path / "cut-out.png")
    colour, alpha = pixels[..., :-1].astype(float), pixels[..., -1:] / 255
    expected = np.broadcast_to(colour * alpha + 255 * (1 - alpha), (64, 96, 3))
    assert_looks_like(normalise(tmp_path / "cut-out.png"), expected)


@pytest.mark.parametrize("suffix", ["gif", "png"])
def test_transparent_palette_entries_become_white(tmp_path, suffix):
    rng = np.random.default_rng()
    palette = rng.integers(0, 256, (8, 3), np.uint8)
    indices = blocks(rng, 64, 96, 1)[..., 0] % 8
    image = Image.fromarray(indices, "P")
    image.putpalette(palette.tobytes())
    image.save(tmp_path / f"logo.{suffix}", transparency=3)
    palette[3] = 255
    assert_looks_like(normalise(tmp_path / f"logo.{suffix}"), palette[indices], tolerance=10)


@pytest.mark.parametrize("mode", ["L", "1", "RGB", "YCbCr"])
def test_other_modes_become_rgb(tmp_path, mode):
    scene = Image.fromarray(blocks(np.random.default_rng(), 64, 96, 3)).convert(mode, dither=0)
    file = tmp_path / ("scene.tiff" if mode == "YCbCr" else "scene.png")
    scene.save(file, compression="tiff_lzw")  # uncompressed YCbCr is read from Pillow 13 on
    assert_looks_like(normalise(file), np.asarray(scene.convert("RGB")))


def test_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (64, 48), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "moves.gif", save_all=True, append_images=frames[1:])
    assert np.abs(decoded(normalise(tmp_path / "moves.gif")) - np.array([254.0, 0, 0])).max() <= 3


# ---------------------------------------------------------------------------------- size


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((640, 480), (341, 256)),
        ((480, 640), (256, 341)),
        ((3000, 2000), (384, 256)),  # decoded at a fraction
        ((100, 60), (100, 60)),  # never enlarged
        ((30_000, 100), (800, 100)),  # the middle of a strip
        ((300, 6000), (256, 2048)),
        ((8, 8), (8, 8)),
    ],
)
def test_sizes(tmp_path, size, expected):
    Image.new("RGB", size, "orange").save(tmp_path / "x.jpg")
    image = normalise(tmp_path / "x.jpg")
    assert (image.width, image.height) == expected
    assert decoded(image).shape == (*expected[::-1], 3)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_shrinking_is_antialiased_and_cuts_strips_in_their_middle(tmp_path, suffix):
    """Against the mean over areas, on a strip of 40:1 whose brightness rises from left to right."""
    ramp = np.linspace(0, 255, 12_000).astype(np.uint8)
    noise = np.random.default_rng().integers(-40, 41, (300, 12_000))
    Image.fromarray(np.clip(ramp + noise, 0, 255).astype(np.uint8)).save(tmp_path / f"strip.{suffix}")
    pixels = decoded(normalise(tmp_path / f"strip.{suffix}")).astype(float)
    assert pixels.shape == (256, 2048, 3)
    middle = ramp[4800:7200].astype(float)
    expected = np.interp(np.linspace(0, 1, 2048), np.linspace(0, 1, 2400), middle)
    assert np.abs(pixels.mean((0, 2)) - expected).max() < 6


def test_small_images_keep_their_colours_sharp(tmp_path):
    """4:4:4 up to 128 pixels, 4:2:0 beyond; seen in the sampling factors of the JPEG's frame header."""
    for side, sampling in [(128, 0x11), (129, 0x22)]:
        Image.new("RGB", (side, side), "red").save(tmp_path / "x.png")
        jpeg = normalise(tmp_path / "x.png").jpeg
        assert jpeg[jpeg.index(b"\xff\xc0") + 11] == sampling


def test_same_file_same_bytes_and_nothing_else_of_it(tmp_path):
    scene = Image.fromarray(blocks(np.random.default_rng(), 64, 96, 3))
    exif = Image.Exif()
    exif[0x010E] = "where the photographer lives"
    scene.save(tmp_path / "x.jpg", exif=exif, comment=b"secret comment", icc_profile=b"profile" * 30)
    first = normalise(tmp_path / "x.jpg")
    assert normalise(tmp_path / "x.jpg") == first
    assert not any(text in first.jpeg for text in (b"photographer", b"secret", b"profile"))


# ---------------------------------------------------------------------------------- refusals


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


def damage(kind: str, file: Path) -> None:
    """Write a file of this kind of damage."""
    noise = Image.fromarray(np.random.default_rng().integers(0, 256, (90, 120, 3), np.uint8))
    whole = io.BytesIO()
    if kind.startswith("half a "):
        noise.save(whole, kind.removeprefix("half a "))
        file.write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "text":
        file.write_text("<html>404: this photo is no longer available</html>")
    elif kind == "one pixel":
        noise.resize((1, 1)).save(file, "PNG")
    elif kind == "thin":
        noise.resize((3000, 7)).save(file, "PNG")
    elif kind == "bomb":
        file.write_bytes(png_header(60_000, 60_000))
    elif kind == "small bomb":
        file.write_bytes(png_header(4000, 4000))
    elif kind == "postscript":
        noise.save(file, "EPS")
    elif kind == "float":
        Image.fromarray(np.random.default_rng().random((32, 32), np.float32)).save(file, "TIFF")
    elif kind == "32 bits":
        Image.fromarray(np.full((32, 32), 1 << 20, np.int32)).save(file, "TIFF")
    elif kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    else:
        assert kind == "absent"


DAMAGE = {
    "empty": "empty: the file has 0 bytes",
    "text": "not an image: a web page: a download that went wrong",
    "half a JPEG": "truncated: ",
    "half a PNG": "truncated: ",
    "half a GIF": "truncated: ",
    "half a BMP": "truncated: ",
    "half a WEBP": "",
    "half a TIFF": "",
    "one pixel": "too small: 1x1 pixels",
    "thin": "too small: 3000x7 pixels",
    "bomb": "too many pixels: ",
    "small bomb": "too many pixels: 4000x4000",
    "postscript": "unsupported: PostScript; convert it",
    "float": "unsupported: floating-point",
    "32 bits": "unsupported: more than 16 bits",
    "folder": "unreadable: not a regular file",
    "pipe": "unreadable: not a regular file",
    "absent": "unreadable: No such file",
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_refusals(tmp_path, kind):
    damage(kind, tmp_path / "x.jpg")
    with warnings.catch_warnings(record=True) as leaked:
        warnings.simplefilter("always")
        limit = Image.MAX_IMAGE_PIXELS
        with pytest.raises(ImageRefused) as refusal:
            normalise(tmp_path / "x.jpg")
        assert limit == Image.MAX_IMAGE_PIXELS
    assert not leaked
    reason = str(refusal.value)
    assert reason.startswith(DAMAGE[kind])
    assert ": " in reason
    assert "\n" not in reason
    assert str(tmp_path) not in reason  # the same file refused elsewhere has the same reason


@pytest.mark.parametrize("suffix", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_no_damage_escapes_as_another_error(tmp_path, suffix):
    rng = np.random.default_rng()
    buffer = io.BytesIO()
    Image.fromarray(blocks(rng, 64, 96, 3)).save(buffer, suffix)
    for _ in range(60):
        data = np.frombuffer(buffer.getvalue(), np.uint8).copy()
        where = rng.integers(0, min(len(data), 400), 6)
        data[where] = rng.integers(0, 256, 6)
        (tmp_path / "x").write_bytes(data.tobytes())
        with contextlib.suppress(ImageRefused):
            assert isinstance(normalise(tmp_path / "x"), NormalisedImage)


# ---------------------------------------------------------------------------------- many


def pretend(path: Path) -> NormalisedImage:
    """Stands for a decoder: kills its process over some files, refuses others."""
    if path.name.startswith("crash"):
        os.kill(os.getpid(), signal.SIGKILL)
    if path.name.startswith("bad"):
        raise ImageRefused("bad: as asked")
    if path.name.startswith("hang"):
        hashlib.pbkdf2_hmac("sha256", b"", b"", (1 << 31) - 1)  # half an hour of C code, which looks at no signal
    if path.name.startswith("block"):
        time.sleep(1000)
    return NormalisedImage(path.name.encode(), 1, 1)


def slow(path: Path) -> NormalisedImage:
    time.sleep(0.002)
    return NormalisedImage(str(os.getpid()).encode(), 1, 1)


def test_many_keeps_the_order_and_refuses_what_kills_a_worker():
    names = [f"fine{i}" for i in range(160)]
    names[3], names[40], names[41], names[-1] = "bad", "crash-a", "bad", "crash-b"
    results = list(normalise_many(map(Path, names), pretend, 2, NO_LIMITS))
    assert len(results) == len(names)
    for name, result in zip(names, results, strict=True):
        if name.startswith("crash"):
            assert str(result).startswith("fatal: ")
        elif name == "bad":
            assert str(result) == "bad: as asked"
        else:
            assert result == NormalisedImage(name.encode(), 1, 1)


def test_many_survives_a_worker_that_is_killed_from_outside():
    results = normalise_many((Path(str(i)) for i in range(320)), slow, 2, NO_LIMITS)
    os.kill(int(next(results).jpeg), signal.SIGKILL)
    rest = list(results)
    assert len(rest) == 320 - 1
    assert all(isinstance(result, NormalisedImage) for result in rest)


def test_many_reads_ahead_by_a_few_images_only():
    taken = []
    paths = (taken.append(i) or Path(str(i)) for i in range(16_000))
    results = normalise_many(paths, pretend, 1, NO_LIMITS)
    next(results)
    assert len(taken) <= 80
    results.close()


def test_many_refuses_what_takes_too_long_and_goes_on():
    names = [f"fine{i}" for i in range(100)]
    names[5], names[30], names[31] = "hang-a", "block", "hang-b"
    results = list(normalise_many(map(Path, names), pretend, 2, Limits(seconds=0.1)))
    reason = "too slow: not decoded in preprocess.seconds_per_image=0.1"
    expected = [NormalisedImage(name.encode(), 1, 1) if name[0] == "f" else reason for name in names]
    assert [result if isinstance(result, NormalisedImage) else str(result) for result in results] == expected


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux counts a process's memory")
def test_many_refuses_what_needs_too_much_memory_and_goes_on(tmp_path):
    Image.new("RGB", (6000, 6000), "red").save(tmp_path / "large.png")  # 108 MB of pixels in a file of 100 KB
    Image.new("RGB", (60, 60), "red").save(tmp_path / "small.png")
    paths = [tmp_path / name for name in ("small.png", "large.png", "small.png")]
    large = partial(normalise_image, image_size=64, quality=90, max_pixels=1 << 30)
    first, refused, last = normalise_many(paths, large, 1, Limits(memory=64 << 20))
    assert str(refused) == "too large: decoding it needs more than preprocess.memory_per_image"
    assert isinstance(first, NormalisedImage) and first == last
    assert all(isinstance(image, NormalisedImage) for image in normalise_many(paths, large, 1, Limits(memory=1 << 30)))


class NotHere:
    """Arrives in no other process."""

    def __reduce__(self):
        return os._exit, (3,)


def test_many_says_when_no_worker_starts():
    with pytest.raises(StageError, match=r"worker processes die at their start \(exit\)"):
        list(normalise_many([Path("a")], partial(pretend, NotHere()), 1, NO_LIMITS))
