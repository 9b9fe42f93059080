"""Conversations about drawn scenes as LLaVA's JSON: several turns, and in every second one a further scene.

The questions are those of `shapes_questions.py`, balanced so that their words give nothing away. Where there are two
scenes the second stands within the words of a turn, and each later question says which of the two it is about: who
mixes up the places of images answers by chance.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from velm_cli.data.shapes_grammar import Scene
from velm_cli.data.shapes_questions import write_questions
from velm_cli.data.shapes_text_files import FOLDERS, PARTS
from velm_cli.data.stamps import stamp_of
from velm_cli.errors import UserError
from velm_cli.files import refuse_links, write_json

FOLDER = "chat"
STAMP = "stamp.json"  # written last: all files are there, of this version
VERSION = 1
TURNS = (2, 4)  # questions of a conversation, at least and at most
WHICH = ("in the first picture", "in the second picture")


def write_shapes_chat(root: Path, draw_seed: int) -> dict[str, str]:
    """The files of conversations by part, written unless they are there: chat/train.json and so on below `root`.

    A pure function of the scenes and of `draw_seed`. UserError where they cannot be written.
    """
    home = root / FOLDER
    stamp = {"version": VERSION, "draw_seed": draw_seed}
    try:
        if stamp_of(home / STAMP) != stamp:
            home.mkdir(exist_ok=True)
            refuse_links(home)
            scenes = json.loads((root / "scenes.json").read_text(encoding="utf-8"))
            split = json.loads((root / "shapes_split.json").read_text(encoding="utf-8"))
            for part in PARTS:
                drawn = {number: Scene.from_json(scenes[str(number)]) for number in split[part]}
                rows = []
                for place, number in enumerate(drawn):
                    rng = random.Random(f"velm shapes chat {VERSION}/{draw_seed}/{part}/{number}")
                    other = rng.choice([each for each in drawn if each != number]) if place % 2 and drawn else None
                    rows.append(conversation(part, number, other, drawn, rng))
                write_json(home / f"{part}.json", rows, indent=None)
            write_json(home / STAMP, stamp)
    except OSError as error:
        raise UserError(f"cannot write the conversations to {home} ({error}): check dataset.root") from error
    return {part: str(home / f"{part}.json") for part in PARTS}


def conversation(
    part: str, number: int, other: int | None, scenes: dict[int, Scene], rng: random.Random
) -> dict[str, Any]:
    """About scene `number`, and from its second turn on about `other` as well, if there is one."""
    asked = write_questions(scenes[number], part, rng)
    turns = rng.randint(*TURNS)
    if other is None:
        chosen = [(each.question, each.answer) for each in rng.sample(asked, min(turns, len(asked)))]
        chosen[0] = (f"<image>\n{chosen[0][0]}", chosen[0][1])
        images: Any = _file(part, number)
    else:
        of_other = write_questions(scenes[other], part, rng)
        first, second = rng.choice(asked), rng.choice(of_other)
        chosen = [
            (f"<image>\n{first.question}", first.answer),
            (f"now look at <image> too, {second.question} {WHICH[1]}", second.answer),
        ]
        for _ in range(turns - 2):
            which = rng.randrange(2)
            question = rng.choice((asked, of_other)[which])
            chosen.append((f"{question.question} {WHICH[which]}", question.answer))
        images = [_file(part, number), _file(part, other)]
    said = [{"from": who, "value": text} for pair in chosen for who, text in zip(("human", "gpt"), pair, strict=True)]
    return {"id": number, "image": images, "conversations": said}


def _file(part: str, number: int) -> str:
    return f"{FOLDERS[part]}/COCO_{FOLDERS[part]}_{number:012d}.jpg"
