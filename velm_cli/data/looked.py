"""Where a model looked, as plain data: what Python gets, what the service sends and what a report shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Box = tuple[float, float, float, float]  # left, top, right, bottom as fractions of the image's sides


@dataclass(frozen=True, slots=True)
class Attention:
    """Where a model looked when it wrote each word of a caption, or for an answer, which is one word here.

    `maps_THW` has a grid of shares in 0..1 for each of the T words, row by row from the top: a map's sum is at most 1.
    `box` is the part of the image that the grid covers: an encoder that crops does not see the rest. `method`:
    `attention`, `gradient` or `occlusion` (docs/where-it-looked.md).
    """

    words: Sequence[str]
    maps_THW: np.ndarray
    box: Box = (0.0, 0.0, 1.0, 1.0)
    method: str = "attention"
