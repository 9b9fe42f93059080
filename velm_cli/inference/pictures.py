"""One image, however it is given, in the form that the store of training held: then the model writes the same words.

A store keeps images upright, RGB, scaled and as JPEG. Whatever `velm eval` saw of a file is what `stored` makes of it.
"""

from __future__ import annotations

import hashlib
import re
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from velm_cli.data.images import ImageRefused, check_image, is_plain, normalise_image
from velm_cli.errors import UserError
from velm_cli.schema import DatasetConfig, WebDatasetConfig

Picture = str | Path | bytes | Image.Image | np.ndarray

ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)


class Form(NamedTuple):
    """How a data set keeps its images; see the options `dataset.image_size`, `image_quality`, `max_pixels`."""

    image_size: int
    quality: int
    max_pixels: int
    as_it_is: bool = False  # streamed shards are not written again: an image that can be shown stays as it is

    @staticmethod
    def of(dataset: DatasetConfig) -> Form:
        streamed = isinstance(dataset, WebDatasetConfig)
        return Form(dataset.image_size, dataset.image_quality, dataset.max_pixels, streamed)

    def stored(self, source: Path | bytes | Image.Image) -> bytes:
        """The JPEG (or what a stream keeps as it is). ImageRefused where it cannot be used."""
        if self.as_it_is and not isinstance(source, Image.Image):
            content = source.read_bytes() if isinstance(source, Path) else source
            check_image(content, max_pixels=self.max_pixels)
            if is_plain(content):
                return content
        normalise = partial(
            normalise_image, image_size=self.image_size, quality=self.quality, max_pixels=self.max_pixels
        )
        return normalise(source).jpeg


def source_of(picture: Picture) -> Path | bytes | Image.Image:
    """What there is to decode. UserError for what is no image by its type, or lies on another machine."""
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim not in (2, 3) or (picture.ndim == 3 and picture.shape[2] != 3):
            raise UserError(
                f"an array of {picture.dtype} {list(picture.shape)} is not taken for an image: give uint8 "
                "[height, width, 3] (RGB) or [height, width] (grey)"
            )
        return Image.fromarray(picture)
    if isinstance(picture, str):
        if ADDRESS.match(picture):
            raise UserError(f"{picture}: velm opens no addresses; download the image, and give its path or its bytes")
        return Path(picture)
    if isinstance(picture, (Path, bytes, Image.Image)):
        return picture
    raise UserError(
        f"{type(picture).__name__} is no image: give a path, the bytes of a file, a PIL image or a uint8 array"
    )


def name_of(picture: Picture) -> str:
    """What messages call it."""
    return str(picture) if isinstance(picture, (str, Path)) else f"the {type(picture).__name__}"


def stored(picture: Picture, form: Form) -> bytes:
    """As `Form.stored`, of an image however it is given; UserError names it and says why it cannot be used."""
    try:
        return form.stored(source_of(picture))
    except (ImageRefused, OSError, ValueError) as error:  # ValueError: no path has a null byte
        reason = error.strerror or error if isinstance(error, OSError) else error
        raise UserError(f"{name_of(picture)} cannot be used: {reason}") from None


def content_of(jpeg: bytes) -> str:
    """What names an image by its content: what is drawn for it depends on this, not on where it lies."""
    return hashlib.sha256(jpeg).hexdigest()[:16]
