"""The questions about drawn scenes in files of VQA's official form, which `velm score task=vqa` reads too.

They lie beside the scenes: vqa/{train,val,test}/questions.json and annotations.json.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from velm_cli.data.shapes_grammar import Scene
from velm_cli.data.shapes_questions import write_questions
from velm_cli.data.stamps import stamp_of
from velm_cli.errors import UserError
from velm_cli.files import refuse_links, write_json

FOLDER = "vqa"
STAMP = "questions.stamp.json"  # written last: all files are there, of this version
VERSION = 1
MOST = 100  # questions a scene, which its ids have room for
PARTS = {"train": "train2014", "val": "val2014", "test": "val2014"}  # and the folders of their images
ANSWER_TYPES = {"count": "number", "colour": "other"}  # of kinds of questions; those of the others are yes/no


def write_shapes_questions(root: Path, draw_seed: int) -> tuple[dict[str, str], dict[str, str]]:
    """Write the questions about the scenes of `root` unless they are there: the files of questions, of annotations.

    A pure function of the scenes and of `draw_seed`. UserError where they cannot be written.
    """
    home = root / FOLDER
    files = [{part: str(home / part / f"{kind}.json") for part in PARTS} for kind in ("questions", "annotations")]
    stamp = {"version": VERSION, "draw_seed": draw_seed}
    try:
        if stamp_of(home / STAMP) != stamp:
            home.mkdir(exist_ok=True)
            refuse_links(home)
            _write_all(root, draw_seed)
            write_json(home / STAMP, stamp)
    except OSError as error:
        raise UserError(f"cannot write the questions to {home} ({error}): check dataset.root") from error
    return files[0], files[1]


def _write_all(root: Path, draw_seed: int) -> None:
    scenes = json.loads((root / "scenes.json").read_text(encoding="utf-8"))
    split = json.loads((root / "shapes_split.json").read_text(encoding="utf-8"))
    for part, folder in PARTS.items():
        about = {
            "info": {"description": "velm shapes: questions about drawn scenes", "version": str(VERSION)},
            "data_type": "mscoco",
            "data_subtype": folder,
            "license": {"url": "", "name": "drawn by velm"},
        }
        questions: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for image_id in split[part]:
            rng = random.Random(f"velm shapes questions {VERSION}/{draw_seed}/{part}/{image_id}")
            asked = write_questions(Scene.from_json(scenes[str(image_id)]), part, rng)
            assert len(asked) <= MOST
            for number, question in enumerate(asked):
                ids = {"question_id": image_id * MOST + number, "image_id": image_id}
                questions.append({**ids, "question": question.question})
                annotations.append(
                    {
                        **ids,
                        "question_type": question.kind,
                        "answer_type": ANSWER_TYPES.get(question.kind, "yes/no"),
                        "multiple_choice_answer": question.answer,
                        "answers": [{"answer": question.answer, "answer_confidence": "yes", "answer_id": 1}],
                    }
                )
        (root / FOLDER / part).mkdir(exist_ok=True)
        whole = {**about, "task_type": "Open-Ended", "questions": questions}
        write_json(root / FOLDER / part / "questions.json", whole, indent=None)
        write_json(root / FOLDER / part / "annotations.json", {**about, "annotations": annotations}, indent=None)
