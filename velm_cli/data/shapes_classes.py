"""Class folders of `dataset=shapes dataset.examples=classes`: scenes of one kind of object, in a folder of its shape.

As many scenes of each shape, so that the commonest one is right in every eighth; size, colour, number and background
are drawn. The test part has kinds of objects (size, colour, shape) that training never shows.
"""

from __future__ import annotations

import random
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from velm_cli import schema
from velm_cli.data.processes import new_pool
from velm_cli.data.shapes import CHUNK, WORTH_PROCESSES, draw, place, write_image
from velm_cli.data.shapes_grammar import BACKGROUNDS, HELD_OUT, NOUNS, SEEN_KINDS, Group, Scene
from velm_cli.data.stamps import stamp_of
from velm_cli.errors import UserError
from velm_cli.files import refuse_links, write_json

STAMP, VERSION = "written.json", 1
FOLDER = "classes"


def write_shapes_classes(config: schema.ShapesConfig, root: Path) -> Path:
    """Draw the scenes below `root`, but for those that are there: ROOT/classes/PART/SHAPE/NUMBER.jpg; that folder.

    A pure function of the numbers of scenes and `draw_seed`, for one version of Pillow. UserError where they cannot be
    written.
    """
    home = root / FOLDER
    sizes = {"train": config.num_train, "val": config.num_val, "test": config.num_test}
    stamp = {"version": VERSION, "draw_seed": config.draw_seed, **sizes}
    try:
        if stamp_of(home / STAMP) != stamp:
            home.mkdir(exist_ok=True)
            refuse_links(home)
            jobs = [(part, number) for part, size in sizes.items() for number in range(size)]
            for part in sizes:
                for shape in NOUNS:
                    (home / part / shape).mkdir(parents=True, exist_ok=True)
            with ExitStack() as stack:
                write = partial(_write_scene, home, config.draw_seed)
                pool = stack.enter_context(new_pool(0)) if len(jobs) >= WORTH_PROCESSES else None
                for _ in map(write, jobs) if pool is None else pool.map(write, jobs, chunksize=CHUNK):
                    pass
            write_json(home / STAMP, stamp)
    except OSError as error:
        raise UserError(f"cannot write the scenes to {home} ({error}): check dataset.root") from error
    return home


def make_class_scene(part: str, number: int, rng: random.Random) -> Scene:
    """Scene `number` of a part: one to three objects of one kind, whose shape follows from the number."""
    shape = tuple(NOUNS)[number % len(NOUNS)]
    kinds = [kind for kind in (HELD_OUT if part == "test" else SEEN_KINDS) if kind[2] == shape]
    group = Group(rng.randint(1, 3), *rng.choice(kinds))
    return Scene((group,), None, rng.choice(tuple(BACKGROUNDS)))


def _write_scene(home: Path, draw_seed: int, job: tuple[str, int]) -> None:
    part, number = job
    rng = random.Random(f"velm shapes classes {VERSION}/{draw_seed}/{part}/{number}")
    scene = make_class_scene(part, number, rng)
    path = home / part / scene.groups[0].shape / f"{number:06d}.jpg"
    if not path.exists():
        write_image(path, draw(scene, place(scene, rng), rng))
