"""What an encoder takes of an image: one value instead of four that always travel together."""

from __future__ import annotations

from typing import NamedTuple

from velm_cli.data.resizing import CENTRE_CROP, Resizing


class Pixels(NamedTuple):
    """A square of `size` pixels a side, normalised as (colour - mean) / std; colours are 0 to 1."""

    size: int
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    resizing: Resizing = CENTRE_CROP
