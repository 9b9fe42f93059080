"""Which part of an image an encoder gets, and how it is scaled: by its centre, or whole, as its image processor does.

Read from the files that transformers' image processors are saved in. Imports no torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels of the stored image
Colour = tuple[float, float, float]  # red, green, blue

BILINEAR, BICUBIC = 2, 3  # Pillow's numbers, which are those of the files
FILTERS = range(6)


class Resizing(NamedTuple):
    """The shorter side is scaled to `zoom` times the encoder's image size, with `whole` both sides are, whatever the
    image's ratio; then the centre is kept. `resample` is Pillow's number of the filter. Where the centre lies between
    two pixels, torchvision crops at the even one and transformers at the one before (`floors`)."""

    whole: bool = False
    zoom: float = 1.0
    resample: int = BILINEAR
    floors: bool = False

    def side(self, size: int) -> int:
        """The length in pixels to which a side is scaled for images of `size` pixels."""
        return round(self.zoom * size)

    def kept(self, width: int, height: int, size: int) -> Box:
        """The part of an image that is scaled to `size` a side, as torchvision's Resize and CenterCrop keep it."""
        side, short = self.side(size), min(width, height)
        scaled_width, scaled_height = int(side * width / short), int(side * height / short)
        if self.whole:
            scaled_width = scaled_height = side
        to_pixel = math.floor if self.floors else round
        left, top = to_pixel((scaled_width - size) / 2), to_pixel((scaled_height - size) / 2)
        x, y = width / scaled_width, height / scaled_height
        return left * x, top * y, min((left + size) * x, width), min((top + size) * y, height)

    def enlarges(self, stored: int, size: int) -> list[str]:
        """A line where images of a store with shorter sides of `stored` pixels are enlarged; none where they are not.

        What the store has thrown away does not come back by scaling up.
        """
        side = self.side(size)
        if stored >= side:
            return []
        return [
            f"note: images are stored with a shorter side of {stored} pixels and enlarged to {side}: "
            f"velm preprocess dataset.image_size={side} ... keeps more of them"
        ]


CENTRE_CROP = Resizing()


def processor_options(folder: str) -> dict[str, Any]:
    """What the folder's files say of the model's image processor; nothing where there are none."""
    for name, inside in (("preprocessor_config.json", None), ("processor_config.json", "image_processor")):
        try:
            options = json.loads((Path(folder) / name).read_text("utf-8"))
            options = options if inside is None else options[inside]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if isinstance(options, dict):
            return options
    return {}


def resizing_of(options: Mapping[str, Any], default: Resizing) -> Resizing:
    """The resizing of a processor with these options, and of its family, `default`, where they say nothing.

    A size is a number (of both sides where the family takes the whole image), {"shortest_edge": n} or
    {"height": n, "width": n}; a crop of another size than the scaled image is a zoom.
    """
    resample = options.get("resample", default.resample)
    resample = resample if resample in FILTERS else default.resample
    if "size" not in options or not options.get("do_resize", True):
        return default._replace(resample=resample)
    size = options["size"]
    whole = default.whole if not isinstance(size, Mapping) else "shortest_edge" not in size
    edge, cropped = _length(size), None
    if options.get("do_center_crop", not default.whole):
        cropped = _length(options.get("crop_size"))
    zoom = max(1.0, edge / cropped) if edge and cropped else 1.0
    return default._replace(whole=whole, zoom=zoom, resample=resample)


def colours_of(options: Mapping[str, Any]) -> tuple[Colour, Colour] | None:
    """(mean, std) of RGB in 0..1 by which a processor with these options normalises; None where they have none."""
    scale = 255 * options.get("rescale_factor", 1 / 255) if options.get("do_rescale", True) else 255.0
    if not options.get("do_normalize", True):
        return (0.0, 0.0, 0.0), (1 / scale, 1 / scale, 1 / scale)
    try:
        mean, std = (_colour(options[name], scale) for name in ("image_mean", "image_std"))
    except (ValueError, KeyError, TypeError):
        return None
    return mean, std


def _colour(values: Any, scale: float) -> Colour:
    red, green, blue = (float(value) if abs(scale - 1) < 1e-6 else value / scale for value in values)
    return red, green, blue


def _length(size: Any) -> int | None:
    """The length of a side that a processor's file gives in one of its forms."""
    if isinstance(size, Mapping):
        size = size.get("shortest_edge") or size.get("height")
    return size if isinstance(size, int) and size > 0 else None
