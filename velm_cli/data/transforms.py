"""JPEG bytes to normalised float32 images, with augmentation as a pure function of a generator.

Decoding, cropping, scaling and normalising make the cost of an epoch, so each is done once: the JPEG
decoder scales down by itself where it can, one resampling cuts and scales, and one pass over the pixels
writes floats straight into the row of the batch.

The suffix CHW stands for channels (RGB), height and width.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from io import BytesIO

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

MAX_RATIO = 4 / 3  # random crops are at most this much wider than high, or higher than wide

COLOURS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels of the stored image


class EvalTransform:
    """Shorter side to `image_size` (bilinear, antialiased), centre crop, `(x / 255 - mean) / std`.

    Equals torchvision's Resize, CenterCrop, ToTensor and Normalize, except that a JPEG of at least four
    times the size is scaled down by its decoder first. `mean` and `std` are of RGB in 0..1.
    """

    def __init__(self, image_size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        self.image_size = image_size
        std_C11 = np.array(std, np.float64).reshape(3, 1, 1)
        self._scale_C11 = (1 / (255 * std_C11)).astype(np.float32)
        self._shift_C11 = (-np.array(mean, np.float64).reshape(3, 1, 1) / std_C11).astype(np.float32)

    def __call__(self, jpeg: bytes, *, out_CHW: np.ndarray | None = None) -> Tensor:
        """The image as a float32 tensor [3, image_size, image_size], written to `out_CHW` if given.

        Raises OSError where `jpeg` is not a readable image.
        """
        image = Image.open(BytesIO(jpeg))
        return self.render(image, _centre(image.width, image.height, self.image_size), out_CHW)

    def render(
        self,
        image: Image.Image,
        box: Box,
        out_CHW: np.ndarray | None,
        *,
        mirror: bool = False,
        colours: Sequence[float] = (),
    ) -> Tensor:
        """The part `box` of the image, scaled to `image_size` a side, mirrored or not, normalised.

        `colours`: factors of brightness, contrast and saturation, applied in this order.
        """
        size = self.image_size
        width, height = image.size
        # The decoder scales by 1/2, 1/4 or 1/8, roughly, so it leaves a factor of 2 to the resampling.
        shrink = min(box[2] - box[0], box[3] - box[1]) / (2 * size)
        if shrink >= 2:
            drafted = image.draft("RGB", (math.ceil(width / shrink), math.ceil(height / shrink)))
            if drafted is not None:
                scale = drafted[1][2] / width
                right, bottom = min(box[2] * scale, image.width), min(box[3] * scale, image.height)
                box = box[0] * scale, box[1] * scale, right, bottom
        if image.mode != "RGB":
            image = image.convert("RGB")
        image = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
        for enhance, factor in zip(COLOURS, colours, strict=False):
            image = enhance(image).enhance(factor)
        if mirror:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        # A line of red, one of green, one of blue: floats are made of bytes side by side several times as fast.
        pixels_HCW = np.frombuffer(image.tobytes("raw", "RGB;L"), np.uint8).reshape(size, 3, size)
        if out_CHW is None:
            out_CHW = np.empty((3, size, size), np.float32)
        out_CHW[...] = pixels_HCW.transpose(1, 0, 2)  # numpy: torch would start its own threads in each of ours
        out_CHW *= self._scale_C11
        out_CHW += self._shift_C11
        return torch.from_numpy(out_CHW)


class TrainTransform:
    """A random crop, mirrored half of the time, in other colours: a pure function of the JPEG and the generator.

    A crop keeps from `crop_scale` to all of the image's area; with 1 it is EvalTransform's centre crop.
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
    ) -> None:
        assert 0 < crop_scale <= 1 and 0 <= colour_jitter < 1
        self.image_size, self.colour_jitter = image_size, colour_jitter
        self._plain = EvalTransform(image_size, mean, std)
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
        image = Image.open(BytesIO(jpeg))
        draws = generator.random(5)
        if self.crop_scale < 1:
            box = _random_crop(image.width, image.height, self.crop_scale, draws)
        else:
            box = _centre(image.width, image.height, self._plain.image_size)
        mirror = self.flip and may_flip and bool(draws[4] < 0.5)
        factors = 1 + self.colour_jitter * (2 * generator.random(3) - 1)
        colours = factors.tolist() if self.colour_jitter else ()
        return self._plain.render(image, box, out_CHW, mirror=mirror, colours=colours)


def kept_box(jpeg: bytes, image_size: int) -> Box:
    """The part of the image that EvalTransform keeps: left, top, right, bottom as fractions of its sides."""
    width, height = Image.open(BytesIO(jpeg)).size
    left, top, right, bottom = _centre(width, height, image_size)
    return left / width, top / height, right / width, bottom / height


def may_flip(captions: Iterable[str]) -> bool:
    """False when a caption names a side (left, right, leftmost ...), which a mirror would swap."""
    return not any(re.search(r"\b(?:left|right)", caption, re.IGNORECASE) for caption in captions)


def _centre(width: int, height: int, size: int) -> Box:
    """What torchvision's Resize(size) and CenterCrop(size) keep, rounding included."""
    short = min(width, height)
    scaled_width, scaled_height = int(size * width / short), int(size * height / short)
    left, top = round((scaled_width - size) / 2), round((scaled_height - size) / 2)
    x, y = width / scaled_width, height / scaled_height
    return left * x, top * y, min((left + size) * x, width), min((top + size) * y, height)


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
