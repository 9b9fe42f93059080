"""`dataset=shapes`: drawn scenes with captions, so that the whole path can be tried with no download.

The folder has the layout of COCO 2014, so the COCO reader reads it; what each scene truly holds lies
beside it, so a caption can be checked fact by fact. Some colour-shape pairs never occur in train or val
and stand in every test scene: the test asks for words put together as never before, not for memory.
"""

from __future__ import annotations

import io
import json
import math
import random
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from velm_cli import schema
from velm_cli.data.processes import new_pool
from velm_cli.data.shapes_grammar import Scene, make_scene, write_captions
from velm_cli.errors import UserError
from velm_cli.files import refuse_links, write_bytes, write_json
from velm_cli.progress import progress_bar

STAMP = "shapes.json"  # written last: its presence says that the folder is whole
UNFINISHED = "shapes.unfinished.json"  # written first: its presence says that the folder is ours
BOXES = "boxes"  # pictures of shapes_reasoning.py
BESIDE = frozenset({"motion", BOXES})  # what may be there before the scenes: they need none of them
VERSION = 5
CHUNK = 32  # scenes a job
WORTH_PROCESSES = 500  # scenes from which on it pays to start processes

# Lengths are pixels of the finished image.
SIDE = 128
SUPERSAMPLING = 4
MARGIN = 3.0  # between an object and the frame
GAP = 5.0  # between two objects
RADIUS = {"small": (13.0, 14.0), "large": (17.5, 18.5)}
OUTLINE = 1.2
TURN = math.radians(6)  # objects are turned by up to this
SLANT = 0.35  # two groups' centres are off the axis of their relation by less than this share

RGB = {
    "red": (214, 32, 40),
    "orange": (255, 138, 10),
    "yellow": (252, 224, 40),
    "green": (34, 150, 62),
    "blue": (38, 74, 214),
    "purple": (128, 42, 160),
    "pink": (255, 138, 196),
    "black": (24, 24, 26),
}


@dataclass(frozen=True, slots=True)
class Placed:
    """One object: its group's index, its centre and half-width (pixels), its turn (radians)."""

    group: int
    x: float
    y: float
    radius: float
    turn: float


# ---------------------------------------------------------------------------------------- places


def place(scene: Scene, rng: random.Random) -> list[Placed]:
    """Where the objects stand: inside the frame, never touching, and two groups clearly in relation."""
    sideways = scene.relation == "left of" or (scene.relation is None and rng.random() < 0.5)
    middle = SIDE / 2
    bands = [(0.0, middle), (middle, float(SIDE))] if scene.relation else [(0.0, float(SIDE))]
    while True:
        placed: list[Placed] = []
        centres: list[tuple[float, float]] = []
        for number, (group, band) in enumerate(zip(scene.groups, bands, strict=True)):
            radius = rng.uniform(*RADIUS[group.size])
            spots = _spread(group.count, radius, band, rng)
            centres.append((sum(a for a, _ in spots) / len(spots), sum(c for _, c in spots) / len(spots)))
            for along, across in spots:
                x, y = (along, across) if sideways else (across, along)
                placed.append(Placed(number, x, y, radius, rng.uniform(-TURN, TURN)))
        (first_along, first_across), (last_along, last_across) = centres[0], centres[-1]
        if abs(last_across - first_across) <= SLANT * abs(last_along - first_along):
            return placed


def _spread(count: int, radius: float, band: tuple[float, float], rng: random.Random) -> list[tuple[float, float]]:
    """Centres (along, across) of `count` objects in a band: one behind the other across the image."""
    free = SIDE - 2 * MARGIN - 2 * radius * count - GAP * (count - 1)
    cuts = sorted(rng.uniform(0, free) for _ in range(count))
    low, high = band[0] + MARGIN + radius, band[1] - MARGIN - radius
    return [
        (rng.uniform(low, high), MARGIN + cut + radius + number * (2 * radius + GAP)) for number, cut in enumerate(cuts)
    ]


# ---------------------------------------------------------------------------------------- drawing


def _circle(corners: int = 64) -> list[tuple[float, float]]:
    angles = [2 * math.pi * corner / corners for corner in range(corners)]
    return [(0.95 * math.cos(angle), 0.95 * math.sin(angle)) for angle in angles]


def _star() -> list[tuple[float, float]]:
    points = []
    for corner in range(10):
        angle, reach = math.pi * corner / 5, 0.42 if corner % 2 else 1.0
        points.append((reach * math.sin(angle), -reach * math.cos(angle)))
    return points


def _heart(corners: int = 64) -> list[tuple[float, float]]:
    points = []
    for corner in range(corners):
        t = 2 * math.pi * corner / corners
        height = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((math.sin(t) ** 3 * 0.93, -(height + 2.5) / 15.5))
    return points


# Outlines that fit a square of half-width 1 even when turned; y points down. The ring is drawn apart.
POLYGONS = {
    "circle": _circle(),
    "square": [(-0.84, -0.84), (0.84, -0.84), (0.84, 0.84), (-0.84, 0.84)],
    "triangle": [(0.0, -0.92), (0.9, 0.74), (-0.9, 0.74)],
    "star": _star(),
    "cross": [
        *[(-0.3, -0.95), (0.3, -0.95), (0.3, -0.3), (0.95, -0.3), (0.95, 0.3), (0.3, 0.3)],
        *[(0.3, 0.95), (-0.3, 0.95), (-0.3, 0.3), (-0.95, 0.3), (-0.95, -0.3), (-0.3, -0.3)],
    ],
    "heart": _heart(),
    "diamond": [(0.0, -1.0), (0.72, 0.0), (0.0, 1.0), (-0.72, 0.0)],
}
RING_OUTER, RING_INNER = 0.95, 0.43


def draw(scene: Scene, placed: list[Placed], rng: random.Random) -> Image.Image:
    """The scene as an RGB image of SIDE x SIDE pixels."""
    canvas = draw_background(scene.background, rng)
    pen = ImageDraw.Draw(canvas)
    for item in placed:
        group = scene.groups[item.group]
        draw_object(pen, group.shape, RGB[group.colour], item)
    return canvas.reduce(SUPERSAMPLING)


def draw_background(kind: str, rng: random.Random) -> Image.Image:
    """Two light greys with a breath of colour: near enough to each other never to look like an object."""
    side = SIDE * SUPERSAMPLING
    grey = rng.randint(196, 218)
    base = tuple(grey + rng.randint(-5, 5) for _ in range(3))
    mark = tuple(value - 30 for value in base)
    canvas = Image.new("RGB", (side, side), base)
    pen = ImageDraw.Draw(canvas)
    step = rng.choice([16, 20]) * SUPERSAMPLING
    start_x, start_y = (rng.randrange(step) - step for _ in range(2))
    if kind == "striped":
        lean = rng.choice([-side, 0, side])  # how far a stripe drifts from the top to the bottom
        for x in range(start_x - side, 2 * side, step):
            pen.polygon([(x, 0), (x + step / 2, 0), (x + step / 2 + lean, side), (x + lean, side)], fill=mark)
    elif kind == "dotted":
        reach = step * 0.27
        for row, y in enumerate(range(start_y, side + step, step)):
            for x in range(start_x - step // 2 * (row % 2), side + step, step):
                pen.ellipse((x - reach, y - reach, x + reach, y + reach), fill=mark)
    elif kind == "checkered":
        for row, y in enumerate(range(start_y, side, step)):
            for x in range(start_x - step * (row % 2), side, 2 * step):
                pen.rectangle((x, y, x + step - 1, y + step - 1), fill=mark)
    return canvas


def draw_object(pen: ImageDraw.ImageDraw, shape: str, rgb: tuple[int, int, int], item: Placed) -> None:
    """One filled object with a darker edge, which keeps yellow apart from light grey."""
    x, y, radius = (value * SUPERSAMPLING for value in (item.x, item.y, item.radius))
    edge = round(OUTLINE * SUPERSAMPLING)
    dark = tuple(round(value * 0.6) for value in rgb)
    if shape == "ring":
        outer, thickness = RING_OUTER * radius, round((RING_OUTER - RING_INNER) * radius)
        pen.ellipse((x - outer, y - outer, x + outer, y + outer), outline=dark, width=thickness)
        outer, thickness = outer - edge, thickness - 2 * edge
        pen.ellipse((x - outer, y - outer, x + outer, y + outer), outline=rgb, width=thickness)
        return
    cos, sin = math.cos(item.turn), math.sin(item.turn)
    outline = [(x + radius * (a * cos - b * sin), y + radius * (a * sin + b * cos)) for a, b in POLYGONS[shape]]
    pen.polygon(outline, fill=rgb, outline=dark, width=edge)


# ---------------------------------------------------------------------------------------- files


def write_shapes(config: schema.ShapesConfig, root: Path, *, progress: bool = True) -> bool:
    """Write the data set of `config` into `root`; True when there was something to do.

    A pure function of (draw_seed, num_train, num_val, num_test) for one version of Pillow; a call that
    was interrupted goes on where it was. Images lie in train2014/ and val2014/ (val and test), captions
    in annotations/captions_*2014.json, the image ids of each part in shapes_split.json, the facts of
    each image in scenes.json. Raises UserError when the folder holds other scenes or other files.
    """
    sizes = {"train": config.num_train, "val": config.num_val, "test": config.num_test}
    stamp = {"version": VERSION, "draw_seed": config.draw_seed}
    stamp |= {f"num_{part}": size for part, size in sizes.items()}
    try:
        if _holds(root, STAMP, stamp):
            return False
        if not _holds(root, UNFINISHED, stamp):
            if root.exists() and any(
                not path.name.startswith(".") and path.name not in BESIDE for path in root.iterdir()
            ):
                raise UserError(f"{root} holds other files: set dataset.root to a new or empty folder")
            root.mkdir(parents=True, exist_ok=True)
            write_json(root / UNFINISHED, stamp)
        refuse_links(root)
        _write_all(root, config.draw_seed, sizes, progress=progress)
        write_json(root / STAMP, stamp)
        (root / UNFINISHED).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write the shapes to {root} ({error}): check dataset.root") from error
    return True


def _write_all(root: Path, draw_seed: int, sizes: dict[str, int], *, progress: bool) -> None:
    for folder in ("train2014", "val2014", "annotations"):
        (root / folder).mkdir(exist_ok=True)
    ids: dict[str, list[int]] = {"train": [], "restval": [], "val": [], "test": []}
    scenes: dict[str, Any] = {}
    coco = {year: _empty_coco() for year in ("train2014", "val2014")}
    parts = [(part, index) for part, size in sizes.items() for index in range(size)]
    for image_id, (part, _) in enumerate(parts, start=1):
        ids[part].append(image_id)
    with ExitStack() as stack:
        write = partial(_write_scene, root, draw_seed)
        results: Iterator[tuple[dict[str, Any], list[str]]] = map(write, enumerate(parts, start=1))
        if len(parts) >= WORTH_PROCESSES:
            pool = stack.enter_context(new_pool(0))
            results = pool.map(write, enumerate(parts, start=1), chunksize=CHUNK)
        for image_id, (part, _) in enumerate(progress_bar(parts, "shapes", shown=progress, unit="scene"), start=1):
            scene, captions = next(results)
            folder = folder_of(part)
            name = file_name(part, image_id)
            scenes[str(image_id)] = scene
            coco[folder]["images"].append(
                {"id": image_id, "file_name": name, "height": SIDE, "width": SIDE, "license": 1}
            )
            coco[folder]["annotations"] += [
                {"id": (image_id - 1) * len(captions) + number, "image_id": image_id, "caption": caption}
                for number, caption in enumerate(captions, start=1)
            ]
    for folder, content in coco.items():
        write_json(root / "annotations" / f"captions_{folder}.json", content, indent=None)
    write_json(root / "shapes_split.json", ids, indent=None)
    write_json(root / "scenes.json", scenes, indent=None)


def _write_scene(root: Path, draw_seed: int, job: tuple[int, tuple[str, int]]) -> tuple[dict[str, Any], list[str]]:
    """Draw one scene, unless its image is there already; what it holds, and its captions."""
    image_id, (part, index) = job
    rng = draw_lots(draw_seed, part, index)
    scene = make_scene(part, rng)
    captions = write_captions(scene, rng)
    path = root / folder_of(part) / file_name(part, image_id)
    if not path.exists():
        write_image(path, draw(scene, place(scene, rng), rng))
    return scene.to_json(), captions


def folder_of(part: str) -> str:
    return "train2014" if part == "train" else "val2014"


def file_name(part: str, image_id: int) -> str:
    return f"COCO_{folder_of(part)}_{image_id:012d}.jpg"


def draw_lots(draw_seed: int, part: str, index: int) -> random.Random:
    """The source of chance of one scene: scenes do not depend on each other or on how many there are."""
    return random.Random(f"velm shapes {VERSION}/{draw_seed}/{part}/{index}")


def _empty_coco() -> dict[str, Any]:
    return {
        "info": {"description": "velm shapes: drawn scenes with captions", "version": str(VERSION)},
        "licenses": [{"id": 1, "name": "drawn by velm", "url": ""}],
        "images": [],
        "annotations": [],
    }


def _holds(root: Path, name: str, stamp: dict[str, int]) -> bool:
    """Whether the stamp file `name` is there; UserError if it tells of other scenes than `stamp`."""
    try:
        found = json.loads((root / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    except ValueError:
        found = None
    if found == stamp:
        return True
    if isinstance(found, dict):
        what = ", ".join(f"{key}={found.get(key)}" for key in stamp if found.get(key) != stamp[key])
    else:
        what = f"{name} is damaged"
    raise UserError(f"{root} holds other shapes ({what}): set dataset.root to a new folder, or delete it")


def write_image(path: Path, image: Image.Image) -> None:
    """As JPEG, whole or not at all."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=95, subsampling=0)
    write_bytes(path, [stream.getvalue()])
