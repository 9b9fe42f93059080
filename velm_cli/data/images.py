"""Check one image file and turn it into the one form that the store keeps: an upright RGB JPEG.

Photos come truncated, rotated by EXIF, in CMYK, with 16 bits, with alpha, as text files called .jpg or
as decompression bombs. Here is the only place that knows: whoever reads the store meets none of it. A
file that cannot be used is refused with a reason, never replaced by a blank.
"""

from __future__ import annotations

import io
import stat
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError
from PIL.Image import Resampling, Transpose

from velm_cli.data.png import SIGNATURE, DamagedPng, pixels_only
from velm_cli.data.processes import Died, Limits, work_in_order
from velm_cli.lines import not_the_file

MIN_SIDE = 8  # pixels; below it a file is a tracking pixel or a placeholder, not a photo
MAX_ASPECT = 8  # a longer strip is cut to its middle, so that no image is many times the others' size
FULL_CHROMA_SIDE = 128  # up to this shorter side a colour is worth more than the bytes 4:2:0 saves
MOST_PIXELS = 178_956_970  # where no option says otherwise: as dataset.max_pixels
OVERSAMPLING = 1.5  # pixels decoded along a side, for each that is kept

# Only formats of photos: Pillow's others include EPS, which starts Ghostscript.
FORMATS = ("JPEG", "MPO", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF")
HEIF = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")  # brands of files that Pillow does not read
OTHERS = {  # how files begin that hold pictures of other formats
    b"\x00\x00\x01\x00": "ICO",
    b"qoif": "QOI",
    b"<svg": "SVG",
    b"<?xml": "SVG or other XML",
    b"8BPS": "Photoshop",
    b"%PDF": "PDF",
    b"%!PS": "PostScript",
    b"\xff\x0a": "JPEG XL",
    b"\x00\x00\x00\x0cJXL ": "JPEG XL",
    b"v/1\x01": "OpenEXR",
    b"DDS ": "DDS",
}
UPRIGHT = {  # EXIF orientation -> what undoes it
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
ORIENTATION = 0x0112  # its EXIF tag


class ImageRefused(Exception):
    """Why a file cannot be used, as `kind: detail`; the kinds are few, so they can be counted."""


@dataclass(frozen=True, slots=True)
class NormalisedImage:
    """A JPEG with its size in pixels."""

    jpeg: bytes
    width: int
    height: int


Normalise = Callable[[Path], NormalisedImage]


def normalise_image(
    source: Path | bytes | Image.Image, *, image_size: int, quality: int, max_pixels: int
) -> NormalisedImage:
    """The image of a path, a file's content or Pillow, upright, RGB, its shorter side at most `image_size`, as JPEG.

    Smaller images keep their size; of animations the first frame counts; transparency becomes white;
    strips beyond 8:1 are cut to their middle. The same file gives the same bytes. Raises ImageRefused
    for whatever cannot be decoded to its end, has a side under 8 pixels or more than `max_pixels`.
    """
    with _opened(source, max_pixels) as image:
        small = _resized(image, image_size)
        upright = UPRIGHT.get(_orientation(image))
        return _encoded(small.transpose(upright) if upright is not None else small, quality)


def read_rgb(source: Path | bytes, *, longer_side: float | None = None, max_pixels: int = MOST_PIXELS) -> Image.Image:
    """The pixels that `normalise_image` makes of a file: upright, RGB, opaque; in full size without `longer_side`.

    For who looks at images without storing them. Raises ImageRefused as it does.
    """
    with _opened(source, max_pixels) as image:
        shorter, longer = min(image.size), min(max(image.size), MAX_ASPECT * min(image.size))
        small = _resized(image, shorter if longer_side is None else shorter * longer_side / longer)
        upright = UPRIGHT.get(_orientation(image))
        return _as_rgb(small.transpose(upright) if upright is not None else small)


def check_image(content: bytes, *, max_pixels: int) -> None:
    """Raise ImageRefused for what `normalise_image` would refuse; a JPEG is decoded at an eighth of its size."""
    with _opened(content, max_pixels) as image:
        image.draft(None, (1, 1))
        image.load()
        _check_range(image)


def is_plain(content: bytes) -> bool:
    """Whether a checked image can be shown as it is: RGB or grey of 8 bits, upright, opaque, no long strip."""
    with Image.open(io.BytesIO(content), formats=_formats()) as image:
        return (
            image.mode in ("RGB", "L")
            and not image.has_transparency_data
            and max(image.size) <= MAX_ASPECT * min(image.size)
            and _orientation(image) not in UPRIGHT
        )


@contextmanager
def _opened(source: Path | bytes | Image.Image, max_pixels: int) -> Iterator[Image.Image]:
    """An image of a size that is allowed; whatever is wrong with it, then or in the block, as ImageRefused."""
    if isinstance(source, Path):
        _check_file(source)
    elif isinstance(source, bytes) and not source:
        raise ImageRefused("empty: the file has 0 bytes")
    try:
        with _bounded_pillow(max_pixels), _decoder(source) as image:
            width, height = image.size
            if min(width, height) < MIN_SIDE:
                raise ImageRefused(f"too small: {width}x{height} pixels, both sides must have {MIN_SIDE}")
            if width * height > max_pixels:
                raise ImageRefused(f"too many pixels: {width}x{height}, dataset.max_pixels={max_pixels}")
            yield image
    except ImageRefused:
        raise
    except UnidentifiedImageError:
        assert not isinstance(source, Image.Image)
        with source.open("rb") if isinstance(source, Path) else io.BytesIO(source) as file:
            raise ImageRefused(_what_else(file.read(32))) from None
    except DamagedPng as error:
        raise ImageRefused(f"damaged: {error}") from None
    except MemoryError:
        raise ImageRefused("too large: decoding it needs more than preprocess.memory_per_image") from None
    except Image.DecompressionBombError:
        raise ImageRefused(f"too many pixels: over twice dataset.max_pixels={max_pixels}") from None
    except Exception as error:  # decoders raise nearly every type on damaged input
        kind = "truncated" if "truncated" in str(error).lower() else "undecodable"
        raise ImageRefused(f"{kind}: {' '.join(str(error).split()) or type(error).__name__}") from None


@contextmanager
def _decoder(source: Path | bytes | Image.Image) -> Iterator[Image.Image]:
    """The image before its pixels are decoded; one of Pillow as a copy, for what follows changes it."""
    if isinstance(source, Image.Image):
        yield source.copy()
        return
    with (
        source.open("rb") if isinstance(source, Path) else io.BytesIO(source) as file,
        Image.open(pixels_only(file) or file, formats=_formats()) as image,
    ):
        yield image


def _what_else(start: bytes) -> str:
    """Why a file that begins so is none of FORMATS."""
    if start[4:8] == b"ftyp" and start[8:12] in HEIF:
        return "unsupported: HEIC, as iPhones write it; convert it to JPEG, for example with heif-convert"
    if found := next((name for magic, name in OTHERS.items() if start.startswith(magic)), None):
        return f"unsupported: {found}; convert it to JPEG or PNG"
    if start.startswith(SIGNATURE):
        return "damaged: a PNG whose first chunk is not as it was written"
    if start.startswith(b"\xff\xd8\xff"):
        return "damaged: a JPEG whose header is not whole"
    if other := not_the_file(start):
        return f"not an image: {other}"
    return f"not an image: the file starts with {start[:8]!r}"


def _check_file(path: Path) -> None:
    try:
        status = path.stat()
    except OSError as error:
        raise ImageRefused(f"unreadable: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode):
        raise ImageRefused("unreadable: not a regular file")
    if status.st_size == 0:
        raise ImageRefused("empty: the file has 0 bytes")


@contextmanager
def _bounded_pillow(max_pixels: int) -> Iterator[None]:
    """Pillow's own bomb check at our limit (frames and tiles have sizes of their own), and no warnings."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = max_pixels
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _formats() -> list[str]:
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]  # old Pillows lack AVIF


def _resized(image: Image.Image, image_size: float) -> Image.Image:
    """Decode `image` wholly and shrink it. Modes that cannot be interpolated are converted before."""
    width, height = image.size
    shorter = min(width, height)
    scale = min(1.0, image_size / shorter)
    cut_width, cut_height = min(width, MAX_ASPECT * shorter), min(height, MAX_ASPECT * shorter)
    size = round(cut_width * scale), round(cut_height * scale)

    # JPEG: decode the smallest fraction that leaves resampling half as much again as it needs (45 dB from a full
    # decode, where the stored JPEG itself is at 30 to 35).
    image.draft(None, (round(OVERSAMPLING * width * scale), round(OVERSAMPLING * height * scale)))
    image.load()
    x, y = image.width / width, image.height / height  # below 1 after a draft
    left, top = (width - cut_width) / 2 * x, (height - cut_height) / 2 * y
    box = (left, top, min(left + cut_width * x, image.width), min(top + cut_height * y, image.height))
    pixels = _interpolable(image)
    if pixels.size == size:
        return pixels
    return pixels.resize(size, Resampling.BICUBIC, box=box, reducing_gap=3.0)


def _interpolable(image: Image.Image) -> Image.Image:
    """`image` in one of the modes L, RGB, LA, RGBA, CMYK."""
    _check_range(image)
    if image.mode.startswith("I"):  # 16 bits, which `convert` would clip at 255
        values = np.asarray(image)
        return Image.fromarray((values >> 8).astype(np.uint8))  # as Pillow does for 16-bit colour
    if image.has_transparency_data:
        return image if image.mode in ("LA", "RGBA") else image.convert("RGBA")
    return image if image.mode in ("L", "RGB", "CMYK") else image.convert("RGB")


def _check_range(image: Image.Image) -> None:
    """Raise ImageRefused for pixels whose values have no agreed range."""
    if image.mode == "F":
        raise ImageRefused("unsupported: floating-point pixels have no agreed range")
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise ImageRefused("unsupported: more than 16 bits a pixel")


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:  # a broken EXIF block says nothing about the pixels
        return 1


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("LA", "RGBA"):
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    elif image.mode == "CMYK":
        image = _from_cmyk(image)
    rgb = image.convert("RGB")
    rgb.info.clear()  # comments and profiles would be written again
    return rgb


def _encoded(image: Image.Image, quality: int) -> NormalisedImage:
    rgb = _as_rgb(image)
    buffer = io.BytesIO()
    subsampling = 0 if min(rgb.size) <= FULL_CHROMA_SIDE else 2  # 4:4:4, 4:2:0
    rgb.save(buffer, "JPEG", quality=quality, subsampling=subsampling)
    return NormalisedImage(buffer.getvalue(), *rgb.size)


def _from_cmyk(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    if profile:
        try:
            inks = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            screen = ImageCms.createProfile("sRGB")
            return ImageCms.profileToProfile(image, inks, screen, outputMode="RGB") or image
        except (ImageCms.PyCMSError, OSError):
            pass  # a profile that does not fit its image: the plain formula is near enough
    return image.convert("RGB")


# ------------------------------------------------------------------------------------------ many


def normalise_many(
    paths: Iterable[Path], normalise: Normalise, workers: int, limits: Limits
) -> Generator[NormalisedImage | ImageRefused, None, None]:
    """`normalise` of every path, in order, in `workers` processes (0 = one a core) within `limits` an image.

    An image that takes too long, or over which a process dies again and again (a crash in a decoder, the
    machine's memory), is refused, and the others go on.
    """
    with closing(work_in_order(paths, partial(_answer, normalise), workers, limits)) as results:
        for result in results:
            if not isinstance(result, Died):
                yield result
            elif result.too_slow:
                yield ImageRefused(f"too slow: not decoded in preprocess.seconds_per_image={limits.seconds:g}")
            else:
                yield ImageRefused("fatal: the process that decoded it died (a crash, or out of memory)")


def _answer(normalise: Normalise, path: Path) -> NormalisedImage | ImageRefused:
    try:
        return normalise(path)
    except ImageRefused as refusal:
        return refusal
