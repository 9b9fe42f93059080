"""Moving scenes of `dataset=shapes`: clips of 8 frames with captions and questions of what moves how.

One frame tells nothing of the motion: an object's place and size in the middle frame are drawn without regard to it,
and motions come in pairs of which one is the other in reverse (left and right, up and down, grow and shrink, enter and
leave). They lie below the scenes' root: motion/PART/CLIP/0.jpg to 7.jpg, and beside them captions.jsonl and
questions.jsonl, tables as `dataset=frames` reads them.
"""

from __future__ import annotations

import io
import json
import random
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image, ImageDraw

from velm_cli.data.processes import new_pool
from velm_cli.data.shapes import (
    CHUNK,
    RGB,
    SIDE,
    SUPERSAMPLING,
    WORTH_PROCESSES,
    Placed,
    draw_background,
    draw_object,
)
from velm_cli.data.shapes_grammar import ALL_KINDS, BACKGROUNDS, NOUNS
from velm_cli.data.shapes_grammar import HELD_OUT as HELD_OUT_KINDS
from velm_cli.data.stamps import stamp_of
from velm_cli.errors import UserError
from velm_cli.files import refuse_links, write_bytes, write_json
from velm_cli.schema import ShapesConfig

FOLDER = "motion"
STAMP = "motion.stamp.json"  # written last: all files are there, of this version
VERSION = 2
FRAMES = 8
MIDDLE = FRAMES // 2  # the frame that `dataset.frames=1` takes
RADIUS = (9.0, 11.0)  # pixels, in the middle frame
GROWTH = 1.13  # of the radius from frame to frame
STEPS = {"slowly": 2.2, "quickly": 4.4}  # pixels from frame to frame
TWO_SHARE = 0.5  # share of the clips with two objects
CAPTIONS = 3
MOVES = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
SAYS = {  # motion -> how captions say it
    **{way: (f"moves {way}", f"is moving {way}") for way in MOVES},
    "grow": ("grows", "is growing"),
    "shrink": ("shrinks", "is shrinking"),
    "enter": ("enters", "comes in"),
    "leave": ("leaves", "goes out"),
}
# Sizes change, so what is held out is a colour with a shape: 16 of the 64 pairs that scenes hold out in one size.
HELD_OUT = tuple(sorted({(colour, shape) for size, colour, shape in HELD_OUT_KINDS if size == "small"}))
SEEN = tuple(sorted({(colour, shape) for _, colour, shape in ALL_KINDS} - {*HELD_OUT}))
PAIRS = (("left", "right"), ("up", "down"), ("grow", "shrink"), ("enter", "leave"))


@dataclass(frozen=True, slots=True)
class Moving:
    """An object and what it does; `speed` of what moves left, right, up or down, "" of all else."""

    colour: str
    shape: str
    motion: str
    speed: str = ""


def make_clip(part: str, rng: random.Random) -> tuple[Moving, ...]:
    """One or two objects that differ in colour and shape; a held-out kind in every test clip and in no other."""
    first = rng.choice(HELD_OUT if part == "test" else SEEN)
    kinds = [first]
    if rng.random() < TWO_SHARE:
        others = (*SEEN, *HELD_OUT) if part == "test" else SEEN
        kinds.append(rng.choice([kind for kind in others if kind[0] != first[0] and kind[1] != first[1]]))
        rng.shuffle(kinds)
    return tuple(_moving(colour, shape, rng) for colour, shape in kinds)


def _moving(colour: str, shape: str, rng: random.Random) -> Moving:
    motion = rng.choice(rng.choice(PAIRS))
    return Moving(colour, shape, motion, rng.choice(tuple(STEPS)) if motion in MOVES else "")


def frames_of(clip: tuple[Moving, ...], rng: random.Random) -> list[Image.Image]:
    """FRAMES RGB images of SIDE x SIDE pixels. Two objects have the upper and the lower half, or the other way."""
    background = draw_background(rng.choice(tuple(BACKGROUNDS)), rng)
    bands = [(0.0, SIDE / 2), (SIDE / 2, float(SIDE))] if len(clip) == 2 else [(0.0, float(SIDE))]
    rng.shuffle(bands)
    paths = [_path(moving, band, rng) for moving, band in zip(clip, bands, strict=True)]
    frames = []
    for number in range(FRAMES):
        canvas = background.copy()
        pen = ImageDraw.Draw(canvas)
        for moving, path in zip(clip, paths, strict=True):
            draw_object(pen, moving.shape, RGB[moving.colour], path[number])
        frames.append(canvas.reduce(SUPERSAMPLING))
    return frames


def _path(moving: Moving, band: tuple[float, float], rng: random.Random) -> list[Placed]:
    """Where the object is in each frame. Its middle frame is drawn before what it does is looked at."""
    radius, turn = rng.uniform(*RADIUS), rng.uniform(-0.1, 0.1)
    reach = MIDDLE * STEPS["quickly"] + RADIUS[1] + 1  # free on every side, whatever it does
    x = rng.uniform(reach, SIDE - reach)
    low, high = band[0] + reach, band[1] - reach
    y = rng.uniform(low, high) if low < high else (low + high) / 2
    side, step = rng.choice((-1, 1)), STEPS[rng.choice(tuple(STEPS))]
    if moving.motion in ("enter", "leave"):  # over the left or the right edge, half of it seen in the middle frame
        x, dy = (SIDE if side > 0 else 0.0) + rng.uniform(-3, 3), 0
        dx, step = side * (1 if moving.motion == "leave" else -1), STEPS["quickly"]
    else:
        dx, dy = MOVES.get(moving.motion, (0, 0))
        step = STEPS.get(moving.speed, step)
    growth = {"grow": GROWTH, "shrink": 1 / GROWTH}.get(moving.motion, 1.0)
    return [
        Placed(0, x + dx * step * after, y + dy * step * after, radius * growth**after, turn)
        for after in range(-MIDDLE, FRAMES - MIDDLE)
    ]


# ---------------------------------------------------------------------------------------- words


def write_captions(clip: tuple[Moving, ...], rng: random.Random) -> list[str]:
    """CAPTIONS different captions, each of which says what every object does, the objects in any order."""
    captions: dict[str, None] = {}
    while len(captions) < CAPTIONS:
        said = [_phrase(moving, rng) for moving in rng.sample(clip, len(clip))]
        captions[rng.choice((" and ", " while ")).join(said)] = None
    return list(captions)


def _phrase(moving: Moving, rng: random.Random) -> str:
    article = rng.choice(("the", "an" if moving.colour[0] in "aeiou" else "a"))
    phrase = f"{article} {moving.colour} {rng.choice(NOUNS[moving.shape])} {rng.choice(SAYS[moving.motion])}"
    return f"{phrase} {moving.speed}" if moving.speed else phrase


def write_questions(clip: tuple[Moving, ...], rng: random.Random) -> list[tuple[str, str, str]]:
    """(kind, question, answer) of each object; of every kind all answers are equally likely, image or none."""
    asked = []
    for moving in clip:
        name = f"the {moving.colour} {rng.choice(NOUNS[moving.shape])}"
        if moving.motion in MOVES:
            asked.append(("way", f"which way does {name} move", moving.motion))
            fast = "yes" if moving.speed == "quickly" else "no"
            asked.append(("speed", f"is {name} fast", fast))
        elif moving.motion in ("grow", "shrink"):
            asked.append(("size", f"does {name} grow or shrink", moving.motion))
        else:
            asked.append(("edge", f"does {name} enter or leave", moving.motion))
    return asked


# ---------------------------------------------------------------------------------------- files


def write_motion(config: ShapesConfig, root: Path) -> Path:
    """Write the moving scenes below `root` unless they are there; their folder.

    A pure function of (draw_seed, num_train, num_val, num_test). UserError where they cannot be written, or others are.
    """
    home = root / FOLDER
    sizes = {"train": config.num_train, "val": config.num_val, "test": config.num_test}
    stamp = {"version": VERSION, "draw_seed": config.draw_seed, **{f"num_{part}": size for part, size in sizes.items()}}
    try:
        if (found := stamp_of(home / STAMP)) is not None:
            if found != stamp:
                raise UserError(f"{home} holds other moving scenes: set dataset.root to a new folder, or delete it")
            return home
        home.mkdir(parents=True, exist_ok=True)
        refuse_links(home)
        _write_all(home, config.draw_seed, sizes)
        write_json(home / STAMP, stamp)
    except OSError as error:
        raise UserError(f"cannot write the moving scenes to {home} ({error}): check dataset.root") from error
    return home


def _write_all(home: Path, draw_seed: int, sizes: dict[str, int]) -> None:
    jobs = [(part, index) for part, size in sizes.items() for index in range(size)]
    write = partial(_write_clip, home, draw_seed)
    if len(jobs) * FRAMES >= WORTH_PROCESSES:
        with new_pool(0) as pool:
            clips = list(pool.map(write, jobs, chunksize=CHUNK))
    else:
        clips = list(map(write, jobs))
    captions, questions, facts = [], [], {}
    for (part, index), (clip, said, asked) in zip(jobs, clips, strict=True):
        name = f"{part}/{index:06d}"
        facts[name] = [[m.colour, m.shape, m.motion, m.speed] for m in clip]
        captions.append({"frames": name, "image_id": name, "split": part, "captions": said})
        questions += [
            {"frames": name, "id": f"{name}/{number}", "split": part, "question": question, "answers": [answer]}
            for number, (_, question, answer) in enumerate(asked)
        ]
    for file, rows in (("captions.jsonl", captions), ("questions.jsonl", questions)):
        write_bytes(home / file, (json.dumps(row).encode() + b"\n" for row in rows))
    write_json(home / "motion.json", facts, indent=None)


def _write_clip(
    home: Path, draw_seed: int, job: tuple[str, int]
) -> tuple[tuple[Moving, ...], list[str], list[tuple[str, str, str]]]:
    part, index = job
    rng = random.Random(f"velm shapes motion {VERSION}/{draw_seed}/{part}/{index}")
    clip = make_clip(part, rng)
    said, asked = write_captions(clip, rng), write_questions(clip, rng)
    folder = home / part / f"{index:06d}"
    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(frames_of(clip, rng)):
        buffer = io.BytesIO()
        frame.save(buffer, "JPEG", quality=92)
        write_bytes(folder / f"{number}.jpg", [buffer.getvalue()])
    return clip, said, asked
