"""Where the texts of drawn scenes lie that are pairs: a folder of JSON lines beside the scenes, a part a file."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

from velm_cli.data.shapes_grammar import Scene
from velm_cli.data.stamps import stamp_of
from velm_cli.errors import UserError
from velm_cli.files import refuse_links, write_bytes, write_json

PARTS = ("train", "val", "test")
FOLDERS = {"train": "train2014", "val": "val2014", "test": "val2014"}  # of their images
STAMP = "stamp.json"  # written last: all files are there, of this version

Row = Callable[[Scene, random.Random], dict[str, str]]


def write_pairs(root: Path, folder: str, row: Row, *, version: int, draw_seed: int) -> Path:
    """The folder below `root` with a line for each of its scenes, `row` and the image's file; written where absent.

    A pure function of the scenes, `version` and `draw_seed`. UserError where it cannot be written.
    """
    home = root / folder
    stamp = {"version": version, "draw_seed": draw_seed}
    try:
        if stamp_of(home / STAMP) != stamp:
            home.mkdir(exist_ok=True)
            refuse_links(home)
            scenes = json.loads((root / "scenes.json").read_text(encoding="utf-8"))
            split = json.loads((root / "shapes_split.json").read_text(encoding="utf-8"))
            for part in PARTS:
                lines = []
                for image_id in split[part]:
                    rng = random.Random(f"velm shapes {folder} {version}/{draw_seed}/{part}/{image_id}")
                    name = f"{FOLDERS[part]}/COCO_{FOLDERS[part]}_{image_id:012d}.jpg"
                    line = {"file_name": name, **row(Scene.from_json(scenes[str(image_id)]), rng)}
                    lines.append((json.dumps(line, ensure_ascii=False) + "\n").encode())
                write_bytes(home / f"{part}.jsonl", lines)
            write_json(home / STAMP, stamp)
    except OSError as error:
        raise UserError(f"cannot write the {folder} to {home} ({error}): check dataset.root") from error
    return home
