"""Visual question answering in the official form of VQA v1 and v2: a file of questions, a file of annotations.

Questions: {"data_subtype": "train2014", "questions": [{"question_id", "image_id", "question"}]}. Annotations:
{"annotations": [{"question_id", "question_type", "answer_type", "answers": [{"answer", ...}]}]}, ten answers each. The
images are COCO's, named by folder and number. Antol et al. 2015, Goyal et al. 2017.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from velm_cli import schema
from velm_cli.data.examples import Corpus, Examples, ImageRef
from velm_cli.data.readers.assemble import Listing, Question, assemble, first_few
from velm_cli.data.readers.finding import walk
from velm_cli.data.readers.part_files import Files, given_files, in_order, part_of_file
from velm_cli.errors import UserError
from velm_cli.lines import Refused, load_json

QUESTIONS, ANNOTATIONS = "questions", "annotations"  # the lists in the two files, and how their names end
FOLDERS = ("train2014", "val2014", "test2014", "test2015", "train2017", "val2017", "test2017")
# Multiple choice has the questions of the open-ended task again; test-dev is a part of test.
ASIDE = {"MultipleChoice_": "multiple choice", "test-dev": "a part of the test questions"}
# What one of the annotators said: of VQA, and beside it OK-VQA's text before stemming.
_ANSWER = frozenset(("answer", "answer_id", "answer_confidence", "raw_answer"))

ABOUT = ("question_type", "answer_type", "multiple_choice_answer")
Annotation = tuple[list[object], dict[str, str]]  # answers, and what is said about the question


def read_vqa(config: schema.VqaConfig, root: Path | None) -> Corpus:
    """Examples of every question; their id is the question's, that of their image is COCO's number."""
    corpus = Corpus(Examples())
    questions = _files(config, QUESTIONS, root, corpus.notes)
    annotations = _files(config, ANNOTATIONS, root, corpus.notes)
    if not questions:
        raise UserError(
            f"dataset.root={root}: no questions file below it (v2_OpenEnded_mscoco_train2014_questions.json and its "
            "like); name yours with dataset.questions="
        )
    if without := sorted(annotations.keys() - questions.keys()):
        raise UserError(
            f"{annotations[without[0]][0]} has the answers of {without[0]}, and no questions file is of that part: "
            "give dataset.questions="
        )
    if "train" in questions and "train" not in annotations:
        raise UserError(
            f"{questions['train'][0]} has questions to train on, and no annotations file has their answers: give "
            "dataset.annotations="
        )
    listing = Listing() if config.images else None
    base = Path(config.images_root).expanduser() if config.images_root else root or Path()
    images = _Images(base, listing)

    def entries() -> Iterator[Question]:
        for part, paths in questions.items():  # one at a time: its answers are freed before the next are read
            answers = _answers(annotations[part], corpus.refused) if part in annotations else None
            if answers is None:
                corpus.notes.append(f"{part}: no annotations file, so its questions have no answers")
            seen: set[str] = set()
            for path in paths:
                yield from _of_file(path, part, answers, images, seen, corpus.refused)
            if answers:
                few = first_few(answers)
                corpus.notes.append(f"{part}: {len(answers):,} annotations are of questions that no file has ({few})")

    return assemble(corpus, entries(), listing, config.missing, f"dataset.root={root}" if root else "dataset.questions")


# ------------------------------------------------------------------------------------------ which files


def _files(config: schema.VqaConfig, kind: str, root: Path | None, notes: list[str]) -> Files:
    """The files of questions or annotations by part, as given or as found below the root; UserError where one that is
    given is not there, or of no part."""
    given = getattr(config, kind)
    if given is None:
        return _below(root, kind, notes) if root is not None else {}
    return given_files(given, f"dataset.{kind}", root)


def _below(root: Path, kind: str, notes: list[str]) -> Files:
    """Files below the root whose names end as the official ones do."""
    found: dict[str, list[Path]] = {}
    aside: Counter[str] = Counter()
    for folder, names in walk(root):
        for name in names:
            if re.search(rf"{kind}\.json(?:\.gz)?$", name):
                path = Path(folder) / name
                if part := part_of_file(path, path.relative_to(root).parent.parts):
                    found.setdefault(part, []).append(path)
                else:
                    aside["of no part that its name or folder says"] += 1
    chosen: Files = {}
    for part, paths in found.items():
        reasons = [_less_than_others(path.name, [other.name for other in paths]) for path in paths]
        aside.update(filter(None, reasons))
        chosen[part] = [path for path, reason in zip(paths, reasons, strict=True) if not reason]
    if aside:
        shown = ", ".join(f"{count} {why}" for why, count in aside.items())
        notes.append(f"left aside files of {kind}: {shown}; dataset.{kind}= names others")
    return in_order(chosen)


def _less_than_others(name: str, names: list[str]) -> str | None:
    """Why a file is not read where the others of its part are there; None if it is."""
    for word, reason in ASIDE.items():
        if word in name and any(word not in other for other in names):
            return reason
    if not name.startswith("v2_") and f"v2_{name}" in names:
        return "of version 1, and version 2 is there"
    return None


# ------------------------------------------------------------------------------------------ what is in them


def _of_file(
    path: Path, part: str, answers: dict[str, Annotation] | None, images: _Images, seen: set[str], refused: Refused
) -> Iterator[Question]:
    """The questions of a file, each once. Takes what it uses out of `answers`, so that what is left belongs to none."""
    data = load_json(path)
    rows = _rows(data, QUESTIONS, path)
    data_type, subtype = (str(data.get(key) or "") for key in ("data_type", "data_subtype"))
    for position, row in enumerate(rows):
        where = f"{path} questions[{position}]"
        try:
            name, image, text = _id(row["question_id"]), _id(row["image_id"]), row["question"]
            if text is None:
                raise TypeError
        except (KeyError, TypeError, ValueError):
            refused.append((where, 'it has no usable "question_id", "image_id" or "question"'))
            continue
        key = str(name)
        if key in seen:
            refused.append((key, f"it is asked again in {path}: the first one counts"))
            continue
        seen.add(key)
        given: list[object] = []
        about: dict[str, str] = {}
        if answers is not None:
            if key not in answers:
                refused.append((key, f"no annotation of {part} has its answers"))
                continue
            given, about = answers.pop(key)
        reference = ImageRef(image, images.find(image, data_type, subtype))
        yield Question(name, part, (reference,), text, given, about, unlabelled=answers is None)


def _answers(paths: list[Path], refused: Refused) -> dict[str, Annotation]:
    """Question id -> its annotation; as text, for one of the two files may have it so."""
    found: dict[str, Annotation] = {}
    for path in paths:
        for position, row in enumerate(_rows(load_json(path, reduce=_only_answer), ANNOTATIONS, path)):
            try:
                name, answers = str(_id(row["question_id"])), row["answers"]
                if not isinstance(answers, list):
                    raise TypeError
            except (KeyError, TypeError, ValueError):
                refused.append((f"{path} annotations[{position}]", 'it has no usable "question_id" or "answers"'))
                continue
            about = {key: row[key] for key in ABOUT if isinstance(row.get(key), str)}
            if name in found:
                if found[name] != (answers, about):
                    raise UserError(f"{path}: the question {name} has several annotations, and they differ")
                refused.append((name, f"its annotation is there again in {path}: taken once"))
            found[name] = (answers, about)
    return found


def _only_answer(item: dict[str, Any]) -> Any:
    """An answer without its number and confidence, as soon as it is parsed: there are millions."""
    return item["answer"] if "answer" in item and item.keys() <= _ANSWER else item


def _rows(data: Any, key: str, path: Path) -> list[Any]:
    rows = data.get(key) if isinstance(data, dict) else None
    if not isinstance(rows, list):
        raise UserError(f'{path} is not a VQA {key} file: it has no list "{key}"')
    return rows


def _id(value: Any) -> int | str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("neither a whole number nor text")
    return value


@dataclass
class _Images:
    """Where the images lie: below `base` in COCO's folders, under the names that the releases gave them."""

    base: Path
    listing: Listing | None

    def __post_init__(self) -> None:
        self._folder_of: dict[str, Path] = {}
        if self.listing is not None:
            for folder in (self.base, *(home / name for home in (self.base, self.base / "images") for name in FOLDERS)):
                for name in self.listing.names(folder):
                    self._folder_of.setdefault(name, folder)

    def find(self, image: int | str, data_type: str, subtype: str) -> Path:
        """The file of an image; where it should be if it is not there."""
        number = f"{image:012d}" if isinstance(image, int) and image >= 0 else str(image)
        official = f"COCO_{subtype}_{number}.jpg"
        others = (f"{number}.jpg", f"COCO_train2014_{number}.jpg", f"COCO_val2014_{number}.jpg")
        for name in (official, *others, f"{data_type}_{subtype}_{number}.png", str(image)):
            if name in self._folder_of:
                return self._folder_of[name] / name
        return self.base / subtype / official
