"""Several images of an example as one picture, a sheet of tiles, and maps of them on the same sheet.

Shapes: W words, I images, h x w cells of a map.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

import numpy as np
from PIL import Image, ImageDraw

ACROSS = 4  # tiles in a row
Box = tuple[float, float, float, float]  # left, top, right, bottom as fractions of the sides


def sheet(jpegs: Sequence[bytes], boxes: Sequence[Box], side: int) -> bytes:
    """A JPEG of the images in their order, row by row, each cut to its box and squared, as the model sees it.

    `side`: of a tile, pixels.
    """
    across, down = _shape(len(jpegs))
    whole = Image.new("RGB", (across * side, down * side), "white")
    pen = ImageDraw.Draw(whole)
    for number, (jpeg, (left, top, right, bottom)) in enumerate(zip(jpegs, boxes, strict=True)):
        with Image.open(BytesIO(jpeg)) as image:
            width, height = image.size
            box = (left * width, top * height, right * width, bottom * height)
            tile = image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC, box=box)
        x, y = number % across * side, number // across * side
        whole.paste(tile, (x, y))
        pen.rectangle((x, y, x + side - 1, y + side - 1), outline="white")
    whole.save(out := BytesIO(), "JPEG", quality=88, optimize=True)
    return out.getvalue()


def on_sheet(maps_WIhw: np.ndarray) -> np.ndarray:
    """(W, down * h, across * w): the maps of each image where `sheet` has its tile; 0 where it has none."""
    words, images, h, w = maps_WIhw.shape
    across, down = _shape(images)
    tiles = np.zeros((words, down * across, h, w), maps_WIhw.dtype)
    tiles[:, :images] = maps_WIhw
    rows = tiles.reshape(words, down, across, h, w).transpose(0, 1, 3, 2, 4)
    return rows.reshape(words, down * h, across * w)


def _shape(images: int) -> tuple[int, int]:
    """Tiles across and down."""
    across = min(images, ACROSS)
    return across, -(-images // across)
