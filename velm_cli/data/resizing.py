"""Which part of an image an encoder gets, and how it is scaled: by its centre, or whole, as its image processor does.

Read from the files that transformers' image processors are saved in. Imports no torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from velm_cli.errors import UserError

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels of the stored image
Colour = tuple[float, float, float]  # red, green, blue

BILINEAR, BICUBIC = 2, 3  # Pillow's numbers, which are those of the files
FILTERS = range(6)
LARGEST_ZOOM = 8  # a processor that keeps less than an eighth of a side is a mistake


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


def processor_options(folder: str, used: Container[str] | None = None) -> dict[str, Any]:
    """The options of the model's image processor in the folder's files, those in `used` alone; none without a file.

    Raises UserError for a file that is damaged and for options that no processor can have: other images than those
    that the model knows would be a silent loss.
    """
    for name, inside in (("preprocessor_config.json", None), ("processor_config.json", "image_processor")):
        path = Path(folder) / name
        if not path.is_file():
            continue
        try:
            options = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise _unusable(path, f"it is no JSON ({error})") from error
        if inside is not None and isinstance(options, dict):
            options = options.get(inside, {})
        if not isinstance(options, dict):
            raise _unusable(path, "it holds no options")
        options = {key: value for key, value in options.items() if used is None or key in used}
        if problem := next(_problems(options), None):
            raise _unusable(path, problem)
        if options:
            return options
    return {}


def _unusable(path: Path, problem: str) -> UserError:
    return UserError(f"{path}: {problem}; fix the file, or remove it for the values of the model's family")


def _problems(options: Mapping[str, Any]) -> Iterator[str]:
    if options.get("do_rescale", True) and not _is_number(options.get("rescale_factor", 1), above=0):
        yield f"rescale_factor={options['rescale_factor']!r} is no number above 0"
    if options.get("do_normalize", True):
        for name, above in (("image_mean", -math.inf), ("image_std", 0)):
            values = options.get(name, [1])
            values = values if isinstance(values, list) else [values]
            if len(values) not in (1, 3) or not all(_is_number(value, above=above) for value in values):
                yield f"{name}={options[name]!r} is not three finite numbers{' above 0' if above == 0 else ''}"
    if options.get("resample", BILINEAR) not in (*FILTERS, None):
        yield f"resample={options['resample']!r} is no filter of Pillow ({FILTERS[0]} to {FILTERS[-1]})"
    sizes = [name for name, does in (("size", "do_resize"), ("crop_size", "do_center_crop")) if options.get(does, True)]
    for name in sizes:
        size = options.get(name)
        if size is not None and _length(size) is None:
            yield f"{name}={size!r} is no length of sides in pixels"
        if isinstance(size, Mapping) and size.get("height") != size.get("width"):
            yield f"{name}={size!r}: velm's images are square"
    edge, cropped = (_length(options.get(name)) for name in ("size", "crop_size"))
    if len(sizes) == 2 and edge and cropped and edge > LARGEST_ZOOM * cropped:
        yield f"size={options['size']!r} is more than {LARGEST_ZOOM} times crop_size={options['crop_size']!r}"


def _is_number(value: Any, *, above: float) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value) and value > above


def resizing_of(options: Mapping[str, Any], default: Resizing) -> Resizing:
    """The resizing of a processor with these options, and of its family, `default`, where they say nothing.

    A size is a number (of both sides where the family takes the whole image), {"shortest_edge": n} or
    {"height": n, "width": n}; a crop of another size than the scaled image is a zoom.
    """
    resample = options.get("resample")
    resample = default.resample if resample is None else resample
    if options.get("size") is None or not options.get("do_resize", True):
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
    if not {"image_mean", "image_std"} <= options.keys():
        return None
    return _colour(options["image_mean"], scale), _colour(options["image_std"], scale)


def _colour(value: Any, scale: float) -> Colour:
    values = value * 3 if isinstance(value, list) and len(value) == 1 else value
    red, green, blue = values if isinstance(values, list) else [values] * 3
    if abs(scale - 1) < 1e-6:
        return float(red), float(green), float(blue)
    return red / scale, green / scale, blue / scale


def _length(size: Any) -> int | None:
    """The length of a side that a processor's file gives in one of its forms."""
    if isinstance(size, Mapping):
        size = size.get("shortest_edge") or size.get("height")
    if isinstance(size, list) and len(size) == 2 and size[0] == size[1]:
        size = size[0]
    return size if isinstance(size, int) and not isinstance(size, bool) and size > 0 else None
