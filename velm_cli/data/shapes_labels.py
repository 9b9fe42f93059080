"""Labels of `dataset=shapes dataset.examples=labels`: the colours and the shapes in a scene, as COCO's instances files.

Each object is there twice, once by its colour and once by its shape: 16 categories, of which a scene has two or four,
each as often as the others. The test part puts them together as training never does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from velm_cli.data.shapes import SIDE, draw_lots, place
from velm_cli.data.shapes_grammar import COLOURS, NOUNS, Scene, make_scene, write_captions
from velm_cli.data.stamps import stamp_of
from velm_cli.errors import UserError
from velm_cli.files import write_json

STAMP, VERSION = "instances.json", 1
PARTS = {"train": "train2014", "val": "val2014", "test": "val2014"}  # and the folders of their images
CATEGORIES = (*COLOURS, *NOUNS)


def write_shapes_labels(root: Path, draw_seed: int) -> None:
    """Write annotations/instances_*2014.json about the scenes of `root` unless they are there.

    A pure function of the scenes and of `draw_seed`. UserError where they cannot be written.
    """
    home, stamp = root / "annotations", {"version": VERSION, "draw_seed": draw_seed}
    try:
        if stamp_of(home / STAMP) != stamp:
            _write_all(root, draw_seed)
            write_json(home / STAMP, stamp)
    except OSError as error:
        raise UserError(f"cannot write the labels to {home} ({error}): check dataset.root") from error


def _write_all(root: Path, draw_seed: int) -> None:
    scenes = json.loads((root / "scenes.json").read_text(encoding="utf-8"))
    split = json.loads((root / "shapes_split.json").read_text(encoding="utf-8"))
    names = {name: number for number, name in enumerate(CATEGORIES, start=1)}
    categories = [
        {"id": number, "name": name, "supercategory": "colour" if name in COLOURS else "shape"}
        for name, number in names.items()
    ]
    files = {
        folder: json.loads((root / "annotations" / f"captions_{folder}.json").read_text(encoding="utf-8"))
        for folder in ("train2014", "val2014")
    }
    for content in files.values():
        content |= {"annotations": [], "categories": categories}
    for part, folder in PARTS.items():
        objects = files[folder]["annotations"]
        for index, image in enumerate(split[part]):
            scene = Scene.from_json(scenes[str(image)])
            for group, box in _boxes(scene, draw_seed, part, index):
                for name in (scene.groups[group].colour, scene.groups[group].shape):
                    about = {"image_id": image, "category_id": names[name], "iscrowd": 0}
                    area = round(box[2] * box[3], 1)
                    objects.append({"id": len(objects) + 1, **about, "bbox": box, "area": area, "segmentation": []})
    for folder, content in files.items():
        write_json(root / "annotations" / f"instances_{folder}.json", content, indent=None)


def _boxes(scene: Scene, draw_seed: int, part: str, index: int) -> list[tuple[int, list[float]]]:
    """(group, [x, y, width, height]) of each object, in pixels: drawn again as the scene was."""
    rng: Any = draw_lots(draw_seed, part, index)
    assert make_scene(part, rng) == scene, "the scene's own lots"
    write_captions(scene, rng)
    found = []
    for one in place(scene, rng):
        left, top = max(0.0, one.x - one.radius), max(0.0, one.y - one.radius)
        right, bottom = min(SIDE, one.x + one.radius), min(SIDE, one.y + one.radius)
        found.append((one.group, [round(side, 1) for side in (left, top, right - left, bottom - top)]))
    return found
