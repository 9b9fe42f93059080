"""JPEG bytes to normalised float32 images, with augmentation as a pure function of a generator.

Decoding, cropping, scaling and normalising make the cost of an epoch, so each is done once: the JPEG
decoder scales down by itself where it can, one resampling cuts and scales, and floats are written straight into the
row of the batch. Images are decoded by Pillow, those of random crops, which need no scaling decoder and no exact
place, by torchvision.

The suffix CHW stands for channels (RGB), height and width.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor
from torch.nn import functional

from velm_cli.data.resizing import BICUBIC, BILINEAR, CENTRE_CROP, Box, Resizing

MAX_RATIO = 4 / 3  # random crops are at most this much wider than high, or higher than wide

FRAMES = frozenset({0xC0, 0xC1, 0xC2})  # markers of baseline, extended and progressive JPEGs
SIDE = re.compile(r"\b(?:left|right)", re.IGNORECASE)  # what a mirror swaps
COLOURS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
MODES = {BILINEAR: "bilinear", BICUBIC: "bicubic"}  # filters that torch has, too


class EvalTransform:
    """Shorter side to `image_size` (bilinear, antialiased), centre crop, `(x / 255 - mean) / std`; or the part and the
    filter that `resizing` names.

    Equals torchvision's Resize, CenterCrop, ToTensor and Normalize, except that a JPEG of at least four
    times the size is scaled down by its decoder first. `mean` and `std` are of RGB in 0..1.
    """

    def __init__(
        self, image_size: int, mean: Sequence[float], std: Sequence[float], resizing: Resizing = CENTRE_CROP
    ) -> None:
        self.image_size, self.resizing = image_size, resizing
        std_C11 = np.array(std, np.float64).reshape(3, 1, 1)
        self._scale_C11 = (1 / (255 * std_C11)).astype(np.float32)
        self._shift_C11 = (-np.array(mean, np.float64).reshape(3, 1, 1) / std_C11).astype(np.float32)

    def __call__(self, jpeg: bytes, *, out_CHW: np.ndarray | None = None) -> Tensor:
        """The image as a float32 tensor [3, image_size, image_size], written to `out_CHW` if given.

        Raises OSError where `jpeg` is not a readable image.
        """
        return self.normalised(self.part(Image.open(BytesIO(jpeg))), out_CHW)

    def part(self, image: Image.Image) -> Image.Image:
        """What is kept of the image, RGB, scaled."""
        box = self.resizing.kept(image.width, image.height, self.image_size)
        return _part(image, box, self.image_size, self.resizing.resample)

    def normalised(self, image: Image.Image | Tensor, out_CHW: np.ndarray | None) -> Tensor:
        """Of an RGB image of the right size, or its uint8 pixels CHW."""
        if isinstance(image, Tensor):
            pixels_CHW = image.numpy()
        else:
            # A line of red, one of green, one of blue: floats are made of bytes side by side several times as fast.
            pixels_HCW = np.frombuffer(image.tobytes("raw", "RGB;L"), np.uint8).reshape(image.height, 3, image.width)
            pixels_CHW = pixels_HCW.transpose(1, 0, 2)
        if out_CHW is None:
            out_CHW = np.empty(pixels_CHW.shape, np.float32)
        out_CHW[...] = pixels_CHW
        out_CHW *= self._scale_C11
        out_CHW += self._shift_C11
        return torch.from_numpy(out_CHW)


class TrainTransform:
    """A random crop, mirrored half of the time, in other colours: a pure function of the JPEG and the generator.

    A crop keeps from `crop_scale` to all of the image's area; with 1 it is what EvalTransform keeps.
    (Of an image longer than 4:3 the area counts that a crop of this ratio can hold.)
    """

    def __init__(
        self,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        crop_scale: float,
        flip: bool,
        colour_jitter: float = 0.0,
        resizing: Resizing = CENTRE_CROP,
    ) -> None:
        assert 0 < crop_scale <= 1 and 0 <= colour_jitter < 1
        self.image_size, self.colour_jitter = image_size, colour_jitter
        self._plain = EvalTransform(image_size, mean, std, resizing)
        self.crop_scale = crop_scale
        self.flip = flip

    def __call__(
        self,
        jpeg: bytes,
        *,
        generator: np.random.Generator,
        may_flip: bool = True,
        out_CHW: np.ndarray | None = None,
    ) -> Tensor:
        """As EvalTransform; `may_flip=False` forbids mirroring without changing the crop."""
        draws, size, resample = generator.random(5), self.image_size, self._plain.resizing.resample
        mirror = self.flip and may_flip and bool(draws[4] < 0.5)
        factors = (1 + self.colour_jitter * (2 * generator.random(3) - 1)).tolist() if self.colour_jitter else ()
        part: Image.Image | Tensor | None = (
            None if self.crop_scale == 1 else _crop_by_torch(jpeg, self.crop_scale, draws, size, resample)
        )
        if part is None:
            image = Image.open(BytesIO(jpeg))
            if self.crop_scale == 1:
                part = self._plain.part(image)
            else:
                part = _part(image, _random_crop(*image.size, self.crop_scale, draws), size, resample)
        if factors:
            part = Image.fromarray(part.permute(1, 2, 0).numpy()) if isinstance(part, Tensor) else part
            for enhance, factor in zip(COLOURS, factors, strict=True):
                part = enhance(part).enhance(factor)
        if mirror:
            part = part.flip(-1) if isinstance(part, Tensor) else part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return self._plain.normalised(part, out_CHW)


def _part(image: Image.Image, box: Box, size: int, resample: int) -> Image.Image:
    """The part `box` of the image, RGB, scaled to `size` a side."""
    width, height = image.size
    shrink = _shrink(box, size)
    if shrink >= 2:
        drafted = image.draft("RGB", (math.ceil(width / shrink), math.ceil(height / shrink)))
        if drafted is not None:
            scale = drafted[1][2] / width
            right, bottom = min(box[2] * scale, image.width), min(box[3] * scale, image.height)
            box = box[0] * scale, box[1] * scale, right, bottom
    if image.mode != "RGB":
        image = image.convert("RGB")
    return image.resize((size, size), Image.Resampling(resample), box=box)


def _shrink(box: Box, size: int) -> float:
    """What the decoder may scale by, to 1/2, 1/4 or 1/8, roughly, so that a factor of 2 is left to the resampling."""
    return min(box[2] - box[0], box[3] - box[1]) / (2 * size)


def _crop_by_torch(
    jpeg: bytes, crop_scale: float, draws: np.ndarray, size: int, resample: int = BILINEAR
) -> Tensor | None:
    """uint8 [3, size, size]: `_part` of a random crop of whole pixels, in half of its time.

    None for what is better left to Pillow: no plain or whole JPEG, or one that its decoder should scale down.
    """
    decode, found = _jpeg_decoder(), _jpeg_size(jpeg)
    if decode is None or found is None or resample not in MODES:
        return None
    box = _random_crop(*found, crop_scale, draws)
    if _shrink(box, size) >= 2:
        return None
    left, top, right, bottom = map(round, box)
    try:
        pixels_CHW = decode(torch.frombuffer(bytearray(jpeg), dtype=torch.uint8), 3, False)
    except RuntimeError:  # Pillow may know it, or says what is wrong
        return None
    part_1CHW = pixels_CHW[None, :, top : max(bottom, top + 1), left : max(right, left + 1)]
    return functional.interpolate(part_1CHW, (size, size), mode=MODES[resample], antialias=True)[0]


def _jpeg_size(content: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG of 8 bits, grey or coloured, by its frame header (ITU T.81, B.2.2); else None."""
    at = 2
    while content[:2] == b"\xff\xd8" and content[at : at + 1] == b"\xff" and at + 10 <= len(content):
        marker, length = content[at + 1], int.from_bytes(content[at + 2 : at + 4], "big")
        if marker in FRAMES:
            bits, height, width, colours = struct.unpack_from(">BHHB", content, at + 4)
            return (width, height) if bits == 8 and width and height and colours in (1, 3) else None
        at += 2 + length
    return None


@cache
def _jpeg_decoder() -> Callable[[Tensor, int, bool], Tensor] | None:
    """(bytes, channels, whether to turn it upright) -> uint8 CHW; None where torchvision has no images.

    From its library alone: importing torchvision takes a second.
    """
    package = find_spec("torchvision")
    assert package is not None and package.origin is not None
    for library in Path(package.origin).parent.glob("image*.so"):
        with suppress(OSError, AttributeError):
            torch.ops.load_library(str(library))
            return torch.ops.image.decode_jpeg
    return None


def kept_box(jpeg: bytes, image_size: int, resizing: Resizing = CENTRE_CROP) -> Box:
    """The part of the image that EvalTransform keeps: left, top, right, bottom as fractions of its sides."""
    width, height = Image.open(BytesIO(jpeg)).size
    left, top, right, bottom = resizing.kept(width, height, image_size)
    return left / width, top / height, right / width, bottom / height


def may_flip(captions: Iterable[str]) -> bool:
    """False when a caption names a side (left, right, leftmost ...), which a mirror would swap."""
    return not any(map(SIDE.search, captions))


def _random_crop(width: int, height: int, crop_scale: float, draws: np.ndarray) -> Box:
    """A box of at least `crop_scale` of the area, of a ratio up to 4:3 or 3:4, anywhere in the image.

    Uses four of the `draws` from [0, 1): area, ratio, place. No rejection: only ratios that fit are drawn.
    """
    largest = min(width, MAX_RATIO * height) * min(height, MAX_RATIO * width)
    area = largest * (crop_scale + (1 - crop_scale) * draws[0])
    narrowest, widest = max(1 / MAX_RATIO, area / height**2), min(MAX_RATIO, width**2 / area)
    ratio = narrowest * max(widest / narrowest, 1.0) ** draws[1]
    crop_width, crop_height = min(math.sqrt(area * ratio), width), min(math.sqrt(area / ratio), height)
    left, top = draws[2] * (width - crop_width), draws[3] * (height - crop_height)
    return left, top, min(left + crop_width, width), min(top + crop_height, height)
