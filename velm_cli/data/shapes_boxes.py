"""Pictures like those of NLVR: three grey boxes, each with a tower of blocks or with scattered items; and their facts.

Suhr et al. 2017 drew theirs 400 by 100 pixels, from items of three shapes, colours and sizes; lengths are those here.
The statements about them are in `shapes_box_words.py`.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

from PIL import Image, ImageDraw

SIDE, DISTANCE, BOXES = 100, 150, 3  # pixels: of a box, from one box to the next
RGB = {"yellow": (255, 255, 0), "blue": (0, 153, 255), "black": (0, 0, 0)}
BOX, BETWEEN = (211, 211, 211), (128, 128, 128)
COLOURS, SHAPES, SIZES = tuple(RGB), ("square", "circle", "triangle"), (10, 20, 30)
BLOCK, TOWER_X, GAP, HIGHEST = 20, 40, 1, 4
MOST = 7  # scattered items in a box
AT_WALL = 1.25  # places are drawn from a range so much longer, and what is beyond stands at the right or lower wall
SUPERSAMPLING = 4


@dataclass(frozen=True, slots=True)
class Item:
    """`x`, `y`: of its upper left corner in its box, pixels; `side`: of the square around it."""

    shape: str
    colour: str
    side: int
    x: int
    y: int

    @property
    def walls(self) -> frozenset[str]:
        """Those of its box that it touches."""
        places = {
            "left": self.x <= 0,
            "top": self.y <= 0,
            "right": self.x + self.side >= SIDE,
            "base": self.y + self.side >= SIDE,
        }
        return frozenset(wall for wall, there in places.items() if there)


Box = tuple[Item, ...]  # of a tower, from the base to the top
World = tuple[Box, ...]


def towers(rng: random.Random) -> World:
    """Each box has a tower of one to four blocks."""
    return tuple(
        tuple(
            Item("square", rng.choice(COLOURS), BLOCK, TOWER_X, SIDE - BLOCK - level * (BLOCK + GAP))
            for level in range(rng.randint(1, HIGHEST))
        )
        for _ in range(BOXES)
    )


def scattered(rng: random.Random) -> World:
    """Each box has one to seven items that do not touch each other."""
    return tuple(_scattered_box(rng) for _ in range(BOXES))


def _scattered_box(rng: random.Random) -> Box:
    while True:
        items: list[Item] = []
        for _ in range(rng.randint(1, MOST)):
            for _ in range(20):
                side = rng.choice(SIZES)
                x, y = (min(SIDE - side, int(rng.random() * AT_WALL * (SIDE - side))) for _ in range(2))
                item = Item(rng.choice(SHAPES), rng.choice(COLOURS), side, x, y)
                if all(_apart(item, other) for other in items):
                    items.append(item)
                    break
        if items:
            return tuple(items)


def _apart(one: Item, other: Item) -> bool:
    return (
        max(one.x - other.x - other.side, other.x - one.x - one.side) >= GAP
        or max(one.y - other.y - other.side, other.y - one.y - one.side) >= GAP
    )


def draw_boxes(world: World) -> Image.Image:
    """The picture, RGB, 400 by 100 pixels."""
    scale = SUPERSAMPLING
    canvas = Image.new("RGB", (scale * ((BOXES - 1) * DISTANCE + SIDE), scale * SIDE), BETWEEN)
    pen = ImageDraw.Draw(canvas)
    for number, box in enumerate(world):
        left = number * DISTANCE * scale
        pen.rectangle((left, 0, left + SIDE * scale - 1, SIDE * scale - 1), fill=BOX)
        for item in box:
            x, y, side = left + item.x * scale, item.y * scale, item.side * scale
            around = (x, y, x + side - 1, y + side - 1)
            if item.shape == "square":
                pen.rectangle(around, fill=RGB[item.colour])
            elif item.shape == "circle":
                pen.ellipse(around, fill=RGB[item.colour])
            else:
                pen.polygon([(x, y + side - 1), (x + side - 1, y + side - 1), (x + side / 2, y)], fill=RGB[item.colour])
    return canvas.reduce(scale)


def describe(world: World) -> list[str]:
    """A caption of each box: the colours of its tower from the base to the top, or how many of what is in it."""
    captions = []
    for name, box in zip(("left", "middle", "right"), world, strict=True):
        if all(item.x == TOWER_X and item.side == BLOCK for item in box) and len({item.y for item in box}) == len(box):
            words = f"tower {' '.join(item.colour for item in box)}"
        else:
            kinds = Counter((item.colour, item.shape, "base" in item.walls) for item in box)
            parts = (
                f"{count} {colour} {shape}{'s' * (count > 1)}{' at the base' if base else ''}"
                for (colour, shape, base), count in sorted(kinds.items())
            )
            words = f"box with {' and '.join(parts)}"
        captions.append(f"{name} {words}")
    return captions
