"""Drawn statements that are true or false, in the records of NLVR2, which `dataset=nlvr` and `velm score` read too.

A set is four examples of pictures, with the same sentences for each, every one true of two and false of two: so, as in
NLVR2, the sentence alone says nothing. `statements` are about the scenes of `dataset=shapes`, one or two; `boxes` about
pictures like NLVR's, which are drawn for it. A record names its pictures.
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from velm_cli.data.processes import new_pool
from velm_cli.data.shapes import BOXES, file_name, folder_of
from velm_cli.data.shapes_box_words import scattered_statement
from velm_cli.data.shapes_boxes import describe, draw_boxes, scattered, towers
from velm_cli.data.shapes_grammar import Scene
from velm_cli.data.shapes_statements import ONE_SCENE, TWO_SCENES, Pair
from velm_cli.data.shapes_tower_words import tower_statement
from velm_cli.errors import UserError
from velm_cli.files import refuse_links, write_bytes, write_json

STATEMENTS, CAPTIONS = "statements", "captions.jsonl"
STAMP = "records.stamp.json"  # written last: all files are there, of this version
VERSION = 1
PARTS = {"train": "train", "val": "dev", "test": "test"}  # and what the records of each are called
OF_A_SET, SENTENCES = 4, 12
OF_A_FORM = 2  # sentences of each form about the scenes of a set
TRIES = 100  # statements that are drawn at most for each sentence of a set
WORTH_PROCESSES = 100  # sets from which on it pays to start processes

Seen = TypeVar("Seen")
Rule = Callable[[Seen], bool]
DrawnSet = tuple[list[dict[str, Any]], dict[str, list[str]]]  # records; captions by picture


def balanced(
    seen: Sequence[Seen], statement: Callable[[random.Random], tuple[str, Rule]], rng: random.Random, most: int
) -> list[tuple[str, list[bool]]]:
    """Up to `most` different sentences, each true of half of what is `seen`, and of which."""
    found: dict[str, list[bool]] = {}
    for _ in range(TRIES * most):
        if len(found) == most:
            break
        sentence, rule = statement(rng)
        truth = [rule(each) for each in seen]
        if 2 * sum(truth) == len(truth) and " ".join(sentence.split()) == sentence:
            found.setdefault(sentence, truth)
    return list(found.items())


def records_of(
    split: str, number: int, said: Mapping[str, tuple[list[bool], str]], images: Sequence[Sequence[str]]
) -> Iterator[dict[str, Any]]:
    """NLVR2's records of a set: of each sentence which examples make it true, and its kind; `images`: their files."""
    for place, (sentence, (truth, kind)) in enumerate(said.items()):
        for pair, true in enumerate(truth):
            yield {
                "identifier": f"{split}-{number}-{pair}-{place}",
                "sentence": sentence,
                "label": str(true),
                "images": list(images[pair]),
                "kind": kind,
            }


def write_boxes(root: Path, sizes: dict[str, int], draw_seed: int) -> dict[str, str]:
    """Draw the pictures and write the records below `root` unless they are there: the files by part.

    Beside them captions.jsonl has a caption of each box of each picture.

    A pure function of the numbers of pictures, which are rounded up to whole sets, and of `draw_seed`. UserError where
    they cannot be written, or others are there.
    """
    home = root / BOXES
    stamp = {"version": VERSION, "draw_seed": draw_seed} | {f"num_{part}": size for part, size in sizes.items()}

    def write() -> None:
        captions: list[dict[str, Any]] = []
        for part, split in PARTS.items():
            (home / split).mkdir(exist_ok=True)
            jobs = range(-(-sizes[part] // OF_A_SET))
            draw = partial(_draw_set, home, draw_seed, split)
            with ExitStack() as stack:
                drawn: Iterator[DrawnSet] = map(draw, jobs)
                if len(jobs) >= WORTH_PROCESSES:
                    drawn = stack.enter_context(new_pool(0)).map(draw, jobs, chunksize=16)

                def records(drawn: Iterator[DrawnSet] = drawn, part: str = part) -> Iterator[dict[str, Any]]:
                    for of_set, described in drawn:
                        captions.extend({"image": n, "captions": c, "split": part} for n, c in described.items())
                        yield from of_set

                write_records(home / f"{split}.json", records())
        write_records(home / CAPTIONS, captions)

    write_once(home, stamp, write)
    return {part: str(home / f"{split}.json") for part, split in PARTS.items() if sizes[part]}


def write_statements(root: Path, draw_seed: int) -> dict[str, str]:
    """Write the statements about the scenes of `root` unless they are there: the files by part.

    Eight scenes make a set of four pairs and two sets of four scenes; what is left over has none. UserError where they
    cannot be written.
    """
    home = root / STATEMENTS
    scenes = json.loads((root / "scenes.json").read_text(encoding="utf-8"))
    split = json.loads((root / "shapes_split.json").read_text(encoding="utf-8"))
    eight = 2 * OF_A_SET
    sets = {part: len(split[part]) // eight for part in PARTS}
    if not sets["train"]:
        raise UserError(f"dataset.num_train={len(split['train'])}: a set of statements is about {eight} scenes")

    def write() -> None:
        for part, name in PARTS.items():
            found = (
                record
                for number in range(sets[part])
                for record in _said_of(name, number, split[part][eight * number :][:eight], scenes, part, draw_seed)
            )
            write_records(home / f"{name}.json", found)

    write_once(home, {"version": VERSION, "draw_seed": draw_seed}, write)
    return {part: str(home / f"{name}.json") for part, name in PARTS.items() if sets[part]}


def _said_of(
    name: str, number: int, ids: Sequence[int], scenes: dict[str, Any], part: str, draw_seed: int
) -> Iterator[dict[str, Any]]:
    rng = random.Random(f"velm statements {VERSION}/{draw_seed}/{part}/{number}")
    drawn = [Scene.from_json(scenes[str(image)]) for image in ids]
    files = [f"{folder_of(part)}/{file_name(part, image)}" for image in ids]
    half = OF_A_SET
    shown: list[tuple[list[Pair], list[tuple[str, ...]]]] = [
        (list(zip(drawn[:half], drawn[half:], strict=True)), list(zip(files[:half], files[half:], strict=True))),
        ([(each,) for each in drawn[:half]], [(each,) for each in files[:half]]),
        ([(each,) for each in drawn[half:]], [(each,) for each in files[half:]]),
    ]
    for place, ((seen, images), forms) in enumerate(zip(shown, (TWO_SCENES, ONE_SCENE, ONE_SCENE), strict=True)):
        said: dict[str, tuple[list[bool], str]] = {}
        for kind, form in forms.items():
            for sentence, truth in balanced(seen, partial(form, seen), rng, OF_A_FORM):
                said.setdefault(sentence, (truth, kind))
        yield from records_of(name, 3 * number + place, said, images)


def _draw_set(home: Path, draw_seed: int, split: str, number: int) -> DrawnSet:
    rng = random.Random(f"velm boxes {VERSION}/{draw_seed}/{split}/{number}")
    kind = rng.choice(("towers", "towers", "scattered"))
    worlds = [(towers if kind == "towers" else scattered)(rng) for _ in range(OF_A_SET)]
    statement = tower_statement if kind == "towers" else scattered_statement
    sentences = balanced(worlds, statement, rng, SENTENCES)
    names = [f"{split}/{number}-{place}.png" for place in range(OF_A_SET)]
    for name, world in zip(names, worlds, strict=True):
        if not (home / name).exists():
            stream = io.BytesIO()
            draw_boxes(world).save(stream, "PNG")
            write_bytes(home / name, [stream.getvalue()])
    said = {sentence: (truth, kind) for sentence, truth in sentences}
    records = list(records_of(split, number, said, [[name] for name in names]))
    return records, dict(zip(names, map(describe, worlds), strict=True))


def write_records(path: Path, records: Iterable[dict[str, Any]]) -> None:
    write_bytes(path, ((json.dumps(record) + "\n").encode() for record in records))


def write_once(home: Path, stamp: dict[str, int], write: Callable[[], None]) -> None:
    """`write` the folder unless the stamp file says that it is there; UserError if it tells of something else."""
    try:
        found = json.loads((home / STAMP).read_text(encoding="utf-8")) if (home / STAMP).exists() else None
    except (OSError, ValueError):
        raise UserError(f"{home / STAMP} is damaged: delete {home} to have it drawn again") from None
    if found == stamp:
        return
    if found is not None:
        differ = ", ".join(f"{key}={found.get(key)}" for key in stamp if found.get(key) != stamp[key])
        raise UserError(f"{home} holds others ({differ}): set dataset.root to a new folder, or delete it")
    try:
        home.mkdir(parents=True, exist_ok=True)
        refuse_links(home)
        write()
        write_json(home / STAMP, stamp)
    except OSError as error:
        raise UserError(f"cannot write to {home} ({error}): check dataset.root") from error
